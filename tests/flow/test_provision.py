"""Provisioning that succeeds, and provisioning the same again."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ProvisionFailed
from agent_token_injector.lease import MintKind
from agent_token_injector.manifest import ProvisionManifest
from agent_token_injector.names import is_record
from agent_token_injector.provisioning import provision
from agent_token_injector.session_context import admit
from tests.flow.rig import HANDOFF, ID, MINT, PATH, START, alive, events, names_of, provisioned, requests, vault_only
from tests.requirements import requirement
from tests.world import World

SECRETS = {
    "INFISICAL_CLIENT_ID": "INFISICAL_CLIENT_ID",
    "INFISICAL_CLIENT_SECRET": "INFISICAL_CLIENT_SECRET",
    "GH_HANDOFF_TOKEN": "GH_TOKEN",
    "STRIPE_RESTRICTED_KEY": "STRIPE_KEY",
}


@pytest.fixture
def manifest(world: World, ctx: HandoffContext) -> ProvisionManifest:
    return provision(world.spec, ctx, supplied={"stripe": world.stripe_key()})


@requirement("D6.bound", "H4.manifest")
def test_the_manifest_says_what_was_provisioned_and_is_signed(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    assert (manifest.handoff_id, manifest.task_slug) == (HANDOFF, "founders-checkout")
    assert manifest.spec_digest == world.spec.digest
    assert manifest.read_spec() == world.spec
    assert manifest.policy_digest == ctx.policy.digest
    assert manifest.provisioned_at == START
    assert manifest.requested_until == START + world.spec.expires_in
    manifest.verify(ID, ctx.trusted)
    stored = ProvisionManifest.from_secret(ctx.vault.read_secret(PATH, "PROVISION_MANIFEST"))
    assert stored == manifest
    last = events(ctx)[-1]
    assert (manifest.audit_head.seq, manifest.audit_head.digest) == (last.seq, last.digest)


@requirement("D6.bound")
def test_every_credential_has_a_lease_with_its_name_its_kind_and_its_scope(manifest: ProvisionManifest) -> None:
    leases = {lease.surface: lease for lease in manifest.leases}
    assert list(leases) == ["infisical", "github", "stripe"]
    assert {name: lease.identity for name, lease in leases.items()} == {
        "infisical": f"infisical-handoff-{HANDOFF}",
        "github": f"gh-token-handoff-{HANDOFF}",
        "stripe": f"stripe-restricted-handoff-{HANDOFF}",
    }
    assert leases["stripe"].kind is MintKind.OPERATOR_SUPPLIED
    assert leases["infisical"].kind is leases["github"].kind is MintKind.MINTED
    assert all(lease.handle for lease in manifest.leases)
    assert leases["github"].scope["repository"] == "raxx/TradeMasterAPI"
    assert leases["github"].scope["permissions"] == {"contents": "write", "pull_requests": "write"}
    assert leases["stripe"].scope["mode"] == "test"
    assert sorted(leases["infisical"].scope["read"]) == [f"{PATH}/*", "/MooseQuest/queue/staging/STRIPE_*"]


@requirement("H3.shortest-credential")
def test_a_handoff_ends_no_later_than_its_shortest_credential_and_says_which_that_is(
    manifest: ProvisionManifest,
) -> None:
    assert manifest.limited_by == "github"
    assert manifest.expires_at == START + timedelta(hours=1)
    assert all(manifest.expires_at <= lease.expires_at for lease in manifest.leases if lease.expires_at is not None)


@requirement("H3.shortest-credential")
def test_without_a_shorter_credential_a_handoff_ends_when_the_spec_says(world: World, ctx: HandoffContext) -> None:
    manifest = provision(vault_only(world), ctx)
    assert manifest.limited_by is None
    assert manifest.expires_at == manifest.requested_until == START + world.spec.expires_in


@requirement("D6.bound", "H6.no-values")
def test_the_vault_path_holds_exactly_the_secrets_that_the_manifest_lists(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    folder = ctx.vault.read_folder(PATH)
    held = {name for name in folder if not is_record(name)}
    assert held == set(SECRETS)
    assert {record.name: record.env for record in manifest.secrets} == SECRETS
    manifest.check_secrets(folder)
    assert folder["STRIPE_RESTRICTED_KEY"] == world.keys[0]
    document = json.dumps(manifest.to_dict())
    assert not [name for name in held - {"INFISICAL_CLIENT_ID"} if folder[name].get_secret_value() in document]


@requirement("H5.provision-audited")
def test_every_step_of_a_provisioning_is_in_the_audit(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    steps = [(event.action, event.surface) for event in events(ctx)]
    per_surface = [
        (action, surface)
        for surface in ("infisical", "github", "stripe")
        for action in ("mint.requested", "mint.done", "verify.done")
    ]
    before = [("gate.checked", ""), ("provision.started", "")]
    assert steps == [*before, *per_surface, ("provision.tools", "mcp"), ("provision.committed", "")]
    assert {event.decision for event in events(ctx)} == {Decision.ALLOWED, Decision.DONE}
    assert ctx.audit.verify(manifest.handoff).ok


@requirement("D4.provision-twice")
def test_the_same_spec_again_on_the_same_day_gives_the_same_manifest_and_mints_nothing(
    world: World, ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    before = requests(world)
    again = provision(world.spec, ctx, supplied={"stripe": world.keys[0]})
    assert again == manifest
    assert requests(world) == before
    assert world.sandbox.github.count(MINT) == 1
    assert len(ctx.vault.find_identities(f"infisical-handoff-{HANDOFF}")) == 1


@requirement("D4.provision-twice")
def test_another_spec_under_the_same_id_is_refused_until_the_first_is_revoked(
    world: World, ctx: HandoffContext
) -> None:
    first = provision(vault_only(world), ctx)
    with pytest.raises(ProvisionFailed, match="another spec") as caught:
        provision(vault_only(world, expected_runtime="PT1H"), ctx)
    assert f"handoff revoke {HANDOFF}" in str(caught.value.hint)
    assert caught.value.residue == ()
    assert ctx.vault.read_secret(PATH, "PROVISION_MANIFEST") == first.to_secret()
    assert alive(world, ctx) == {"infisical"}


@requirement("H3.no-second-life")
def test_an_ended_handoff_is_not_given_out_again_but_cleared_and_minted_anew(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    first = provisioned(world, ctx, "github")
    clock.advance(timedelta(hours=2))
    second = provisioned(world, ctx, "github")
    assert (second.handoff_id, second.provisioned_at) == (first.handoff_id, clock.now())
    assert not {lease.handle for lease in first.leases} & {lease.handle for lease in second.leases}
    assert len(world.live_minted()) == len(ctx.vault.find_identities(f"infisical-handoff-{HANDOFF}")) == 1
    assert admit(ID, ctx).manifest == second


@requirement("H3.no-second-life", "D4.residue-exact")
def test_an_ended_handoff_of_which_something_is_alive_is_in_the_way_until_that_is_dead(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    provisioned(world, ctx, "github", "stripe")
    clock.advance(timedelta(hours=2))
    with pytest.raises(ProvisionFailed, match="could not be cleared") as caught:
        provisioned(world, ctx, "github", "stripe")
    assert names_of(caught.value.residue) == {"stripe"}
    assert world.sandbox.github.count(MINT) == 1
    world.delete_stripe_keys()
    assert provisioned(world, ctx, "github", "stripe").provisioned_at == clock.now()


@requirement("D2.deterministic-names")
def test_the_next_day_is_another_handoff(world: World, ctx: HandoffContext, clock: ManualClock) -> None:
    first = provision(vault_only(world), ctx)
    clock.advance(timedelta(days=1))
    second = provision(vault_only(world), ctx)
    assert (first.handoff_id, second.handoff_id) == (HANDOFF, "founders-checkout-20260621")


@requirement("surface.operator-supplied")
def test_a_key_left_in_the_vault_is_taken_when_none_is_passed(world: World, ctx: HandoffContext) -> None:
    key = world.stripe_key()
    folder = ctx.layout.supplied_for(world.spec.slug)
    ctx.vault.create_folder(folder)
    ctx.vault.create_secret(folder, "STRIPE_RESTRICTED_KEY", key)
    provision(world.spec, ctx)
    assert ctx.vault.read_secret(PATH, "STRIPE_RESTRICTED_KEY") == key


@requirement("surface.operator-supplied")
def test_a_credential_for_a_surface_that_mints_its_own_is_refused(world: World, ctx: HandoffContext) -> None:
    with pytest.raises(ProvisionFailed, match="takes none"):
        provision(vault_only(world), ctx, supplied={"github": SecretStr("ghp_0123456789abcdef0123456789abcdef0123")})
    assert alive(world, ctx) == set()
    assert not ctx.vault.folder_exists(PATH)
