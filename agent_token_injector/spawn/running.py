"""A handoff that runs: its MCP proxy, its agent, and their end, in that order and each whatever the other does."""

from __future__ import annotations

import inspect
import secrets as random
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import HandoffError, SpawnRefused
from agent_token_injector.launchers.base import StopReport
from agent_token_injector.masking import Redactor
from agent_token_injector.revocation import revoke
from agent_token_injector.session_context import Admitted, McpEndpoint, SessionContext, admit, build_session_context
from agent_token_injector.spawn.receipt import SpawnReceipt
from agent_token_injector.spawn.watch import Watch

Launcher = Callable[[SessionContext], Any]
"""One of ours, or any callable that takes a SessionContext and starts an agent with it."""


class Handoff:
    """A running handoff: `wait()` for the agent, `stop()` it; leaving the `with` block stops it and closes everything.

    `result` is what the launcher returned. `receipt` is there once it ended.
    """

    def __init__(
        self,
        admitted: Admitted,
        ctx: HandoffContext,
        *,
        revoke_on_exit: bool,
        owns_ctx: bool,
        worktree: Path | None = None,
        token: SecretStr | None = None,
    ) -> None:
        self.id = admitted.manifest.handoff_id
        self.expires_at = admitted.manifest.expires_at
        self.result: Any = None
        self.receipt: SpawnReceipt | None = None
        self._admitted, self._ctx = admitted, ctx
        self._revoke_on_exit, self._owns_ctx = revoke_on_exit, owns_ctx
        self._handoff = admitted.manifest.handoff
        self._worktree = worktree
        self._token = token or SecretStr(random.token_urlsafe(32))
        self._proxy: Any = None
        self._watch = Watch(admitted, ctx, self._end, lambda: self._proxy is not None and bool(self._proxy.failed))
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

    def launch(self, launcher: Launcher) -> None:
        """Start the agent with its tools. What it raises leaves the rest to `stop`."""
        endpoint = self._start_proxy()
        tools = () if self._proxy is None else self._proxy.tools
        context = build_session_context(self._admitted, self._ctx, mcp=endpoint, tools=tools)
        self._begin(env=sorted(context.env), tools=list(tools))
        # Watched before it is launched: a callable may take its time, or run its agent to the end before it returns.
        self._watch.start()
        self.result = launcher(context)
        with self._lock:
            self._to_stop, ended = self.result, self._ended_by
        if ended is not None:
            self._stop_agent(ended)

    def serve(self) -> None:
        """Start the MCP proxy alone: the agent is somebody else's to start."""
        endpoint = self._start_proxy()
        if endpoint is None:
            raise SpawnRefused(f"{self.id} has no MCP tools to serve", hint="its spec names none in mcp_tools")
        self._begin(serving="mcp", tools=list(self._proxy.tools))
        self.result = Served(endpoint, self._proxy.tools)
        self._to_stop = self.result
        self._watch.start()

    def _begin(self, **detail: Any) -> None:
        # Once more, right before the point of no return: the vault may have changed, or gone, while servers started.
        if admit(self._handoff, self._ctx).stored != self._admitted.stored:
            raise SpawnRefused(
                f"{self.id} was replaced while it was being started", hint="nothing was launched; spawn it again"
            )
        self._ctx.audit.record(self._handoff, "spawn.started", decision=Decision.ALLOWED, detail=detail)
        self._launched = True

    def _start_proxy(self) -> McpEndpoint | None:
        spec = self._admitted.spec
        if not spec.mcp_tools:
            return None
        from agent_token_injector.mcp_proxy.proxy import McpProxy
        from agent_token_injector.mcp_proxy.servers import allow_of, places_of, servers_of

        secrets = [*self._admitted.secrets.values(), self._token]
        self._ctx.audit.add_secrets(secrets)
        self._proxy = McpProxy(
            handoff=self._handoff,
            grants=spec.mcp_tools,
            excluded=spec.mcp_tools_excluded,
            servers=servers_of(spec, self._admitted.secrets, self._ctx, self._handoff),
            token=self._token,
            audit=self._ctx.audit,
            redactor=Redactor(secrets),
            check=self._watch.check,
            # As `check` has it: by the engine's own clock, which does not wait to be told.
            expires_at=self.expires_at - LOCAL_EARLY,
            clock=self._ctx.clock,
            allow=allow_of(spec),
            pins=self._admitted.manifest.tools,
            places=places_of(spec, self._worktree, protected=self._ctx.policy.protected_branches),
        )
        self._proxy.start()
        return McpEndpoint(self._proxy.url, self._token, self._proxy.socket_path)

    def _end(self, reason: str) -> None:
        """Refuse at the proxy first, then stop the agent, then close: in that order, and each whatever the other does."""
        with self._lock:
            if self._ended_by is not None:
                return
            self._ended_by = reason
        if self._proxy is not None:
            self._attempt("cutting off the MCP proxy", lambda: self._proxy.cut_off(reason))
            if (failed := self._proxy.failed) is not None:
                self._problems.append(f"the MCP proxy failed: {failed}")
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


class Served:
    """A handoff's MCP proxy without an agent of ours: where it is, and its end. What `serve_handoff` gives as `result`.

    `endpoint` has the address, the socket and the token; `tools` is the allowlist as it was matched with the servers.
    """

    def __init__(self, endpoint: McpEndpoint, tools: tuple[str, ...]) -> None:
        self.endpoint = endpoint
        self.tools = tools
        self._over = threading.Event()

    def wait(self, timeout: float | None = None) -> int:
        """Return 0 when it serves no more. Raises TimeoutError after `timeout` seconds."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"the MCP proxy still serves after {timeout:g} s")
        return 0

    def stop(self) -> None:
        """Let whoever waits go on; the handoff closes the proxy itself."""
        self._over.set()


def _takes(stop: Callable[..., Any], reason: str) -> bool:
    """Whether a launcher's own `stop` or `terminate` takes the reason, as ours does."""
    try:
        inspect.signature(stop).bind(reason)
    except (TypeError, ValueError):
        return False
    return True
