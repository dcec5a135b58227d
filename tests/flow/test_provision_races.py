"""Several at once: two provisioners, a provisioner and a revocation, and a provisioner after a dead one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ManifestError, ProvisionFailed
from agent_token_injector.manifest import Holder, ProvisionIntent, ProvisionManifest, RevocationMark
from agent_token_injector.processes import ProcessId
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.session_context import admit
from tests.flow.rig import (
    HANDOFF,
    ID,
    MINT,
    PATH,
    Passing,
    actions,
    alive,
    at_step,
    nothing_left,
    rewired,
    spec_of,
    threads,
    vault_only,
)
from tests.requirements import requirement
from tests.world import World, eventually


@requirement("D2.create-only", "D4.at-once")
def test_of_two_provisioners_at_once_exactly_one_mints(world: World, ctx: HandoffContext) -> None:
    spec = spec_of(world, "github")
    with world.open() as other:
        with threads(lambda: provision(spec, ctx), lambda: provision(spec, other)) as results:
            made = [result for result in results if isinstance(result, ProvisionManifest)]
            lost = [result for result in results if not isinstance(result, ProvisionManifest)]
        assert made, results
        assert all(isinstance(error, ProvisionFailed) and error.residue == () for error in lost), lost
    assert world.sandbox.github.count(MINT) == 1
    assert len(world.live_minted()) == 1
    assert len(ctx.vault.find_identities(f"infisical-handoff-{HANDOFF}")) == 1
    assert admit(ID, ctx).manifest == made[0]


@requirement("D2.create-only")
def test_a_second_provisioner_is_told_who_is_at_it_and_until_when(world: World, ctx: HandoffContext) -> None:
    refused: list[ProvisionFailed] = []

    def second() -> None:
        with world.open() as other, pytest.raises(ProvisionFailed) as caught:
            provision(vault_only(world), other)
        refused.append(caught.value)

    provision(vault_only(world), ctx, progress=at_step("minted", second))
    assert "is being provisioned by another process: pid" in str(refused[0])
    assert "2026-06-20T09:10:00Z" in str(refused[0].hint)
    assert admit(ID, ctx)


@requirement("D2.intent-first")
def test_before_anything_is_minted_the_vault_names_every_identity_to_come(world: World, ctx: HandoffContext) -> None:
    seen: list[ProvisionIntent] = []

    def look() -> None:
        assert alive(world, ctx) == set()
        seen.append(ProvisionIntent.from_secret(ctx.vault.read_secret(PATH, "PROVISION_INTENT")))

    supplied = {"stripe": world.stripe_key()}
    provision(world.spec, ctx, supplied=supplied, progress=at_step("minting", look, surface="infisical"))
    assert seen[0].identities == {
        "infisical": f"infisical-handoff-{HANDOFF}",
        "github": f"gh-token-handoff-{HANDOFF}",
        "stripe": f"stripe-restricted-handoff-{HANDOFF}",
    }
    assert (seen[0].spec_digest, seen[0].deadline - seen[0].begun_at) == (world.spec.digest, timedelta(minutes=10))


@requirement("H8.kill-switch", "D2.mark")
@pytest.mark.parametrize("step", ["minting", "minted"])
@pytest.mark.parametrize("surface", ["infisical", "github"])
def test_a_revocation_mark_set_while_provisioning_makes_the_provisioner_undo_itself(
    world: World, ctx: HandoffContext, clock: ManualClock, step: str, surface: str
) -> None:
    mark = RevocationMark(handoff_id=HANDOFF, marked_at=clock.now(), by="another host", reason="a test")

    def set_mark() -> None:
        ctx.vault.create_secret(PATH, "REVOCATION_MARK", mark.to_secret())

    with pytest.raises(ProvisionFailed, match="is being revoked") as caught:
        provision(spec_of(world, "github"), ctx, progress=at_step(step, set_mark, surface=surface))
    assert caught.value.residue == ()
    assert nothing_left(world, ctx)


@requirement("H8.kill-switch", "D10.at-once")
@pytest.mark.parametrize(
    ("step", "surface"),
    [
        *[(step, surface) for surface in ("infisical", "github") for step in ("minting", "minted")],
        ("listing", "mcp"),
        ("listed", "mcp"),
        ("committed", ""),
    ],
)
def test_a_whole_revocation_from_another_host_at_any_step_of_a_provisioning_leaves_nothing(
    world: World, ctx: HandoffContext, step: str, surface: str
) -> None:
    def kill() -> None:
        with world.open() as other:
            revoke(HANDOFF, other)

    def run() -> None:
        provision(spec_of(world, "github"), ctx, progress=at_step(step, kill, surface=surface))

    if step == "committed":
        run()
    else:
        with pytest.raises(ProvisionFailed) as caught:
            run()
        assert caught.value.residue == ()
    assert nothing_left(world, ctx)


@requirement("D10.at-once", "H8.kill-switch")
def test_what_is_minted_after_a_revocation_has_looked_and_before_it_has_marked_is_ended_too(
    world: World, ctx: HandoffContext
) -> None:
    """The revoker sees a path without GitHub's record; then GitHub mints and the manifest is signed; then it marks."""
    at_github, looked = threading.Event(), threading.Event()
    outcome: list[Any] = []

    def wait_for_the_look() -> None:
        at_github.set()
        assert looked.wait(30)

    def provisioning() -> None:
        try:
            outcome.append(
                provision(
                    spec_of(world, "github"), ctx, progress=at_step("minting", wait_for_the_look, surface="github")
                )
            )
        except ProvisionFailed as error:
            outcome.append(error)

    running = threading.Thread(target=provisioning)

    def around(name: str, call: Callable[[], Any]) -> Any:
        result = call()
        if name == "read_folder" and not looked.is_set():
            looked.set()
            running.join(30)
        return result

    running.start()
    assert at_github.wait(30)
    with world.open() as other:
        receipt = revoke(HANDOFF, rewired(other, vault=Passing(other.vault, around)))
    assert isinstance(outcome[0], ProvisionManifest)
    assert receipt.ok, receipt.residue
    assert nothing_left(world, ctx)


@requirement("D2.debris")
@pytest.mark.parametrize("whose", ["a dead process", "a live process, long ago", "another machine, long ago"])
def test_an_intent_whose_provisioner_is_gone_or_late_is_cleared_by_the_next_provisioning(
    world: World, ctx: HandoffContext, clock: ManualClock, whose: str
) -> None:
    write_intent(ctx, clock, whose)
    if "long ago" in whose:
        with pytest.raises(ProvisionFailed, match="is being provisioned"):
            provision(vault_only(world), ctx)
        clock.advance(timedelta(minutes=11))
    assert provision(vault_only(world), ctx).handoff_id == HANDOFF
    assert "revoke.requested" in actions(ctx)


def write_intent(ctx: HandoffContext, clock: ManualClock, whose: str) -> None:
    me = ProcessId.current()
    holder = {
        "a dead process": Holder(boot=me.boot, pid=me.pid, started=me.started + 1),
        "a live process, long ago": Holder(boot=me.boot, pid=me.pid, started=me.started),
        "another machine, long ago": Holder(boot="another", pid=me.pid, started=me.started),
    }[whose]
    intent = ProvisionIntent(
        handoff_id=HANDOFF,
        spec_digest="sha256:" + "0" * 64,
        identities={"infisical": f"infisical-handoff-{HANDOFF}"},
        begun_at=clock.now(),
        deadline=clock.now() + timedelta(minutes=10),
        holder=holder,
    )
    ctx.vault.create_folder(PATH)
    ctx.vault.create_secret(PATH, "PROVISION_INTENT", intent.to_secret())


@requirement("D2.debris")
def test_an_empty_path_is_no_reason_not_to_provision(world: World, ctx: HandoffContext) -> None:
    ctx.vault.create_folder(PATH)
    assert provision(vault_only(world), ctx).handoff_id == HANDOFF


@requirement("D2.debris")
def test_an_unreadable_intent_is_cleared_and_not_trusted(world: World, ctx: HandoffContext) -> None:
    ctx.vault.create_folder(PATH)
    ctx.vault.create_secret(PATH, "PROVISION_INTENT", SecretStr("{"))
    with pytest.raises(ManifestError, match="cannot be read"):
        provision(vault_only(world), ctx)
    assert revoke(HANDOFF, ctx).ok
    assert provision(vault_only(world), ctx).handoff_id == HANDOFF


@requirement("D2.deadline")
def test_a_provisioner_that_is_too_slow_gives_up_before_others_may_clear_what_it_does(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    late = at_step("minted", lambda: clock.advance(timedelta(minutes=8, seconds=1)), surface="infisical")
    with pytest.raises(ProvisionFailed, match="took too long") as caught:
        provision(spec_of(world, "github"), ctx, progress=late)
    assert caught.value.residue == ()
    assert world.sandbox.github.count(MINT) == 0
    assert eventually(lambda: not alive(world, ctx))
