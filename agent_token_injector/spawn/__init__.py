"""Dispatch: `spawn_handoff(handoff_id, launcher)` starts an agent with exactly its handoff, or does not start it (H4).

    verify the manifest -> start the MCP proxy -> build the session context -> launch -> watch -> stop -> receipt

The refusals come first and make no launch: no manifest, wrong state, bad signature, expired, secrets that differ, an
unreachable vault, an audit that cannot be written. While the agent runs, its handoff is watched: when it is revoked,
expires, can no longer be asked about, or loses its MCP proxy, the proxy refuses at once and the agent is stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import HandoffError, SpawnRefused
from agent_token_injector.names import HandoffId
from agent_token_injector.session_context import admit
from agent_token_injector.spawn.receipt import SpawnReceipt, describe_end
from agent_token_injector.spawn.running import Handoff, Launcher, Served

_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/=-]{32,256}", re.ASCII)
"""RFC 6750's b64token, long enough not to be guessed."""


def spawn_handoff(
    handoff_id: str,
    launcher: Launcher,
    *,
    ctx: HandoffContext | None = None,
    revoke_on_exit: bool = False,
    worktree: Path | None = None,
) -> Handoff:
    """Start an agent with exactly what its handoff was provisioned with, or refuse and start nothing.

        with spawn_handoff("founders-checkout-20260620", ProcessLauncher(["python3", "agent.py"])) as handoff:
            handoff.wait()

    `launcher` is one of ours or any callable that takes a SessionContext. Without `ctx` the operator's configuration is
    used (`HandoffContext.from_settings`). `revoke_on_exit` revokes the handoff when the block is left. `worktree` is
    where the agent works, for grants that keep a tool's paths inside it; without one such a grant is refused.

    Raises, before any launch: ManifestMissing, ManifestNotProvisioned, SignatureInvalid, ManifestExpired,
    SecretsMismatch, VaultUnreachable, AuditUnavailable, SpawnRefused; each refusal is audited. What the launcher itself
    raises is passed on after everything is taken down again.
    """
    return _run(
        handoff_id,
        lambda running: running.launch(launcher),
        ctx,
        revoke_on_exit=revoke_on_exit,
        worktree=worktree,
    )


def serve_handoff(
    handoff_id: str,
    *,
    ctx: HandoffContext | None = None,
    worktree: Path | None = None,
    token: SecretStr | None = None,
) -> Handoff:
    """Serve a provisioned handoff's MCP proxy for an agent that somebody else starts on this machine, or refuse.

    Nothing but the tools is given out: no credential of the handoff leaves this process but to its own MCP servers.
    `handoff.result` is a Served, with the endpoint. It serves until the block is left, the handoff expires or is revoked.
    `token` is the bearer to use, at least 32 characters; without one it is made here.

    Raises what spawn_handoff raises, and SpawnRefused for a handoff without MCP tools.
    """
    if token is not None and not _BEARER.fullmatch(token.get_secret_value()):
        raise SpawnRefused(
            "the token for the MCP proxy cannot be used",
            cause="it needs 32 to 256 characters, each a letter, a digit or one of -._~+/=",
            hint="leave it out, and one is made",
        )
    return _run(
        handoff_id,
        Handoff.serve,
        ctx,
        worktree=worktree,
        token=token,
    )


def _run(handoff_id: str, begin: Callable[[Handoff], None], ctx: HandoffContext | None, **options: Any) -> Handoff:
    """Admit a handoff and begin its run; every refusal is audited, and leaves nothing."""
    try:
        handoff = HandoffId.parse(handoff_id)
    except ValueError as error:
        raise SpawnRefused("nothing was launched", cause=str(error), hint="`handoff list` shows the ids") from None
    owns = ctx is None
    ctx = ctx or HandoffContext.from_settings()
    running: Handoff | None = None
    try:
        ctx.audit.record(handoff, "spawn.requested", decision=Decision.ALLOWED)
        running = Handoff(admit(handoff, ctx), ctx, **{"revoke_on_exit": False, "owns_ctx": owns, **options})
        begin(running)
    except BaseException as error:
        _refuse(handoff, ctx, error)
        if running is not None:
            running.stop("refused")
        elif owns:
            ctx.close()
        raise
    return running


def _refuse(handoff: HandoffId, ctx: HandoffContext, error: BaseException) -> None:
    reason = error.code if isinstance(error, HandoffError) else type(error).__name__
    ctx.audit.record_or_spool(handoff, "spawn.refused", decision=Decision.REFUSED, reason=reason)


__all__ = ["Handoff", "Launcher", "Served", "SpawnReceipt", "describe_end", "serve_handoff", "spawn_handoff"]
