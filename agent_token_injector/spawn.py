"""Dispatch: `spawn_handoff(handoff_id, launcher)` starts an agent with exactly its handoff, or does not start it (H4).

    verify the manifest -> start the MCP proxy -> build the session context -> launch -> watch -> stop -> receipt

The refusals come first and make no launch: no manifest, wrong state, bad signature, expired, secrets that differ, an
unreachable vault, an audit that cannot be written. While the agent runs, its handoff is watched: when it is revoked,
expires, or can no longer be asked about, the MCP proxy refuses at once and the agent is stopped.
"""

from __future__ import annotations

import inspect
import os
import secrets as random
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import HandoffError, SpawnRefused, VaultError
from agent_token_injector.launchers.base import StopReport
from agent_token_injector.manifest import PROVISION_MANIFEST, REVOCATION_MARK
from agent_token_injector.masking import Redactor
from agent_token_injector.names import HandoffId
from agent_token_injector.revocation import RevocationReceipt, revoke
from agent_token_injector.session_context import Admitted, McpEndpoint, SessionContext, admit, build_session_context

POLL: Final = timedelta(seconds=1)
"""How often a running handoff asks the vault whether it has been revoked."""
MAX_BLIND: Final = timedelta(seconds=60)
"""How long the vault may be unreachable before the handoff is ended: it could have been revoked all the while."""

Launcher = Callable[[SessionContext], Any]
"""One of ours, or any callable that takes a SessionContext and starts an agent with it."""


@dataclass(frozen=True, slots=True)
class SpawnReceipt:
    """How a run ended: why, what the launcher reported, and the revocation where one was asked for."""

    handoff_id: str
    reason: str
    """`exited`, `left` (the block was left), `expired`, `revoked`, `vault-unreachable`."""
    agent: StopReport | None
    """What our launcher reports of the process tree; None for a callable of the caller's own."""
    revocation: RevocationReceipt | None
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "handoff_id": self.handoff_id,
            "reason": self.reason,
            "agent": None if self.agent is None else self.agent.to_dict(),
            "revocation": None if self.revocation is None else self.revocation.to_dict(),
            "problems": list(self.problems),
        }


class _Watch:
    """Knows whether a handoff may go on, from a state that is never much older than `POLL`; fails closed."""

    def __init__(self, admitted: Admitted, ctx: HandoffContext, on_end: Callable[[str], None]) -> None:
        self._manifest, self._ctx, self._on_end = admitted.manifest, ctx, on_end
        self._stored = admitted.stored
        self._reason: str | None = None
        self._seen = ctx.clock.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{admitted.manifest.handoff_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> str | None:
        """None while the handoff may go on, else the reason why not. Asks no one: safe to call for every message."""
        if self._reason is None and self._ctx.clock.now() >= self._manifest.expires_at - LOCAL_EARLY:
            self._reason = "expired"
        if self._reason is None and self._ctx.clock.monotonic() - self._seen > MAX_BLIND.total_seconds():
            self._reason = "vault-unreachable"
        return self._reason

    def close(self) -> None:
        self._done.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._done.wait(POLL.total_seconds()):
            self._look()
            reason = self.check()
            if reason is not None:
                self._on_end(reason)
                return

    def _look(self) -> None:
        try:
            folder = self._ctx.read_folder(self._manifest.handoff)
        except VaultError:
            return  # How long we may go on without an answer is `check`'s to say.
        self._seen = self._ctx.clock.monotonic()
        if folder is None or REVOCATION_MARK in folder or folder.get(PROVISION_MANIFEST) != self._stored:
            self._reason = "revoked"


class Handoff:
    """A running handoff: `wait()` for the agent, `stop()` it; leaving the `with` block stops it and closes everything.

    `result` is what the launcher returned. `receipt` is there once it ended.
    """

    def __init__(self, admitted: Admitted, ctx: HandoffContext, *, revoke_on_exit: bool, owns_ctx: bool) -> None:
        self.id = admitted.manifest.handoff_id
        self.expires_at = admitted.manifest.expires_at
        self.result: Any = None
        self.receipt: SpawnReceipt | None = None
        self._admitted, self._ctx = admitted, ctx
        self._revoke_on_exit, self._owns_ctx = revoke_on_exit, owns_ctx
        self._handoff = admitted.manifest.handoff
        self._watch = _Watch(admitted, ctx, self._end)
        self._proxy: Any = None
        self._lock = threading.RLock()
        self._ended_by: str | None = None
        self._to_stop: Any = None
        self._report: StopReport | None = None
        self._problems: list[str] = []
        self._launched = False

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the agent is over, and return its exit code.

        For a callable's own result: calls its `wait()` where it has one, and returns at once where it has none. Raises
        TimeoutError after `timeout` seconds.
        """
        wait = getattr(self.result, "wait", None)
        if wait is None:
            return None
        return wait() if timeout is None else wait(timeout=timeout)

    def stop(self, reason: str = "left") -> SpawnReceipt:
        """End the agent with its whole process tree, close the MCP proxy, revoke where that was asked for. Idempotent."""
        self._watch.close()
        self._end(reason)
        with self._lock:
            if self.receipt is None:
                self.receipt = self._finish()
                if self._owns_ctx:
                    self._ctx.close()
            return self.receipt

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Handoff {self.id} {self._ended_by or 'running'}>"

    def _launch(self, launcher: Launcher) -> None:
        endpoint = self._start_proxy()
        tools = () if self._proxy is None else self._proxy.tools
        context = build_session_context(self._admitted, self._ctx, mcp=endpoint, tools=tools)
        # Once more, right before the point of no return: the vault may have changed, or gone, while servers started.
        if admit(self._handoff, self._ctx).stored != self._admitted.stored:
            raise SpawnRefused(
                f"{self.id} was replaced while it was being started", hint="nothing was launched; spawn it again"
            )
        self._ctx.audit.record(
            self._handoff,
            "spawn.started",
            decision=Decision.ALLOWED,
            detail={"env": sorted(context.env), "tools": list(tools)},
        )
        self._launched = True
        # Watched before it is launched: a callable may take its time, or run its agent to the end before it returns.
        self._watch.start()
        self.result = launcher(context)
        with self._lock:
            self._to_stop, ended = self.result, self._ended_by
        if ended is not None:
            self._stop_agent(ended)

    def _start_proxy(self) -> McpEndpoint | None:
        if not self._admitted.spec.mcp_tools:
            return None
        from agent_token_injector.mcp_proxy import McpProxy

        token = SecretStr(random.token_urlsafe(32))
        secrets = [*self._admitted.secrets.values(), token]
        self._ctx.audit.add_secrets(secrets)
        self._proxy = McpProxy(
            handoff=self._handoff,
            grants=self._admitted.spec.mcp_tools,
            excluded=self._admitted.spec.mcp_tools_excluded,
            servers=_servers(self._admitted, self._ctx),
            token=token,
            audit=self._ctx.audit,
            redactor=Redactor(secrets),
            check=self._watch.check,
            expires_at=self.expires_at,
            clock=self._ctx.clock,
        )
        self._proxy.start()
        return McpEndpoint(self._proxy.url, token)

    def _end(self, reason: str) -> None:
        """Refuse at the proxy first, then stop the agent, then close: in that order, and each whatever the other does."""
        with self._lock:
            if self._ended_by is not None:
                return
            self._ended_by = reason
        if self._proxy is not None:
            self._attempt("cutting off the MCP proxy", lambda: self._proxy.cut_off(reason))
        self._stop_agent(reason)
        if self._proxy is not None:
            self._attempt("closing the MCP proxy", self._proxy.close)

    def _stop_agent(self, reason: str) -> None:
        """Stop what the launcher returned, once: whoever comes first, the end of the run or the launcher's return."""
        with self._lock:
            result, self._to_stop = self._to_stop, None
        stop = getattr(result, "stop", None) or getattr(result, "terminate", None)
        if callable(stop):
            self._attempt("stopping the agent", lambda: self._take_report(stop, reason))
        elif self._launched and reason != "left":
            self._problems.append("the launcher returned nothing that can be stopped from here: stop its agent there")

    def _take_report(self, stop: Callable[..., Any], reason: str) -> None:
        report = stop(reason) if _takes(stop, reason) else stop()
        if isinstance(report, StopReport):
            self._report = report
            self._problems.extend(report.not_done)
            if report.reason != reason and reason == "left":
                self._ended_by = report.reason

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the rest must still be taken down
            self._problems.append(
                f"{what} failed: {error if isinstance(error, HandoffError) else type(error).__name__}"
            )

    def _finish(self) -> SpawnReceipt:
        reason = self._ended_by or "left"
        if self._launched:
            self._ctx.audit.record_or_spool(
                self._handoff,
                "spawn.ended",
                decision=Decision.DONE if not self._problems else Decision.FAILED,
                reason=reason,
                detail={}
                if self._report is None
                else {"ms": self._report.milliseconds, "survivors": self._report.survivors},
            )
        receipt = None
        if self._revoke_on_exit:
            receipt = revoke(self.id, self._ctx, reason=f"the run ended: {reason}")
        return SpawnReceipt(
            handoff_id=self.id,
            reason=reason,
            agent=self._report,
            revocation=receipt,
            problems=tuple(self._problems),
        )


def _takes(stop: Callable[..., Any], reason: str) -> bool:
    """Whether a launcher's own `stop` or `terminate` takes the reason, as ours does."""
    try:
        inspect.signature(stop).bind(reason)
    except (TypeError, ValueError):
        return False
    return True


def spawn_handoff(
    handoff_id: str, launcher: Launcher, *, ctx: HandoffContext | None = None, revoke_on_exit: bool = False
) -> Handoff:
    """Start an agent with exactly what its handoff was provisioned with, or refuse and start nothing.

        with spawn_handoff("founders-checkout-20260620", ProcessLauncher(["python3", "agent.py"])) as handoff:
            handoff.wait()

    `launcher` is one of ours or any callable that takes a SessionContext. Without `ctx` the operator's configuration is
    used (`HandoffContext.from_settings`). `revoke_on_exit` revokes the handoff when the block is left.

    Raises, before any launch: ManifestMissing, ManifestNotProvisioned, SignatureInvalid, ManifestExpired,
    SecretsMismatch, VaultUnreachable, AuditUnavailable, SpawnRefused; each refusal is audited. What the launcher itself
    raises is passed on after everything is taken down again.
    """
    try:
        handoff = HandoffId.parse(handoff_id)
    except ValueError as error:
        raise SpawnRefused("nothing was launched", cause=str(error), hint="`handoff list` shows the ids") from None
    owns = ctx is None
    ctx = ctx or HandoffContext.from_settings()
    running: Handoff | None = None
    try:
        ctx.audit.record(handoff, "spawn.requested", decision=Decision.ALLOWED)
        running = Handoff(admit(handoff, ctx), ctx, revoke_on_exit=revoke_on_exit, owns_ctx=owns)
        running._launch(launcher)  # noqa: SLF001 - the two halves of one thing
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


def _servers(admitted: Admitted, ctx: HandoffContext) -> Sequence[Any]:
    from agent_token_injector.mcp_proxy import StdioServer, vault_server

    found: list[Any] = []
    own = ctx.path_of(admitted.manifest.handoff)
    client_id = admitted.secrets["INFISICAL_CLIENT_ID"].get_secret_value()
    client_secret = admitted.secrets["INFISICAL_CLIENT_SECRET"]
    for name, server in admitted.spec.mcp_servers.items():
        if server.builtin == "vault":
            found.append(vault_server(name, lambda: ctx.vault.login(client_id, client_secret), own, ctx.clock))
            continue
        env: dict[str, str | SecretStr] = {inner: admitted.secrets[outer] for inner, outer in server.env.items()}
        found.append(
            StdioServer(
                name=name,
                argv=(resolve_command(server.command[0]), *server.command[1:]),
                env={**server.plain_env, **env},
                # No cwd: a server starts in an empty folder of its own. In one that an agent can write to, a file of the
                # right name would be loaded into a process that holds secrets.
            )
        )
    return found


def resolve_command(command: str) -> str:
    """The absolute path of an MCP server's command, by the operator's own PATH and beside this interpreter.

    Raises SpawnRefused when there is none.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    found = shutil.which(command, path=path)
    if found is None:
        raise SpawnRefused(
            f"the MCP server command {command!r} is not found",
            cause="it is neither on PATH nor beside this Python",
            hint="install it, or write its full path in the spec; nothing was launched",
        )
    return str(Path(found).absolute())


def describe_end(receipt: SpawnReceipt) -> str:
    """One line on how a run ended, for people."""
    agent = receipt.agent
    if agent is None:
        return f"{receipt.handoff_id} ended: {receipt.reason}"
    code = "" if agent.exit_code is None else f", exit code {agent.exit_code}"
    return f"{receipt.handoff_id} ended: {receipt.reason}{code}, {agent.survivors} survivors, {agent.milliseconds} ms"


__all__ = ["Handoff", "Launcher", "SpawnReceipt", "describe_end", "resolve_command", "spawn_handoff"]
