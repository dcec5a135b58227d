"""Our own parts failing at any call: the audit, the vault, whoever watches the progress, the person at Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import (
    AuditUnavailable,
    HandoffError,
    ManifestError,
    ProvisionFailed,
    VaultUnreachable,
)
from agent_token_injector.manifest import ManifestState, state_of
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.sandbox.http_server import Reply
from agent_token_injector.spawn import spawn_handoff
from tests.flow.rig import (
    HANDOFF,
    ID,
    MINT,
    PATH,
    REVOKE_TOKEN,
    Failing,
    Recorder,
    actions,
    alive,
    at_step,
    names_of,
    nothing_left,
    rewired,
    spec_of,
    vault_only,
)
from tests.requirements import requirement
from tests.world import World, eventually


def no_audit() -> AuditUnavailable:
    return AuditUnavailable("the audit log cannot be written", cause="a test says so")


def no_vault() -> VaultUnreachable:
    return VaultUnreachable("the vault gives no answer", cause="a test says so")


def interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def elsewhere(world: World, number: int) -> Iterator[tuple[World, HandoffContext]]:
    """The same vendors with a state directory of its own, so that one test can go through many failures."""
    home = world.home / str(number)
    home.mkdir()
    other = World(home, world.sandbox, world.clock, world.spec)
    with other.open() as ctx:
        yield other, ctx


@requirement("H5.no-audit-no-action", "D4.all-or-nothing")
def test_an_audit_that_fails_at_any_event_stops_what_the_event_speaks_of_and_leaves_nothing(world: World) -> None:
    counting = Failing(no_audit, only=frozenset({"record"}))
    with elsewhere(world, 0) as (_, ctx):
        provision(spec_of(world, "github"), rewired(ctx, audit=counting.wrap(ctx.audit)))
        assert revoke(HANDOFF, ctx).ok
    assert len(counting.names) == 10
    minted = world.sandbox.github.count(MINT)
    for number in range(1, len(counting.names) + 1):
        failing = Failing(no_audit, at=number, onward=True, only=frozenset({"record"}))
        with elsewhere(world, number) as (here, ctx):
            with pytest.raises((AuditUnavailable, ProvisionFailed)) as caught:
                provision(spec_of(world, "github"), rewired(ctx, audit=failing.wrap(ctx.audit)))
            assert "the audit log cannot be written" in str(caught.value), number
            assert not isinstance(caught.value, ProvisionFailed) or caught.value.residue == (), number
            assert nothing_left(here, ctx), number
            # gate.checked, provision.started, and three events of the vault come before GitHub's mint.requested.
            expected = 0 if number <= 6 else 1
            assert world.sandbox.github.count(MINT) == minted + expected, number
        minted = world.sandbox.github.count(MINT)


@requirement("H5.no-audit-no-action")
def test_a_real_audit_directory_that_cannot_be_written_stops_provisioning(world: World) -> None:
    state = Path(world.environment["HANDOFF_STATE_DIR"])
    state.mkdir(mode=0o700)
    (state / "audit").write_text("a file where the directory should be")
    with world.open() as ctx:
        with pytest.raises(AuditUnavailable):
            provision(vault_only(world), ctx)
        assert nothing_left(world, ctx)


@requirement("D4.residue-exact", "D3.three-outcomes")
@pytest.mark.parametrize("onward", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("after", [False, True], ids=["refused", "done and not answered"])
def test_a_vault_that_fails_at_any_call_leaves_nothing_that_is_not_told_or_cleared(
    world: World, after: bool, onward: bool
) -> None:
    counting = Failing(no_vault)
    with elsewhere(world, 0) as (_, ctx):
        provision(vault_only(world), rewired(ctx, vault=counting.wrap(ctx.vault)))
        assert revoke(HANDOFF, ctx).ok
    assert len(counting.names) >= 13
    for number in range(1, len(counting.names) + 1):
        failing = Failing(no_vault, at=number, after=after, onward=onward)
        with elsewhere(world, number) as (here, ctx):
            note = f"call {number}, {counting.names[number - 1]}"
            try:
                _provision_with(failing, here, ctx)
            except BaseException as error:
                error.add_note(note)
                raise


def _provision_with(failing: Failing, world: World, ctx: HandoffContext) -> None:
    told: set[str] = set()
    try:
        provision(vault_only(world), rewired(ctx, vault=failing.wrap(ctx.vault)))
    except ProvisionFailed as error:
        told = names_of(error.residue)
    except VaultUnreachable:
        told = set()
    else:
        # That there is no folder yet is an answer too, and came before the failure.
        assert (failing.at, failing.after, failing.onward) == (1, True, False)
        return
    assert alive(world, ctx) <= told, "something is alive that was not told"
    assert "infisical" not in told or failing.onward or alive(world, ctx), "something dead was told as alive"
    if failing.onward and state_of(ctx.read_folder(ID) or {}) is ManifestState.PROVISIONED:
        # Committed, and then nobody could reach the vault to take it back: all of it is told.
        assert told == {"infisical"}
    else:
        launcher = Recorder()
        with pytest.raises(ManifestError):
            spawn_handoff(HANDOFF, launcher, ctx=ctx)
        assert launcher.launches == 0
    assert revoke(HANDOFF, ctx).ok
    assert nothing_left(world, ctx)


@requirement("D4.residue-exact")
def test_a_vault_that_is_gone_before_anything_was_asked_for_is_no_reason_to_fear_a_credential(
    world: World, ctx: HandoffContext
) -> None:
    counting = Failing(no_vault)
    with pytest.raises(HandoffError):
        # The first read after the intent: nothing has been asked for then.
        provision(vault_only(world), rewired(ctx, vault=counting.wrap(ctx.vault)), progress=at_step("minting", _stop))
    first_look = len(counting.names[: counting.names.index("read_folder", 1)]) + 1
    assert revoke(HANDOFF, ctx).ok
    failing = Failing(no_vault, at=first_look, onward=True)
    with pytest.raises(ProvisionFailed) as caught:
        provision(vault_only(world), rewired(ctx, vault=failing.wrap(ctx.vault)))
    assert "infisical" not in names_of(caught.value.residue)


def _stop() -> None:
    raise HandoffError("stop here")


@requirement("D4.ctrl-c")
@pytest.mark.parametrize(
    ("step", "surface"),
    [
        *[(step, surface) for surface in ("infisical", "github") for step in ("minting", "minted")],
        ("listing", "mcp"),
        ("listed", "mcp"),
        ("committed", ""),
    ],
)
def test_ctrl_c_at_any_step_undoes_everything(world: World, ctx: HandoffContext, step: str, surface: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        provision(spec_of(world, "github"), ctx, progress=at_step(step, interrupt, surface=surface))
    assert nothing_left(world, ctx)
    assert actions(ctx)[-1] == "provision.failed"


@requirement("D4.ctrl-c")
def test_whoever_watches_and_fails_at_every_step_cannot_keep_the_undo_from_happening(
    world: World, ctx: HandoffContext
) -> None:
    def broken(step: str, _surface: str, _detail: object) -> None:
        if step != "minting":
            raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError):
        provision(spec_of(world, "github"), ctx, progress=broken)
    assert nothing_left(world, ctx)


@requirement("D2.commit-point", "D4.residue-exact")
def test_a_handoff_that_was_undone_after_its_commit_cannot_start_though_something_of_it_is_left(
    world: World, ctx: HandoffContext
) -> None:
    world.sandbox.github.hook(REVOKE_TOKEN, before=lambda _: Reply(500, {"message": "Server Error"}))
    with pytest.raises(ProvisionFailed, match="interrupted") as caught:
        provision(spec_of(world, "github"), ctx, progress=at_step("committed", interrupt))
    assert names_of(caught.value.residue) == {"github"}
    assert ctx.vault.folder_exists(PATH)
    launcher = Recorder()
    with pytest.raises(ManifestError):
        spawn_handoff(HANDOFF, launcher, ctx=ctx)
    assert launcher.launches == 0


@requirement("D2.commit-point")
def test_until_the_manifest_is_there_nothing_starts(world: World, ctx: HandoffContext) -> None:
    launcher, refused = Recorder(), []

    def dispatch() -> None:
        with pytest.raises(ManifestError) as caught:
            spawn_handoff(HANDOFF, launcher, ctx=ctx)
        refused.append(caught.value)

    dispatching: Callable[[], None] = dispatch
    provision(spec_of(world, "github"), ctx, progress=at_step("minted", dispatching, surface="github"))
    assert (len(refused), launcher.launches) == (1, 0)
    assert eventually(lambda: len(world.live_minted()) == 1)
