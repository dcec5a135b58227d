"""Every refusal of design D6: the launcher is never called, nothing is left running, and the refusal is audited."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import (
    AuditUnavailable,
    ExitCode,
    HandoffError,
    ManifestExpired,
    ManifestMissing,
    ManifestNotProvisioned,
    SecretsMismatch,
    SignatureInvalid,
    SpawnRefused,
    VaultUnreachable,
)
from agent_token_injector.manifest import ProvisionManifest, RevocationMark
from agent_token_injector.provisioning import provision
from agent_token_injector.signing import SigningKey
from agent_token_injector.spawn import spawn_handoff
from tests.flow.rig import (
    HANDOFF,
    ID,
    PATH,
    START,
    Failing,
    Passing,
    Recorder,
    events,
    provisioned,
    replace_secret,
    rewired,
    vault_only,
)
from tests.requirements import requirement
from tests.world import World

SERVER = Path(__file__).with_name("tool_server.py")


def refused(
    ctx: HandoffContext, error: type[HandoffError], says: str | None = None, *, handoff: str = HANDOFF
) -> HandoffError:
    """Dispatch, and see that it is refused with that error, without a launch, on record, and with nothing left."""
    launcher, before = Recorder(), set(threading.enumerate())
    with pytest.raises(error, match=says) as caught:
        spawn_handoff(handoff, launcher, ctx=ctx)
    assert type(caught.value) is error
    assert launcher.launches == 0
    assert {thread for thread in threading.enumerate() if not thread.daemon} <= before
    last = events(ctx, handoff)[-1]
    assert (last.action, last.decision, last.reason) == ("spawn.refused", Decision.REFUSED, error.code)
    return caught.value


@pytest.fixture
def manifest(world: World, ctx: HandoffContext) -> ProvisionManifest:
    return provisioned(world, ctx)


@requirement("H4.no-manifest-no-spawn")
def test_a_handoff_that_was_never_provisioned(ctx: HandoffContext) -> None:
    error = refused(ctx, ManifestMissing)
    assert "handoff provision" in str(error.hint)
    assert error.exit_code is ExitCode.MANIFEST


@requirement("H4.no-manifest-no-spawn", "D2.commit-point")
def test_a_handoff_whose_provisioning_has_not_finished(ctx: HandoffContext) -> None:
    ctx.vault.create_folder(PATH)
    refused(ctx, ManifestNotProvisioned, "has not finished, or was killed")
    ctx.vault.create_secret(PATH, "PROVISION_INTENT", SecretStr("{}"))
    refused(ctx, ManifestNotProvisioned, "has not finished, or was killed")


@requirement("H8.kill-switch", "D2.mark")
def test_a_handoff_that_is_being_revoked(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    mark = RevocationMark(handoff_id=HANDOFF, marked_at=START, by="someone", reason="a test")
    ctx.vault.create_secret(PATH, "REVOCATION_MARK", mark.to_secret())
    refused(ctx, ManifestNotProvisioned, "it has been revoked")


@requirement("D2.mark")
def test_a_mark_counts_whatever_it_says(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    ctx.vault.create_secret(PATH, "REVOCATION_MARK", SecretStr("not even JSON"))
    refused(ctx, ManifestNotProvisioned)


def _one_character(text: str) -> str:
    place = text.index('"card":"#3206"') + len('"card":"#')
    return text[:place] + "4" + text[place + 1 :]


@requirement("D6.signature")
@pytest.mark.parametrize(
    "change",
    [
        _one_character,
        lambda text: text.replace("2026-06-21T09:00:00Z", "2036-06-21T09:00:00Z"),
        lambda text: text.replace('"infisical_get_secret"', '"infisical_get_secre7"'),
        lambda text: text.replace('"signature":"', '"signature":"A'),
        lambda text: text[:-1] + ',"more":1}',
        lambda _: "{}",
        lambda _: "",
    ],
    ids=["one character", "expiry", "tool", "signature", "a field more", "empty", "nothing"],
)
def test_a_manifest_that_was_altered(
    ctx: HandoffContext, manifest: ProvisionManifest, change: Callable[[str], str]
) -> None:
    before = ctx.vault.read_secret(PATH, "PROVISION_MANIFEST")
    replace_secret(ctx, "PROVISION_MANIFEST", change)
    assert ctx.vault.read_secret(PATH, "PROVISION_MANIFEST") != before
    refused(ctx, SignatureInvalid)


@requirement("D6.bound")
def test_the_manifest_of_another_handoff(world: World, ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    other = provisioned(world, ctx, task_slug="queue-worker")
    replace_secret(ctx, "PROVISION_MANIFEST", lambda _: other.to_secret().get_secret_value())
    refused(ctx, SignatureInvalid, "is that of queue-worker-20260620")


@requirement("D6.bound")
def test_the_whole_path_of_another_handoff(world: World, ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    other = provisioned(world, ctx, task_slug="queue-worker")
    for name, value in ctx.vault.read_folder(ctx.path_of(other.handoff)).items():
        replace_secret(ctx, name, lambda _, value=value: value.get_secret_value())  # type: ignore[misc]
    refused(ctx, SignatureInvalid, "copied from another handoff")


@requirement("D6.signature")
def test_a_manifest_signed_with_a_key_that_this_host_does_not_trust(
    ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    stranger = SigningKey.generate()
    forged = manifest.model_copy(update={"key_id": stranger.key_id}).sign(stranger)
    replace_secret(ctx, "PROVISION_MANIFEST", lambda _: forged.to_secret().get_secret_value())
    refused(ctx, SignatureInvalid, "which this host does not trust")


@requirement("D6.signature")
def test_a_manifest_that_names_a_trusted_key_and_is_signed_with_another(
    ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    from agent_token_injector.manifest import MANIFEST_TYPE

    signature = SigningKey.generate().sign(MANIFEST_TYPE, manifest.signed_part())
    forged = manifest.model_copy(update={"signature": signature})
    replace_secret(ctx, "PROVISION_MANIFEST", lambda _: forged.to_secret().get_secret_value())
    refused(ctx, SignatureInvalid, "does not fit")


@requirement("H3.expiry")
@pytest.mark.parametrize("before_the_end", [timedelta(0), timedelta(seconds=29), timedelta(days=-30)])
def test_a_handoff_whose_time_is_over_by_a_clock_that_may_be_late(
    ctx: HandoffContext, clock: ManualClock, manifest: ProvisionManifest, before_the_end: timedelta
) -> None:
    clock.advance(manifest.expires_at - clock.now() - before_the_end)
    refused(ctx, ManifestExpired)


@requirement("H3.expiry")
def test_a_handoff_may_start_until_half_a_minute_before_its_end(
    ctx: HandoffContext, clock: ManualClock, manifest: ProvisionManifest
) -> None:
    clock.advance(manifest.expires_at - clock.now() - timedelta(seconds=31))
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx):
        assert launcher.launches == 1


@requirement("D6.secrets")
def test_a_secret_that_is_missing(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    ctx.vault.delete_secret(PATH, "INFISICAL_CLIENT_SECRET")
    error = refused(ctx, SecretsMismatch, "missing: INFISICAL_CLIENT_SECRET")
    assert error.names == ("INFISICAL_CLIENT_SECRET",)  # type: ignore[attr-defined]


@requirement("D6.secrets")
def test_a_secret_too_many(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    ctx.vault.create_secret(PATH, "STRIPE_RESTRICTED_KEY", SecretStr("rk_live_smuggled_in_by_someone"))
    error = refused(ctx, SecretsMismatch, "not in the manifest: STRIPE_RESTRICTED_KEY")
    assert "rk_live" not in error.diagnostics()


@requirement("D6.secrets")
def test_a_secret_that_is_not_the_one_that_was_signed_over(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    replace_secret(ctx, "INFISICAL_CLIENT_SECRET", lambda value: value[:-1] + ("a" if value[-1] != "a" else "b"))
    refused(ctx, SecretsMismatch, "different: INFISICAL_CLIENT_SECRET")


@requirement("D6.unreachable-vault")
def test_a_vault_that_gives_no_answer(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    failing = Failing(lambda: VaultUnreachable("no answer"), at=1, onward=True)
    error = refused(rewired(ctx, vault=failing.wrap(ctx.vault)), VaultUnreachable)
    assert error.exit_code is ExitCode.VAULT_UNREACHABLE


@requirement("H8.kill-switch", "H3.expiry")
@pytest.mark.parametrize("what", ["revoked", "expired"])
def test_a_handoff_that_ends_while_its_servers_start(
    ctx: HandoffContext, clock: ManualClock, manifest: ProvisionManifest, what: str
) -> None:
    def around(name: str, call: Callable[[], Any]) -> Any:
        if name == "add_secrets":  # Between the admission and the servers' start.
            if what == "expired":
                clock.advance(manifest.expires_at - clock.now())
            else:
                ctx.vault.create_secret(PATH, "REVOCATION_MARK", SecretStr("{}"))
        return call()

    launcher = Recorder()
    with pytest.raises(ManifestNotProvisioned if what == "revoked" else ManifestExpired):
        spawn_handoff(HANDOFF, launcher, ctx=rewired(ctx, audit=Passing(ctx.audit, around)))
    assert launcher.launches == 0
    assert events(ctx)[-1].action == "spawn.refused"


@requirement("D6.unreachable-vault")
def test_a_vault_that_is_gone_when_the_servers_have_started(ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    gone = Failing(lambda: VaultUnreachable("no answer"), at=2, onward=True, only=frozenset({"read_folder"}))
    launcher = Recorder()
    with pytest.raises(VaultUnreachable):
        spawn_handoff(HANDOFF, launcher, ctx=rewired(ctx, vault=gone.wrap(ctx.vault)))
    assert launcher.launches == 0


@requirement("H5.no-audit-no-action")
def test_an_audit_that_cannot_be_written_at_any_event_before_the_launch(
    ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    number, launcher = 0, Recorder()
    while launcher.launches == 0:
        number += 1
        failing = Failing(
            lambda: AuditUnavailable("the disk is gone"), at=number, onward=True, only=frozenset({"record"})
        )
        try:
            with spawn_handoff(HANDOFF, launcher, ctx=rewired(ctx, audit=failing.wrap(ctx.audit))):
                pass
        except AuditUnavailable:
            assert launcher.launches == 0
    assert number == 3, "spawn.requested and spawn.started come before the launch"


@requirement("H4.no-manifest-no-spawn")
def test_what_is_no_handoff_id(ctx: HandoffContext) -> None:
    launcher = Recorder()
    with pytest.raises(SpawnRefused, match="is not a handoff id"):
        spawn_handoff("founders-checkout", launcher, ctx=ctx)
    assert launcher.launches == 0


READ = {"name": "read_file", "inputSchema": {"type": "object"}}
WRITE = {"name": "write_file", "inputSchema": {"type": "object"}}


class Files:
    """Two servers whose tools are what files say, and whose command can be taken away."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "diary").mkdir()
        self.command = home / "tool-server"
        self.command.write_text(f"#!/bin/sh\nexec {sys.executable} {SERVER}\n")
        self.command.chmod(0o700)
        self.offer("one", READ)
        self.offer("two", WRITE)

    def offer(self, name: str, *definitions: dict[str, Any]) -> None:
        (self.home / name).write_text(json.dumps(definitions))

    def servers(self) -> dict[str, Any]:
        return {
            name: {
                "command": [str(self.command)],
                "plain_env": {"TOOLS_FILE": str(self.home / name), "DIARY": str(self.home / "diary")},
            }
            for name in ("one", "two")
        }


@requirement("mcp.allowlist")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda files: files.command.unlink(), "tool-server' is not found"),
        (lambda files: files.offer("one", WRITE), "read_file"),
        (lambda files: files.offer("two", READ, WRITE), "'read_file' is ambiguous"),
    ],
    ids=["the command is gone", "the tool is gone", "another server has the tool as well"],
)
def test_tools_that_can_no_longer_be_served_as_granted(
    world: World, ctx: HandoffContext, tmp_path: Path, change: Callable[[Files], None], says: str
) -> None:
    (home := tmp_path / "files").mkdir()
    files = Files(home)
    provision(vault_only(world, mcp_servers=files.servers(), mcp_tools=["read_file"]), ctx)
    change(files)
    refused(ctx, SpawnRefused, says)


@requirement("H4.no-manifest-no-spawn")
def test_a_refused_handoff_can_be_dispatched_once_the_reason_is_gone(
    ctx: HandoffContext, manifest: ProvisionManifest
) -> None:
    ctx.vault.create_secret(PATH, "STRANGER", SecretStr("a-secret-of-someone"))
    refused(ctx, SecretsMismatch)
    ctx.vault.delete_secret(PATH, "STRANGER")
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx):
        assert launcher.launches == 1
    assert ctx.audit.verify(ID).ok
