"""Provisioning that is refused: before it touches anybody, or afterwards with everything undone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ExitCode, GateRefused, MintRefused, ProvisionFailed, ScopeTooWide, SpecError
from agent_token_injector.provisioning import provision
from agent_token_injector.sandbox.github import SandboxGitHub
from agent_token_injector.spec import HandoffSpec
from tests.flow.rig import MINT, PATH, actions, alive, events, nothing_left, requests, spec_of, vault_only
from tests.requirements import requirement
from tests.world import EXAMPLES, World


def untouched(world: World, ctx: HandoffContext) -> bool:
    return requests(world) == 0 and ctx.vault.list_folders(ctx.layout.handoffs) == () and not alive(world, ctx)


@requirement("H4.gate-first", "H5.provision-audited")
def test_what_the_gate_refuses_touches_nobody_and_is_audited(world: World, ctx: HandoffContext) -> None:
    document = {**world.spec.to_dict(), "operator": ""}
    with pytest.raises(GateRefused) as caught:
        provision(HandoffSpec.parse(json.dumps(document)), ctx, supplied={"stripe": world.stripe_key()})
    assert caught.value.exit_code is ExitCode.GATE_REFUSED
    assert untouched(world, ctx)
    (event,) = events(ctx)
    assert (event.action, event.decision) == ("gate.checked", Decision.REFUSED)
    assert event.reason in event.detail["codes"]  # type: ignore[operator]


@requirement("H4.before-anything")
def test_a_surface_that_this_version_cannot_mint_is_refused_before_anything(world: World, ctx: HandoffContext) -> None:
    spec = HandoffSpec.load(EXAMPLES / "iap_notif_handler" / "handoff-spec.json")
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec, ctx)
    assert caught.value.surface not in {"infisical", "github", "stripe"}
    assert "this version provisions infisical, github, stripe" in str(caught.value)
    assert caught.value.residue == ()
    assert untouched(world, ctx)


@requirement("H4.before-anything", "surface.operator-supplied")
def test_a_missing_operators_key_is_refused_before_anything_with_where_to_make_it(
    world: World, ctx: HandoffContext
) -> None:
    with pytest.raises(ProvisionFailed, match="only an operator can make") as caught:
        provision(world.spec, ctx)
    hint = str(caught.value.hint)
    assert "https://dashboard.stripe.com/test/apikeys/create?name=stripe-restricted-handoff-founders-checkout-" in hint
    assert "permissions[]=rak_checkout_session_write" in hint
    assert "handoff supply" in hint
    assert caught.value.exit_code is ExitCode.FAILED_CLEAN
    assert untouched(world, ctx)


@requirement("H4.before-anything", "D6.bound")
def test_a_spec_whose_manifest_nobody_could_read_back_is_refused_before_anything(
    world: World, ctx: HandoffContext
) -> None:
    tools = ["infisical_get_secret", *(f"tool_{number}" for number in range(9000))]
    with pytest.raises(SpecError, match="too large to be provisioned"):
        provision(vault_only(world, mcp_tools=tools), ctx)
    assert untouched(world, ctx)


@requirement("D5.read-back", "D4.all-or-nothing")
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("sk_test_51aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "it is a secret key"),
        ("rk_live_51aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "the spec asks for test mode"),
        ("pk_test_51aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "it is not a restricted key"),
        ("hunter2hunter2hunter2", "it does not look like a Stripe key"),
    ],
)
def test_a_key_of_the_wrong_shape_is_refused_undone_and_never_shown(
    world: World, ctx: HandoffContext, value: str, says: str
) -> None:
    with pytest.raises(ProvisionFailed, match=says) as caught:
        provision(spec_of(world, "stripe"), ctx, supplied={"stripe": SecretStr(value)})
    assert isinstance(caught.value.__cause__, MintRefused)
    assert value not in caught.value.diagnostics()
    assert (caught.value.surface, caught.value.residue) == ("stripe", ())
    assert len(world.sandbox.stripe.log) == 0
    assert nothing_left(world, ctx)


@requirement("D5.read-back", "D4.all-or-nothing")
def test_a_key_that_can_do_more_than_was_asked_is_refused_and_everything_is_undone(
    world: World, ctx: HandoffContext
) -> None:
    with pytest.raises(ProvisionFailed, match="charge_write") as caught:
        provision(world.spec, ctx, supplied={"stripe": world.stripe_key("charge_write")})
    assert isinstance(caught.value.__cause__, ScopeTooWide)
    assert caught.value.residue == ()
    assert world.sandbox.github.count(MINT) == 1
    assert nothing_left(world, ctx)
    assert actions(ctx)[-1] == "provision.failed"
    # Nobody was given the operator's key, so nobody has to delete it.
    assert len(world.sandbox.stripe.live_credentials()) == 1


@requirement("D5.read-back")
def test_a_key_that_can_do_less_than_was_asked_is_refused(world: World, ctx: HandoffContext) -> None:
    key = world.sandbox.operator_stripe_key(["subscription_read"])
    with pytest.raises(ProvisionFailed, match="lacks what was asked") as caught:
        provision(spec_of(world, "stripe"), ctx, supplied={"stripe": key})
    assert caught.value.surface == "stripe"
    assert nothing_left(world, ctx)


def _over_grant(github: SandboxGitHub) -> None:
    github.over_grant = {"issues": "write"}


def _unprotected(github: SandboxGitHub) -> None:
    github.unprotect("raxx/TradeMasterAPI")


def _bypassed(github: SandboxGitHub) -> None:
    github.unprotect("raxx/TradeMasterAPI")
    github.protect("raxx/TradeMasterAPI", "main", bypass="always")


@requirement("D5.read-back", "D4.all-or-nothing")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_over_grant, "GitHub granted .*issues: write"),
        (_unprotected, "no ruleset there demands a pull request"),
        (_bypassed, "bypass: always"),
    ],
    ids=["over-grant", "no-pull-request-rule", "bypass"],
)
def test_a_token_that_can_do_more_than_was_asked_is_revoked_and_refused(
    world: World, ctx: HandoffContext, spoil: Callable[[SandboxGitHub], None], says: str
) -> None:
    spoil(world.sandbox.github)
    with pytest.raises(ProvisionFailed, match=says) as caught:
        provision(spec_of(world, "github"), ctx)
    assert isinstance(caught.value.__cause__, ScopeTooWide)
    assert (caught.value.surface, caught.value.residue) == ("github", ())
    assert world.sandbox.github.count(MINT) == 1
    assert nothing_left(world, ctx)


def _administration(github: SandboxGitHub) -> None:
    github.permissions["administration"] = "write"


def _all_repositories(github: SandboxGitHub) -> None:
    github.repository_selection = "all"


def _suspended(github: SandboxGitHub) -> None:
    github.suspended = True


@requirement("H1.app-ceiling")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_administration, "holds administration"),
        (_all_repositories, "installed on all repositories"),
        (_suspended, "suspended"),
    ],
    ids=["administration", "all-repositories", "suspended"],
)
def test_an_app_that_is_installed_with_too_much_mints_nothing(
    world: World, ctx: HandoffContext, spoil: Callable[[SandboxGitHub], None], says: str
) -> None:
    spoil(world.sandbox.github)
    with pytest.raises(ProvisionFailed, match=says) as caught:
        provision(spec_of(world, "github"), ctx)
    assert isinstance(caught.value.__cause__, MintRefused)
    assert world.sandbox.github.count(MINT) == 0
    assert caught.value.residue == ()
    assert nothing_left(world, ctx)


@requirement("D4.all-or-nothing")
def test_after_a_refusal_the_mended_spec_provisions(world: World, ctx: HandoffContext) -> None:
    with pytest.raises(ProvisionFailed):
        provision(spec_of(world, "stripe"), ctx, supplied={"stripe": SecretStr("sk_test_51" + "a" * 90)})
    manifest = provision(spec_of(world, "stripe"), ctx, supplied={"stripe": world.stripe_key()})
    assert ctx.vault.read_secret(PATH, "PROVISION_MANIFEST") == manifest.to_secret()


@requirement("D2.leftover-identity")
def test_an_identity_of_the_same_name_that_is_there_already_is_never_taken_over(
    world: World, ctx: HandoffContext
) -> None:
    first = provision(vault_only(world), ctx)
    ctx.vault.delete_folder(PATH)
    with pytest.raises(ProvisionFailed, match="exists already") as caught:
        provision(vault_only(world), ctx)
    assert isinstance(caught.value.__cause__, MintRefused)
    (left,) = ctx.vault.find_identities(f"infisical-handoff-{first.handoff_id}")
    assert left.id == first.leases[0].handle
