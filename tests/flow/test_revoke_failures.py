"""Revocation against failing vendors, a failing audit, a failing vault, and a path that was tampered with."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext, SurfaceTable, keeper_dir
from agent_token_injector.errors import AuditUnavailable, ManifestError, VaultUnreachable
from agent_token_injector.lease import LeaseState
from agent_token_injector.manifest import ProvisionManifest
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import RevocationReceipt, revoke
from agent_token_injector.sandbox.http_server import DROP, Reply
from agent_token_injector.settings import Settings
from agent_token_injector.spawn import spawn_handoff
from agent_token_injector.surfaces.github import GitHubSurface
from tests.flow.rig import (
    HANDOFF,
    PATH,
    REVOKE_TOKEN,
    Failing,
    Passing,
    Recorder,
    alive,
    at_step,
    events,
    names_of,
    nothing_left,
    provisioned,
    replace_secret,
    rewired,
    spec_of,
    threads,
)
from tests.requirements import requirement
from tests.world import World, eventually

BROKEN = Reply(500, {"message": "Server Error"})


@pytest.fixture
def manifest(world: World, ctx: HandoffContext) -> ProvisionManifest:
    return provisioned(world, ctx, "github", "stripe")


def proved(ctx: HandoffContext) -> set[str]:
    return {event.surface for event in events(ctx) if event.action == "revoke.proved"}


@requirement("D10.parallel", "H8.kill-switch")
def test_while_one_surface_hangs_the_others_die(world: World, ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    world.delete_stripe_keys()
    held = world.sandbox.github.hold(REVOKE_TOKEN, at="before")

    def meanwhile() -> bool:
        held.wait_reached()
        try:
            return eventually(lambda: proved(ctx) == {"infisical", "stripe"} and alive(world, ctx) == {"github"})
        finally:
            held.release()

    with threads(lambda: revoke(HANDOFF, ctx), meanwhile) as (receipt, others_died):
        assert others_died is True
    assert isinstance(receipt, RevocationReceipt)
    assert receipt.ok
    assert nothing_left(world, ctx)


@requirement("D10.parallel", "D4.residue-exact")
@pytest.mark.parametrize("answer", [BROKEN, DROP, Reply(403, {"message": "no"})], ids=["500", "dropped", "403"])
def test_a_surface_that_fails_is_residue_with_the_next_step_and_a_second_revoke_ends_it(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest, answer: Any
) -> None:
    world.delete_stripe_keys()
    hook = world.sandbox.github.hook(REVOKE_TOKEN, before=lambda _: answer)
    receipt = revoke(HANDOFF, ctx)
    (left,) = receipt.residue
    assert (left.surface, left.state) == ("github", LeaseState.IRREVOCABLE)
    assert left.live_until == manifest.expires_at
    assert "`handoff revoke`" in left.next_step
    assert alive(world, ctx) == {"github"}
    assert not receipt.path_deleted, "the token's value is needed to revoke it"
    hook.remove()
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("D3.seen-dead")
def test_a_vendor_that_says_done_and_goes_on_accepting_the_token_is_not_believed(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    world.delete_stripe_keys()
    world.sandbox.github.hook(REVOKE_TOKEN, before=lambda _: Reply(204))
    github = world.sandbox.github
    impatient = GitHubSurface(
        api_url=github.url,
        app_client_id=github.client_id,
        installation_id=github.installation_id,
        private_key=github.private_key,
        clock=world.clock,
        keeper_dir=keeper_dir(world.home / "state"),
        patience=timedelta(seconds=0.5),
    )
    surfaces = {name: (lambda name=name: ctx.surfaces[name]) for name in ("infisical", "stripe")}
    table = SurfaceTable({**surfaces, "github": lambda: impatient})
    receipt = revoke(HANDOFF, dataclasses.replace(ctx, surfaces=table))
    assert names_of(receipt.residue) == {"github"}
    assert "still answers 200" in receipt.residue[0].why
    assert alive(world, ctx) == {"github"}


@requirement("D10.expiry-counts")
def test_a_token_that_has_expired_is_dead_though_its_vendor_cannot_be_asked(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    manifest = provisioned(world, ctx, "github")
    world.sandbox.github.hook(lambda _: True, before=lambda _: BROKEN)
    clock.advance(manifest.expires_at - clock.now() + timedelta(seconds=61))
    receipt = revoke(HANDOFF, ctx)
    assert receipt.ok
    proof = {outcome.surface: outcome.proof for outcome in receipt.outcomes}["github"]
    assert proof is not None
    assert "its own expiry passed 2026-06-20T10:00:00Z" in proof.how
    assert receipt.path_deleted


@requirement("D10.audit-never-waits")
def test_an_audit_that_cannot_be_written_does_not_hold_a_revocation_up(world: World) -> None:
    with world.open() as ctx:
        provisioned(world, ctx, "github")
    audit = Path(world.environment["HANDOFF_STATE_DIR"]) / "audit"
    audit.rename(audit.with_name("audit-away"))
    audit.write_text("a file where the directory should be")
    ctx = world_opened(world)
    try:
        receipt = revoke(HANDOFF, ctx)
        assert (receipt.ok, receipt.audit_degraded, receipt.audit_head) == (True, True, None)
        assert nothing_left(world, ctx)
        assert ctx.audit.spooled >= 4
    finally:
        audit.unlink()
        audit.with_name("audit-away").rename(audit)
        ctx.close()
    with world.open() as again:
        kept = [event for event in events(again) if "spooled_at" in event.detail]
        assert {"revoke.requested", "revoke.proved", "revoke.finished"} <= {event.action for event in kept}


def world_opened(world: World) -> HandoffContext:
    """A context whose closing a test times itself."""
    return HandoffContext.from_settings(Settings.load(world.environment), clock=world.clock)


@requirement("D10.audit-never-waits")
def test_an_audit_whose_head_cannot_be_read_costs_the_receipt_nothing_but_its_head(
    world: World, ctx: HandoffContext
) -> None:
    provisioned(world, ctx)
    failing = Failing(
        lambda: AuditUnavailable("the disk is gone"), at=1, onward=True, only=frozenset({"head", "record"})
    )
    receipt = revoke(HANDOFF, rewired(ctx, audit=failing.wrap(ctx.audit)))
    assert (receipt.ok, receipt.audit_head) == (True, None)


@requirement("D10.never-waits")
def test_a_watcher_that_fails_cannot_keep_a_credential_alive(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    def broken(_outcome: object) -> None:
        raise BrokenPipeError

    world.delete_stripe_keys()
    assert revoke(HANDOFF, ctx, progress=broken).ok
    assert nothing_left(world, ctx)


@requirement("D10.never-waits", "D4.residue-exact")
def test_a_vault_that_takes_no_writes_does_not_keep_the_vendors_credentials_alive(
    world: World, ctx: HandoffContext
) -> None:
    provisioned(world, ctx, "github")

    def read_only(name: str, call: Callable[[], Any]) -> Any:
        if name.startswith(("create", "delete")):
            raise VaultUnreachable("the vault's disk is full")
        return call()

    receipt = revoke(HANDOFF, rewired(ctx, vault=Passing(ctx.vault, read_only)))
    assert alive(world, ctx) == {"infisical"}
    assert names_of(receipt.residue) == {"infisical"}
    assert any("could not be marked" in note for note in receipt.notes)
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("D4.residue-exact")
def test_a_path_that_cannot_be_deleted_is_residue_though_every_credential_is_dead(
    world: World, ctx: HandoffContext
) -> None:
    provisioned(world, ctx)
    failing = Failing(lambda: VaultUnreachable("no answer"), at=1, only=frozenset({"delete_folder"}))
    receipt = revoke(HANDOFF, rewired(ctx, vault=failing.wrap(ctx.vault)))
    assert (receipt.ok, receipt.path_deleted) == (False, False)
    assert names_of(receipt.residue) == {"vault"}
    assert str(PATH) in str(receipt.residue[0])
    assert alive(world, ctx) == set()
    assert revoke(HANDOFF, ctx).ok


def test_a_vault_that_cannot_be_asked_is_an_error_and_not_a_success(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    failing = Failing(lambda: VaultUnreachable("no answer"), at=1, onward=True)
    with pytest.raises(VaultUnreachable):
        revoke(HANDOFF, rewired(ctx, vault=failing.wrap(ctx.vault)))
    assert alive(world, ctx) == {"infisical"}


# -- a path that someone has written to --------------------------------------------------------------------------------


def without_github(text: str) -> str:
    document = json.loads(text)
    document["leases"] = [lease for lease in document["leases"] if lease["surface"] != "github"]
    return json.dumps(document)


def anothers_identity(text: str) -> str:
    return text.replace(f"infisical-handoff-{HANDOFF}", "infisical-handoff-bystander-20260620")


@requirement("H8.kill-switch", "D6.tampered")
@pytest.mark.parametrize(
    ("record", "change"),
    [
        ("PROVISION_MANIFEST", without_github),
        ("PROVISION_MANIFEST", anothers_identity),
        ("PROVISION_MANIFEST", lambda _: "{}"),
        ("PROVISION_MANIFEST", lambda _: "not JSON"),
        ("PROVISION_INTENT", lambda _: "not JSON"),
    ],
    ids=["a lease left out", "another's identity", "empty", "not JSON", "intent not JSON"],
)
def test_a_tampered_record_hides_no_credential_from_revocation(
    world: World, ctx: HandoffContext, record: str, change: Callable[[str], str]
) -> None:
    provisioned(world, ctx, "github")
    bystander = provisioned(world, ctx, task_slug="bystander")
    replace_secret(ctx, record, change)
    receipt = revoke(HANDOFF, ctx)
    assert receipt.ok, receipt.residue
    assert receipt.notes
    assert eventually(lambda: not alive(world, ctx))
    assert not ctx.vault.folder_exists(PATH)
    assert ctx.vault.find_identities(bystander.leases[0].identity) != (), "another handoff's identity was touched"


@requirement("D6.tampered", "H8.operator-supplied")
def test_without_a_readable_manifest_an_operators_key_still_counts_as_handed_over(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    replace_secret(ctx, "PROVISION_MANIFEST", lambda _: "not JSON")
    receipt = revoke(HANDOFF, ctx)
    assert names_of(receipt.residue) == {"stripe"}
    world.delete_stripe_keys()
    assert revoke(HANDOFF, ctx).ok


@requirement("D6.tampered", "D4.residue-exact")
def test_another_token_put_in_the_place_of_ours_proves_nothing(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx, "github")
    replace_secret(ctx, "GH_HANDOFF_TOKEN", lambda token: token[:-4] + "AAAA")
    receipt = revoke(HANDOFF, ctx)
    assert names_of(receipt.residue) == {"github"}
    assert "not the token of" in receipt.residue[0].why
    assert alive(world, ctx) == {"github"}


@requirement("D6.tampered", "D4.residue-exact")
def test_a_token_whose_value_was_deleted_is_residue_until_its_expiry(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    provisioned(world, ctx, "github")
    ctx.vault.delete_secret(PATH, "GH_HANDOFF_TOKEN")
    assert names_of(revoke(HANDOFF, ctx).residue) == {"github"}
    clock.advance(timedelta(hours=1, minutes=2))
    assert revoke(HANDOFF, ctx).ok


@requirement("D6.tampered", "H8.kill-switch")
@pytest.mark.parametrize("name", ["PROVISION_MANIFEST", "INFISICAL_CLIENT_SECRET"])
def test_bytes_changed_in_the_vaults_own_file_do_not_stop_a_revocation(
    world: World, ctx: HandoffContext, name: str
) -> None:
    provisioned(world, ctx, "github")
    database = sqlite3.connect(Path(world.environment["HANDOFF_STATE_DIR"]) / "vault" / "vault.sqlite3")
    with database:
        database.execute(
            "UPDATE secrets SET sealed = substr(sealed, 1, length(sealed) - 1) || x'00' WHERE name = ?", (name,)
        )
    database.close()
    receipt = revoke(HANDOFF, ctx)
    assert receipt.ok, receipt.residue
    assert any("revoked by what can still be read" in note for note in receipt.notes)
    assert nothing_left(world, ctx)


@requirement("H8.kill-switch", "H4.no-manifest-no-spawn")
def test_a_handoff_that_is_only_half_revoked_cannot_be_dispatched(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    assert names_of(revoke(HANDOFF, ctx).residue) == {"stripe"}
    launcher = Recorder()
    with pytest.raises(ManifestError, match="it has been revoked"):
        spawn_handoff(HANDOFF, launcher, ctx=ctx)
    assert launcher.launches == 0


@requirement("D4.all-or-nothing", "H8.operator-supplied")
def test_an_operators_key_that_was_never_handed_over_needs_no_person(world: World, ctx: HandoffContext) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provision(
            spec_of(world, "stripe"),
            ctx,
            supplied={"stripe": world.stripe_key()},
            progress=at_step("minted", interrupt, surface="stripe"),
        )
    assert nothing_left(world, ctx)
    assert len(world.sandbox.stripe.live_credentials()) == 1
