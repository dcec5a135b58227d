"""A vendor that fails at any request: what was minted is undone, and what is left is told exactly."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ExitCode, MintAmbiguous, MintRefused, ProvisionFailed
from agent_token_injector.lease import LeaseState
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.sandbox.http_server import DROP, TRUNCATE, Reply, Request, method
from tests.flow.rig import HANDOFF, MINT, REVOKE_TOKEN, START, alive, names_of, nothing_left, spec_of
from tests.requirements import requirement
from tests.world import World

BROKEN = Reply(500, {"message": "Server Error"})
SPOILT: dict[str, Any] = {"500": BROKEN, "dropped": DROP, "cut short": TRUNCATE}


def path_of(path: str) -> Callable[[Request], bool]:
    return lambda request: request.path == path and request.method == "GET"


@requirement("D4.all-or-nothing", "D4.residue-exact")
def test_github_failing_at_any_question_leaves_nothing(world: World, ctx: HandoffContext) -> None:
    spec = spec_of(world, "github")
    provision(spec, ctx)
    asked = {entry.path for entry in world.sandbox.github.log if entry.method == "GET" and entry.status == 200}
    assert revoke(HANDOFF, ctx).ok
    assert len(asked) >= 5, "the questions are no longer seen"
    for path in sorted(asked):
        hook = world.sandbox.github.hook(path_of(path), after=lambda _request, _reply: BROKEN)
        if path == "/installation/repositories":
            # The same question proves a token dead: there GitHub must answer truly once the token is revoked.
            hook.remove()
            world.sandbox.github.hook(path_of(path), after=lambda _request, _reply: BROKEN, times=1)
        try:
            with pytest.raises(ProvisionFailed) as caught:
                provision(spec, ctx)
            assert (caught.value.surface, caught.value.residue) == ("github", ())
            assert nothing_left(world, ctx)
        except BaseException as error:
            error.add_note(f"GET {path}")
            raise
        hook.remove()
    assert provision(spec, ctx).handoff_id == HANDOFF


@requirement("D3.idempotent-only")
def test_a_question_whose_answer_was_lost_once_is_asked_again(world: World, ctx: HandoffContext) -> None:
    world.sandbox.github.hook(method("GET"), before=lambda _: DROP, times=1)
    assert provision(spec_of(world, "github"), ctx).handoff_id == HANDOFF
    assert world.sandbox.github.count(MINT) == 1


@requirement("D3.never-retried", "D4.residue-exact")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", list(SPOILT))
def test_a_mint_whose_end_is_not_known_is_never_asked_for_again_and_is_told_as_residue(
    world: World, ctx: HandoffContext, when: str, fault: str
) -> None:
    spoilt = SPOILT[fault]
    if when == "before":
        world.sandbox.github.hook(MINT, before=lambda _: BROKEN if spoilt is TRUNCATE else spoilt)
    else:
        world.sandbox.github.hook(MINT, after=lambda _request, _reply: spoilt)
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec_of(world, "github"), ctx)
    assert isinstance(caught.value.__cause__, MintAmbiguous)
    assert world.sandbox.github.count(MINT) == 1
    assert caught.value.exit_code is ExitCode.RESIDUE
    (left,) = caught.value.residue
    assert left.surface == "github"  # type: ignore[attr-defined]
    assert left.live_until >= START + timedelta(hours=1)  # type: ignore[attr-defined]
    assert alive(world, ctx) == ({"github"} if when == "after" else set())


@requirement("D3.never-retried", "D10.expiry-counts")
def test_what_may_have_been_minted_is_residue_until_it_must_have_died(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    world.sandbox.github.hook(MINT, after=lambda _request, _reply: DROP)
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec_of(world, "github"), ctx)
    (left,) = caught.value.residue
    early = revoke(HANDOFF, ctx)
    assert names_of(early.residue) == {"github"}
    assert not early.path_deleted
    clock.advance(left.live_until - clock.now() + timedelta(minutes=2))  # type: ignore[attr-defined]
    late = revoke(HANDOFF, ctx)
    assert late.ok
    assert late.path_deleted
    assert nothing_left(world, ctx)


@requirement("D3.three-outcomes")
@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_mint_that_github_refuses_left_nothing(world: World, ctx: HandoffContext, status: int) -> None:
    world.sandbox.github.hook(MINT, before=lambda _: Reply(status, {"message": "no"}))
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec_of(world, "github"), ctx)
    assert isinstance(caught.value.__cause__, MintRefused)
    assert (world.sandbox.github.count(MINT), caught.value.residue) == (1, ())
    assert nothing_left(world, ctx)


@requirement("D4.residue-exact")
def test_what_cannot_be_revoked_is_named_and_a_later_revoke_ends_it(world: World, ctx: HandoffContext) -> None:
    world.sandbox.github.over_grant = {"issues": "write"}
    hook = world.sandbox.github.hook(REVOKE_TOKEN, before=lambda _: BROKEN)
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec_of(world, "github"), ctx)
    (left,) = caught.value.residue
    assert (left.surface, left.state) == ("github", LeaseState.IRREVOCABLE)  # type: ignore[attr-defined]
    assert left.live_until == START + timedelta(hours=1)  # type: ignore[attr-defined]
    assert f"handoff revoke {HANDOFF}" in str(caught.value.hint)
    assert alive(world, ctx) == {"github"}
    hook.remove()
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("D4.provision-twice")
def test_the_next_provisioning_in_the_same_process_first_clears_what_the_failed_one_left(
    world: World, ctx: HandoffContext
) -> None:
    world.sandbox.github.over_grant = {"issues": "write"}
    hook = world.sandbox.github.hook(REVOKE_TOKEN, before=lambda _: BROKEN)
    for _ in range(2):
        with pytest.raises(ProvisionFailed) as caught:
            provision(spec_of(world, "github"), ctx)
        assert names_of(caught.value.residue) == {"github"}
    assert world.sandbox.github.count(MINT) == 1, "nothing new is minted beside what is left"
    hook.remove()
    world.sandbox.github.over_grant = {}
    provision(spec_of(world, "github"), ctx)
    assert len(world.live_minted()) == 1


@requirement("D4.all-or-nothing", "D4.residue-exact")
@pytest.mark.parametrize("path", ["/v1/balance", "/v1/customers", "/v1/refunds"])
@pytest.mark.parametrize("spoilt", [BROKEN, Reply(401, {"error": {"message": "no"}}), DROP], ids=["500", "401", "drop"])
def test_stripe_failing_at_a_probe_undoes_everything(world: World, ctx: HandoffContext, path: str, spoilt: Any) -> None:
    world.sandbox.stripe.hook(lambda request: request.path == path, before=lambda _: spoilt)
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec_of(world, "stripe"), ctx, supplied={"stripe": world.stripe_key()})
    assert (caught.value.surface, caught.value.residue) == ("stripe", ())
    assert nothing_left(world, ctx)


@requirement("D4.all-or-nothing")
def test_a_vendor_that_is_not_there_at_all_leaves_nothing(world: World, ctx: HandoffContext) -> None:
    world.sandbox.github.close()
    with pytest.raises(ProvisionFailed) as caught:
        provision(spec_of(world, "github"), ctx)
    assert (caught.value.surface, caught.value.residue) == ("github", ())
    assert nothing_left(world, ctx)
