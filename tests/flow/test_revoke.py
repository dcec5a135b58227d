"""The kill-switch: every credential seen dead, the path gone last, safe to repeat, one handoff at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from agent_token_injector.audit import Decision
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ExitCode, VaultForbidden
from agent_token_injector.lease import LeaseState
from agent_token_injector.manifest import ProvisionManifest
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import RevocationReceipt, revoke
from agent_token_injector.sandbox.http_server import method
from tests.flow.rig import (
    HANDOFF,
    ID,
    PATH,
    Passing,
    alive,
    events,
    names_of,
    nothing_left,
    provisioned,
    requests,
    rewired,
    threads,
    vault_only,
)
from tests.requirements import requirement
from tests.world import World


@pytest.fixture
def manifest(world: World, ctx: HandoffContext) -> ProvisionManifest:
    return provision(world.spec, ctx, supplied={"stripe": world.stripe_key()})


@requirement("H8.kill-switch", "D3.seen-dead")
def test_every_credential_is_proved_dead_and_timed(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    world.delete_stripe_keys()
    receipt = revoke(HANDOFF, ctx)
    assert (receipt.ok, receipt.found, receipt.path_deleted) == (True, "provisioned", True)
    outcomes = {outcome.surface: outcome for outcome in receipt.outcomes}
    assert set(outcomes) == {"infisical", "github", "stripe"}
    assert {outcome.state for outcome in receipt.outcomes} == {LeaseState.DEAD}
    assert "its login is refused" in outcomes["infisical"].proof.how  # type: ignore[union-attr]
    assert outcomes["github"].proof.how == "GET /installation/repositories answered 401"  # type: ignore[union-attr]
    assert outcomes["stripe"].proof.how == "GET /v1/balance answered 401"  # type: ignore[union-attr]
    assert all(outcome.milliseconds >= 0 for outcome in receipt.outcomes)
    assert (receipt.notes, receipt.audit_degraded) == ((), False)
    assert nothing_left(world, ctx)


@requirement("H5.revocation-audited")
def test_a_revocation_is_audited_from_the_request_to_each_proof(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    world.delete_stripe_keys()
    receipt = revoke(HANDOFF, ctx, reason="the pull request is open")
    trail = [event for event in events(ctx) if event.action.startswith("revoke.")]
    assert (trail[0].action, trail[0].reason) == ("revoke.requested", "the pull request is open")
    proved = {event.surface: event for event in trail if event.action == "revoke.proved"}
    assert set(proved) == {"infisical", "github", "stripe"}
    assert all(event.decision is Decision.DONE and "ms" in event.detail for event in proved.values())
    assert (trail[-1].action, trail[-1].decision) == ("revoke.finished", Decision.DONE)
    assert receipt.audit_head is not None
    assert receipt.audit_head.seq == trail[-1].seq
    assert ctx.audit.verify(ID).ok


@requirement("D10.path-last")
def test_the_vault_path_goes_last_when_nothing_is_alive_any_more(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    world.delete_stripe_keys()
    seen: list[tuple[set[str], bool]] = []

    def around(name: str, call: Callable[[], Any]) -> Any:
        if name == "delete_folder":
            seen.append((alive(world, ctx), ctx.vault.folder_exists(PATH)))
        return call()

    assert revoke(HANDOFF, rewired(ctx, vault=Passing(ctx.vault, around))).ok
    assert seen == [(set(), True)]


@requirement("D2.mark", "D10.mark-first")
def test_the_mark_is_set_before_any_credential_is_touched(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    held = world.sandbox.github.hold(method("DELETE", "/installation/token"), at="before")
    with threads(lambda: revoke(HANDOFF, ctx), lambda: _look_while(held, ctx)) as (receipt, marked):
        assert marked is True
    assert names_of(receipt.residue) == {"stripe"}


def _look_while(held: Any, ctx: HandoffContext) -> bool:
    held.wait_reached()
    try:
        return "REVOCATION_MARK" in ctx.vault.read_folder(PATH)
    finally:
        held.release()


@requirement("D10.idempotent")
def test_revoking_twice_is_safe(world: World, ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    world.delete_stripe_keys()
    assert revoke(HANDOFF, ctx).ok
    before = requests(world)
    second = revoke(HANDOFF, ctx)
    assert (second.ok, second.found, second.path_deleted) == (True, "nothing", False)
    assert requests(world) == before
    assert nothing_left(world, ctx)


@requirement("D10.idempotent")
def test_revoking_what_never_was_is_safe(world: World, ctx: HandoffContext) -> None:
    receipt = revoke("never-was-20260620", ctx)
    assert (receipt.ok, receipt.found, receipt.path_deleted) == (True, "nothing", False)
    assert requests(world) == 0


def test_what_is_no_handoff_id_is_refused(ctx: HandoffContext) -> None:
    with pytest.raises(ValueError, match="is not a handoff id"):
        revoke("../founders-checkout", ctx)


@requirement("D10.at-once")
def test_two_revocations_at_once_are_safe(world: World, ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    world.delete_stripe_keys()
    with world.open() as other, threads(lambda: revoke(HANDOFF, ctx), lambda: revoke(HANDOFF, other)) as results:
        assert all(isinstance(result, RevocationReceipt) and result.ok for result in results), results
    assert nothing_left(world, ctx)


@requirement("H8.operator-supplied", "D3.kinds")
def test_a_key_that_only_a_person_can_delete_is_residue_until_that_person_has_done_it(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    first = revoke(HANDOFF, ctx)
    (left,) = first.residue
    assert (left.surface, left.state) == ("stripe", LeaseState.AWAITING_OPERATOR)
    assert left.live_until is None
    assert "delete the restricted key" in left.next_step
    assert "handoff revoke" in left.next_step
    assert alive(world, ctx) == set(), "what needs no person is dead at once"
    assert not first.path_deleted
    world.delete_stripe_keys()
    second = revoke(HANDOFF, ctx)
    assert (second.ok, second.found, second.path_deleted) == (True, "revoking", True)
    assert nothing_left(world, ctx)


@requirement("H8.operator-supplied")
def test_once_the_key_is_dead_the_operators_copy_in_the_vault_goes_too(world: World, ctx: HandoffContext) -> None:
    folder = ctx.layout.supplied_for(world.spec.slug)
    ctx.vault.create_folder(folder)
    ctx.vault.create_secret(folder, "STRIPE_RESTRICTED_KEY", world.stripe_key())
    provision(world.spec, ctx)
    assert not revoke(HANDOFF, ctx).ok
    assert "STRIPE_RESTRICTED_KEY" in ctx.vault.read_folder(folder), "it proves whether the key is dead"
    world.delete_stripe_keys()
    assert revoke(HANDOFF, ctx).ok
    assert dict(ctx.vault.read_folder(folder)) == {}


@requirement("H8.operator-supplied")
def test_a_new_key_that_the_operator_has_left_meanwhile_stays(world: World, ctx: HandoffContext) -> None:
    provision(world.spec, ctx, supplied={"stripe": world.stripe_key()})
    world.delete_stripe_keys()
    folder, fresh = ctx.layout.supplied_for(world.spec.slug), world.stripe_key()
    ctx.vault.create_folder(folder)
    ctx.vault.create_secret(folder, "STRIPE_RESTRICTED_KEY", fresh)
    assert revoke(HANDOFF, ctx).ok
    assert ctx.vault.read_secret(folder, "STRIPE_RESTRICTED_KEY") == fresh


@requirement("H8.kill-switch")
def test_the_command_says_5_while_something_is_left_and_0_when_it_is_gone(tmp_path: Any) -> None:
    from tests.world import make_world

    with make_world(tmp_path) as world, world.open() as ctx:
        manifest = provision(world.spec, ctx, supplied={"stripe": world.stripe_key()})
        first = world.cli("revoke", manifest.handoff_id)
        assert first.returncode == ExitCode.RESIDUE, first.stderr
        assert "delete the restricted key" in first.stderr
        world.delete_stripe_keys()
        second = world.cli("revoke", manifest.handoff_id, "--json")
        assert second.returncode == ExitCode.OK, second.stderr
        assert '"ok": true' in second.stdout


@requirement("H2.independent")
def test_revoking_one_of_three_handoffs_leaves_the_others_credentials_working(
    world: World, ctx: HandoffContext
) -> None:
    slugs = ("founders-checkout", "iap-refunds", "queue-worker")
    ids = {slug: provisioned(world, ctx, "github", task_slug=slug).handoff_id for slug in slugs}
    assert {slug: works(world, ctx, ids[slug]) for slug in slugs} == dict.fromkeys(slugs, (True, True))
    held = ctx.vault.read_folder(ctx.layout.handoffs.child(ids["iap-refunds"]))
    assert revoke(ids["iap-refunds"], ctx).ok
    for slug in ("founders-checkout", "queue-worker"):
        assert works(world, ctx, ids[slug]) == (True, True), slug
    assert token_works(world, held["GH_HANDOFF_TOKEN"].get_secret_value()) is False
    with pytest.raises(VaultForbidden):
        ctx.vault.login(held["INFISICAL_CLIENT_ID"].get_secret_value(), held["INFISICAL_CLIENT_SECRET"])


def works(world: World, ctx: HandoffContext, handoff: str) -> tuple[bool, bool]:
    """Whether a handoff's GitHub token and its vault identity do what they are for."""
    folder = ctx.layout.handoffs.child(handoff)
    held = ctx.vault.read_folder(folder)
    session = ctx.vault.login(held["INFISICAL_CLIENT_ID"].get_secret_value(), held["INFISICAL_CLIENT_SECRET"])
    read = session.read_secret(folder, "GH_HANDOFF_TOKEN") == held["GH_HANDOFF_TOKEN"]
    return token_works(world, held["GH_HANDOFF_TOKEN"].get_secret_value()), read


def token_works(world: World, token: str) -> bool:
    answer = httpx.get(
        f"{world.sandbox.github.url}/repos/raxx/TradeMasterAPI/pulls", headers={"Authorization": f"Bearer {token}"}
    )
    return answer.status_code == 200


@requirement("H2.independent")
def test_a_handoff_whose_slug_begins_like_anothers_is_another(world: World, ctx: HandoffContext) -> None:
    first = provision(vault_only(world, task_slug="founders"), ctx)
    second = provision(vault_only(world, task_slug="founders-20260620"), ctx)
    assert revoke(first.handoff_id, ctx).ok
    assert ctx.vault.folder_exists(ctx.path_of(second.handoff))
    assert ctx.vault.find_identities(second.leases[0].identity) != ()
