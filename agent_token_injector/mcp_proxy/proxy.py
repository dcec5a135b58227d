"""The proxy as spawn.py holds it: start, where to find it, cut off, close.

What agents and servers say is read in the engine, a process of its own (control.py). Here is what that process must not
decide for itself: whether the handoff may go on, what the vault gives out, and when all of it ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from pydantic import SecretStr

from agent_token_injector.clock import SystemClock
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy.answers import Answers
from agent_token_injector.mcp_proxy.control import ACK_SECONDS, ENGINE, Engine, EngineFailed
from agent_token_injector.mcp_proxy.grants import Places
from agent_token_injector.mcp_proxy.known_secrets import KnownSecrets
from agent_token_injector.mcp_proxy.pins import ToolPin
from agent_token_injector.mcp_proxy.tracing import target_from

if TYPE_CHECKING:
    from agent_token_injector.audit import AuditLog
    from agent_token_injector.clock import Clock
    from agent_token_injector.mcp_proxy.servers import Server
    from agent_token_injector.names import HandoffId
    from agent_token_injector.spec import ToolGrant

PATH: Final = "/mcp"
START_SECONDS: Final = 30.0
MARGIN_SECONDS: Final = 10.0
"""What the engine may take beyond its servers: to start, to stop them again, to tell."""
SOCKET_NAME: Final = "mcp.sock"
MAX_SOCKET_PATH: Final = 107
"""What a Unix socket's address can hold (sockaddr_un)."""


class Pin(Protocol):
    """A tool as it was when the handoff was provisioned: a ToolPin, or the manifest's own record of one."""

    def to_plain(self) -> dict[str, Any]: ...


class McpProxy:
    """One handoff's MCP endpoint on this machine, in front of its servers.

    Args:
        handoff: whose it is; every audit event names it.
        grants: the spec's `mcp_tools`. None means that nothing is allowed.
        excluded: the spec's `mcp_tools_excluded`; it wins over every grant.
        servers: what stands behind it; their names are those that grants refer to.
        token: the bearer token, made for this handoff alone.
        audit: where the events go, one per access, before it happens.
        redactor: knows every secret of the handoff; results are masked by it, and by each value that the built-in vault
            server has handed out since.
        check: None while the handoff may go on, else a reason code. Called twice a second; it asks nobody and does not
            block. When it raises, nothing is allowed.
        expires_at: aware, UTC; nothing is allowed from then on.
        clock: tells that time.
        start_seconds: how long the servers may take to start and list their tools.
        allow: what each server may beyond its tools, by its name, as grants.ServerAllow reads it. Nothing by default.
        pins: the granted tools as they were when the handoff was provisioned; one that differs is withdrawn. None
            compares nothing.
        places: what the grants' argument formats refer to.
        socket: whether to serve `handoff-mcp` too, on a Unix socket.
        environ: where the operator has set where spans go (tracing.target_from).
        engine: the command of the engine.
    """

    def __init__(
        self,
        *,
        handoff: HandoffId,
        grants: Sequence[ToolGrant],
        excluded: Sequence[str],
        servers: Sequence[Server],
        token: SecretStr,
        audit: AuditLog,
        redactor: Redactor,
        check: Callable[[], str | None],
        expires_at: datetime,
        clock: Clock,
        start_seconds: float = START_SECONDS,
        allow: Mapping[str, Mapping[str, Any]] | None = None,
        pins: Sequence[Pin] | None = None,
        places: Places | None = None,
        socket: bool = True,
        environ: Mapping[str, str] = os.environ,
        engine: Sequence[str] = ENGINE,
    ) -> None:
        _check_names(servers)
        if not token.get_secret_value():
            raise SpawnRefused("the MCP proxy has no bearer token")
        self._handoff = handoff
        self._token = token
        self._check = check
        self._clock = clock
        self._start_seconds = start_seconds
        self._socket = socket
        self._secrets = KnownSecrets(redactor, audit)
        self._answers = Answers(servers, secrets=self._secrets, audit=audit, handoff=handoff, clock=clock)
        self._command = engine
        self._configuration: Callable[[], dict[str, Any]] = lambda: {
            **_common(
                handoff=handoff,
                grants=grants,
                excluded=excluded,
                servers=servers,
                places=places,
                start_seconds=start_seconds,
            ),
            "expires_at": expires_at.isoformat(),
            "now": clock.now().isoformat(),
            "token": token.get_secret_value(),
            "secrets": list(redactor.secrets()),
            "audit": {
                "directory": str(audit.directory.absolute()),
                "actor": audit.actor,
                "deadline": audit.deadline,
                "durability": audit.durability,
            },
            "allow": {name: dict(one) for name, one in (allow or {}).items()},
            "pins": None if pins is None else [pin.to_plain() for pin in pins],
            "tracing": target_from(environ),
        }
        self._closing = threading.Lock()
        self._closed = False
        self._cut: str | None = None
        self._engine: Engine | None = None
        self._folder: Path | None = None
        self._socket_path: Path | None = None
        self._url = ""
        self._tools: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT/mcp`, once started."""
        return self._url

    @property
    def socket_path(self) -> Path | None:
        """Where `handoff-mcp` connects, once started; None without one."""
        return self._socket_path

    @property
    def tools(self) -> tuple[str, ...]:
        """The allowlist as it was matched with what the servers offer, once started."""
        return self._tools

    @property
    def pid(self) -> int | None:
        """The engine's process while it runs."""
        return None if self._engine is None else self._engine.pid

    @property
    def failed(self) -> str | None:
        """Why the proxy serves no more though nobody closed it, masked; None while it serves, and after `close`."""
        failed = None if self._engine is None else self._engine.failed
        return None if failed is None else self._secrets.redact(failed)

    def start(self) -> None:
        """Start the servers, match the allowlist with their tools, and serve.

        Raises SpawnRefused when a server does not start or a grant cannot be honoured; then nothing is left running.
        """
        with self._closing:
            if self._closed:
                raise SpawnRefused("the MCP proxy was closed before it was started", hint="make a new one")
            if self._engine is not None:
                raise SpawnRefused("the MCP proxy was started before", hint="make a new one")
            self._folder = _make_folder()
            path = self._folder / SOCKET_NAME if self._socket else None
            self._engine = Engine(beat=self._beat, asked=self._asked, scratch=self._folder, command=self._command)
        try:
            listen = {"http": True, "socket": None if path is None else str(path)}
            first = _begin(
                self._engine,
                {**self._configuration(), "listen": listen},
                self._start_seconds,
                redact=self._secrets.redact,
            )
            ready = first["ready"]
            self._url = f"http://127.0.0.1:{int(ready['port'])}{PATH}"
            self._tools = tuple(str(name) for name in ready["tools"])
            self._socket_path = path
        except (EngineFailed, KeyError, TypeError, ValueError) as error:
            closed = self._closed
            self.close()
            if closed:
                raise SpawnRefused("the MCP proxy was closed while it started") from None
            raise SpawnRefused(
                "the MCP proxy did not start",
                cause=self._secrets.redact(str(error)),
                hint="nothing was launched; try again",
            ) from None
        except BaseException:
            self.close()
            raise

    def recheck(self) -> bool:
        """Ask `check` now, and return once the proxy acts by its answer; False when it did not confirm within 2 s."""
        return self._engine is not None and self._engine.recheck(ACK_SECONDS)

    def cut_off(self, reason: str) -> None:
        """End the calls in flight with an error and refuse all that follow, for good. Returns within 1 s or so.

        An engine that does not confirm in time is killed. Safe from any thread; the first reason stays.
        """
        self._cut = self._cut or reason
        if self._engine is not None:
            self._engine.cut(self._cut)

    def close(self) -> None:
        """Cut calls in flight, end every server with all that it started, and leave nothing. Safe to call twice."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()
        with self._closing:
            self._answers.close()
            if self._folder is not None:
                # A killed engine could not remove what it kept there.
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _beat(self) -> dict[str, Any]:
        try:
            reason = self._cut or self._check()
        except Exception:  # noqa: BLE001 - whatever keeps the question from being answered, the answer is no
            reason = "unchecked"
        return {"reason": reason, "now": self._clock.now().isoformat()}

    def _asked(self, question: Mapping[str, Any]) -> None:
        if self._engine is not None:
            self._answers.take(question, self._engine.say)


def list_tools(
    *,
    handoff: HandoffId,
    grants: Sequence[ToolGrant],
    excluded: Sequence[str],
    servers: Sequence[Server],
    secrets: Sequence[SecretStr],
    places: Places | None = None,
    start_seconds: float = START_SECONDS,
    engine: Sequence[str] = ENGINE,
) -> list[ToolPin]:
    """Start the servers, match the allowlist with their tools, and stop them: each granted tool as its server defines it.

    The servers start as they will for the agent, with the same environment. No tool is called, and nothing is served.

    Args:
        handoff: whose servers they are.
        grants: as McpProxy takes them.
        excluded: as McpProxy takes it.
        servers: as McpProxy takes them.
        secrets: the handoff's; no error of ours repeats one.
        places: as McpProxy takes them; a worktree that is not known yet is stood in for, since no argument is judged.
        start_seconds: how long the servers may take to start and list their tools.
        engine: the command of the engine.

    Raises SpawnRefused when a server does not start or a grant cannot be honoured. Nothing is left running either way.
    """
    _check_names(servers)
    clock = SystemClock()
    known = KnownSecrets(Redactor(secrets), None)
    given = places or Places()
    stood_in = given if given.worktree is not None else Places(**{**_fields(given), "worktree": "/"})
    now = clock.now()
    answers = Answers(servers, secrets=known, audit=None, handoff=handoff, clock=clock)
    folder = _make_folder()
    running = Engine(
        beat=lambda: {"reason": None, "now": clock.now().isoformat()},
        asked=lambda question: answers.take(question, running.say),
        scratch=folder,
        command=engine,
    )
    try:
        configuration = {
            **_common(
                handoff=handoff,
                grants=grants,
                excluded=excluded,
                servers=servers,
                places=stood_in,
                start_seconds=start_seconds,
            ),
            "listing": True,
            "expires_at": (now + timedelta(seconds=start_seconds) + timedelta(minutes=1)).isoformat(),
            "now": now.isoformat(),
            "token": "",
            "secrets": [secret.get_secret_value() for secret in secrets],
            # Nothing is done that would have to be on record; what does not fit into this is lost with the folder.
            "audit": {"directory": str(folder / "audit"), "actor": "handoff", "deadline": 2.0, "durability": "group"},
            "allow": {},
            "pins": None,
            "listen": {"http": False, "socket": None},
        }
        first = _begin(running, configuration, start_seconds, redact=known.redact)
        return [ToolPin.of(one["server"], one["tool"], one["definition"]) for one in first["listed"]]
    except (EngineFailed, KeyError, TypeError, ValueError) as error:
        raise SpawnRefused(
            "the MCP servers' tools could not be listed", cause=known.redact(str(error)), hint="try again"
        ) from None
    finally:
        running.close()
        answers.close()
        shutil.rmtree(folder, ignore_errors=True)


def _begin(
    engine: Engine, configuration: Mapping[str, Any], seconds: float, *, redact: Callable[[str], str]
) -> Mapping[str, Any]:
    """Start an engine; its first word, which is no refusal. Raises SpawnRefused, EngineFailed."""
    try:
        engine.start(configuration)
    except OSError as error:
        raise SpawnRefused(
            "the MCP proxy's process cannot be started", cause=error.strerror, hint="nothing was launched"
        ) from None
    first = engine.first(seconds + MARGIN_SECONDS)
    if "refused" in first:
        raise _refusal(first["refused"], redact)
    return first


def _common(
    *,
    handoff: HandoffId,
    grants: Sequence[ToolGrant],
    excluded: Sequence[str],
    servers: Sequence[Server],
    places: Places | None,
    start_seconds: float,
) -> dict[str, Any]:
    return {
        "handoff": str(handoff),
        "grants": [grant.model_dump(mode="json") for grant in grants],
        "excluded": list(excluded),
        "places": _fields(places or Places()),
        "servers": [server.to_plain() for server in servers],
        "start_seconds": start_seconds,
        "server_info": {"name": "agent-token-injector", "version": version("agent-token-injector")},
    }


def _fields(places: Places) -> dict[str, Any]:
    return asdict(places)


def _check_names(servers: Sequence[Server]) -> None:
    if len({server.name for server in servers}) != len(servers):
        raise SpawnRefused("two MCP servers have one name", hint="name each server in mcp_servers once")


def _refusal(document: object, redact: Callable[[str], str]) -> SpawnRefused:
    """The engine's refusal as ours, masked once more: it quotes servers."""
    found = document if isinstance(document, dict) else {}

    def text(name: str) -> str | None:
        value = found.get(name)
        return redact(value) if isinstance(value, str) else None

    return SpawnRefused(text("what") or "the MCP proxy did not start", cause=text("cause"), hint=text("hint"))


def _make_folder() -> Path:
    """A fresh folder, 0700, for the socket and the servers' homes. Raises SpawnRefused."""
    try:
        path = Path(tempfile.mkdtemp(prefix="handoff-proxy-")).resolve()
        if len(os.fsencode(path / SOCKET_NAME)) > MAX_SOCKET_PATH:
            path.rmdir()
            path = Path(tempfile.mkdtemp(prefix="handoff-proxy-", dir="/tmp"))
    except OSError as error:
        raise SpawnRefused(
            "the MCP proxy has no folder to work in",
            cause=error.strerror,
            hint="make sure that the temporary folder is writable and has room",
        ) from None
    return path
