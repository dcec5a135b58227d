"""Handoffs of one id follow one another on a day: nobody who slept through the end of one may touch the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import HandoffError, ProvisionFailed
from agent_token_injector.lease import LeaseState
from agent_token_injector.manifest import Holder, ProvisionIntent
from agent_token_injector.names import PROVISION_INTENT
from agent_token_injector.processes import ProcessId
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.sandbox.http_server import method
from agent_token_injector.session_context import admit
from agent_token_injector.spawn import spawn_handoff
from tests.flow.rig import (
    HANDOFF,
    ID,
    PATH,
    Passing,
    Recorder,
    agent,
    alive,
    at_step,
    nothing_left,
    provisioned,
    replace_secret,
    rewired,
    spec_of,
)
from tests.requirements import requirement
from tests.world import World, eventually

FOREVER = "import signal\nwhile True: signal.pause()\n"


class Sleeper:
    """Runs something in a thread and puts it to sleep right before a vault call of one name."""

    def __init__(self, world: World, call: str, act: Callable[[HandoffContext], Any]) -> None:
        self.asleep, self._wake, self.result = threading.Event(), threading.Event(), None
        self._world, self._call, self._act = world, call, act
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.asleep.wait(30)

    def _run(self) -> None:
        with self._world.open() as ctx:
            try:
                self.result = self._act(rewired(ctx, vault=Passing(ctx.vault, self._around)))
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.result = error

    def _around(self, name: str, call: Callable[[], Any]) -> Any:
        if name == self._call and not self.asleep.is_set():
            self.asleep.set()
            assert self._wake.wait(60)
        return call()

    def wake(self) -> Any:
        self._wake.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.result


def lives(ctx: HandoffContext) -> bool:
    """Whether the handoff that is there now is whole: it may be dispatched, and its vault identity can log in."""
    admitted = admit(ID, ctx)
    secret = admitted.secrets["INFISICAL_CLIENT_SECRET"]
    ctx.vault.login(admitted.secrets["INFISICAL_CLIENT_ID"].get_secret_value(), secret)
    return True


@requirement("D2.successor", "D4.at-once")
def test_a_provisioner_that_wakes_after_it_was_revoked_leaves_its_successor_alone(
    world: World, ctx: HandoffContext
) -> None:
    held = world.sandbox.stripe.hold(method("GET", "/v1/balance"), at="before")
    result: list[Any] = []

    def first() -> None:
        with world.open() as own:
            try:
                provision(spec_of(world, "github", "stripe"), own, supplied={"stripe": world.stripe_key()})
            except HandoffError as error:
                result.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    held.wait_reached()
    assert revoke(HANDOFF, ctx).ok
    provisioned(world, ctx, "github")
    held.release()
    thread.join(60)
    assert isinstance(result[0], ProvisionFailed)
    assert result[0].residue == ()
    assert lives(ctx)
    assert alive(world, ctx) == {"github", "infisical"}
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("D2.successor", "D10.at-once")
@pytest.mark.parametrize("asleep_before", ["find_identities", "create_secret", "delete_folder"])
def test_a_revocation_that_wakes_after_another_has_finished_leaves_the_successor_alone(
    world: World, ctx: HandoffContext, asleep_before: str
) -> None:
    provisioned(world, ctx, "github")
    if asleep_before == "create_secret":
        # Asleep before it marks, it has done nothing yet: what it finds when it wakes is what it was asked to end.
        sleeper = Sleeper(world, asleep_before, lambda own: revoke(HANDOFF, own))
        assert revoke(HANDOFF, ctx).ok
        provisioned(world, ctx, "github")
        assert sleeper.wake().ok
        assert nothing_left(world, ctx)
        return
    sleeper = Sleeper(world, asleep_before, lambda own: revoke(HANDOFF, own))
    assert revoke(HANDOFF, ctx).ok
    provisioned(world, ctx, "github")
    assert sleeper.wake().ok
    assert lives(ctx)
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("D2.successor", "D2.debris")
def test_of_two_that_clear_the_same_debris_neither_ends_what_the_other_began(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    ctx.vault.delete_secret(PATH, "PROVISION_MANIFEST")
    dead = Holder(boot=ProcessId.current().boot, pid=2**22 + 1, started=1)
    replace_secret(ctx, PROVISION_INTENT, lambda text: _held_by(text, dead))
    second = Sleeper(world, "create_secret", lambda own: provision(spec_of(world), own))
    first = provision(spec_of(world), ctx)
    assert second.wake() == first
    assert lives(ctx)


def _held_by(text: str, holder: Holder) -> str:
    return (
        ProvisionIntent.model_validate_json(text).model_copy(update={"holder": holder}).to_secret().get_secret_value()
    )


@requirement("spawn.watched", "D2.successor")
def test_an_agent_ends_when_its_handoff_was_replaced_between_two_looks(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    with spawn_handoff(HANDOFF, agent(world, FOREVER), ctx=ctx) as running:
        with world.open() as other:
            assert revoke(HANDOFF, other).ok
            provisioned(world, other)
        assert eventually(lambda: running.result.poll() is not None)
        assert running.stop().reason == "revoked"
    assert lives(ctx)


@requirement("H8.operator-supplied", "D4.residue-exact")
def test_a_key_that_an_agent_was_given_before_the_undo_is_residue(world: World, ctx: HandoffContext) -> None:
    launcher = Recorder()

    def dispatch_and_interrupt() -> None:
        with world.open() as other:
            spawn_handoff(HANDOFF, launcher, ctx=other).stop()
        raise KeyboardInterrupt

    with pytest.raises(ProvisionFailed) as caught:
        provision(
            spec_of(world, "stripe"),
            ctx,
            supplied={"stripe": world.stripe_key()},
            progress=at_step("committed", dispatch_and_interrupt),
        )
    assert "STRIPE_KEY" in launcher.given[0].env
    assert [item.surface for item in caught.value.residue] == ["stripe"]
    world.delete_stripe_keys()
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("H8.operator-supplied")
def test_a_key_that_no_agent_was_given_is_told_as_such_and_not_as_dead(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx, "stripe")
    ctx.vault.delete_secret(PATH, "PROVISION_MANIFEST")
    receipt = revoke(HANDOFF, ctx)
    assert receipt.ok
    states = {outcome.surface: outcome.state for outcome in receipt.outcomes}
    assert states["stripe"] is LeaseState.NEVER_HANDED_OVER


class Stubborn:
    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


@requirement("spawn.callable")
def test_a_callers_own_stop_that_takes_no_reason_is_called_all_the_same(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    own = Stubborn()
    with spawn_handoff(HANDOFF, Recorder(result=own), ctx=ctx) as running:
        pass
    assert own.stopped
    assert running.stop().problems == ()


@requirement("spawn.callable", "spawn.receipt")
def test_what_cannot_be_stopped_from_here_is_said(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    with spawn_handoff(HANDOFF, Recorder(), ctx=ctx) as running:
        with world.open() as other:
            assert revoke(HANDOFF, other).ok
        assert eventually(lambda: "revoked" in repr(running))
        receipt = running.stop()
    assert receipt.reason == "revoked"
    assert any("stop its agent there" in problem for problem in receipt.problems)
