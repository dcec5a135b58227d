"""What the tests of the proxy share: a proxy with real parts around it, and a client that can say anything."""

from __future__ import annotations

import fcntl
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_token_injector.audit import AuditEvent, AuditLog
from agent_token_injector.clock import ManualClock
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy import McpProxy, StdioServer
from agent_token_injector.mcp_proxy.servers import Server
from agent_token_injector.names import HandoffId
from agent_token_injector.spec import ToolGrant

START = datetime(2026, 6, 20, 9, 0, tzinfo=UTC)
HANDOFF = HandoffId.parse("founders-checkout-20260620")
TOKEN = SecretStr("bearer-of-this-handoff-alone-7f3a")
GRANTED = SecretStr("ghs_ServerSecretOfTheHandoff42")
SCRIPTED = str(Path(__file__).with_name("servers") / "scripted.py")
STATELESS = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": STATELESS,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def wait_until(true: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Return as soon as `true()` is; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def our_threads() -> list[str]:
    """The threads of proxies in this process."""
    return [one.name for one in threading.enumerate() if one.name.startswith("mcp-")]


def children_of(parents: Iterable[int], running: bytes) -> list[int]:
    """The children of these processes whose command line has `running` in it."""
    among, found = set(parents), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in among and running in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def grants(*wanted: str | dict[str, Any]) -> tuple[ToolGrant, ...]:
    return tuple(ToolGrant.model_validate(one) for one in wanted)


@dataclass
class Standing:
    """What the proxy's `check` answers. Tests change it through `Rig.stands`, which sees to it that it is known."""

    reason: str | None = None
    broken: bool = False

    def __call__(self) -> str | None:
        if self.broken:
            raise RuntimeError("the one who checks has fallen over")
        return self.reason


@dataclass
class Rig:
    """A directory, a clock and an audit log, and proxies made from them."""

    path: Path
    clock: ManualClock = field(default_factory=lambda: ManualClock(START))
    standing: Standing = field(default_factory=Standing)
    proxies: list[McpProxy] = field(default_factory=list)
    audit_deadline: float = 2.0
    """Seconds that a writer of the audit waits for another one."""

    def __post_init__(self) -> None:
        self.audit = AuditLog(self.path / "audit", clock=self.clock, actor="tests", deadline=self.audit_deadline)
        self.log = self.path / "scripted.log"

    def advance(self, by: timedelta) -> None:
        """Move the clock on, and return once every proxy goes by it."""
        self.clock.advance(by)
        self.recheck()

    def stands(self, reason: str | None = None, *, broken: bool = False) -> None:
        """Change what `check` answers, and return once every proxy goes by it."""
        self.standing.reason, self.standing.broken = reason, broken
        self.recheck()

    def recheck(self) -> None:
        """Have every running proxy ask `check` and the clock now."""
        for proxy in self.proxies:
            if proxy.url and proxy.failed is None:
                proxy.recheck()

    @contextmanager
    def audit_held(self) -> Iterator[None]:
        """The handoff's chain is held by another writer: nothing can be written to it meanwhile."""
        path = self.path / "audit" / f"{HANDOFF}.jsonl"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(0o600)
        with path.open("rb") as chain:
            fcntl.flock(chain, fcntl.LOCK_EX)
            yield

    def scripted(self, name: str = "scripted", **env: str | SecretStr) -> StdioServer:
        env = {"SCRIPTED_LOG": str(self.log), "GRANTED": GRANTED, **env}
        return StdioServer(name, (sys.executable, SCRIPTED), env=env)

    def make(
        self,
        wanted: Sequence[str | dict[str, Any]] = (),
        *,
        excluded: Sequence[str] = (),
        servers: Sequence[Server] | None = None,
        start_seconds: float = 30.0,
        secrets: Sequence[SecretStr] = (GRANTED, TOKEN),
        token: SecretStr = TOKEN,
        redactor: Redactor | None = None,
        **more: Any,
    ) -> McpProxy:
        proxy = McpProxy(
            handoff=HANDOFF,
            grants=grants(*wanted),
            excluded=excluded,
            servers=[self.scripted()] if servers is None else servers,
            token=token,
            audit=self.audit,
            redactor=Redactor(secrets) if redactor is None else redactor,
            check=self.standing,
            expires_at=START + timedelta(hours=1),
            clock=self.clock,
            start_seconds=start_seconds,
            **more,
        )
        self.proxies.append(proxy)
        return proxy

    def start(self, *args: Any, **kwargs: Any) -> McpProxy:
        proxy = self.make(*args, **kwargs)
        proxy.start()
        return proxy

    def events(self, action: str | None = None) -> list[AuditEvent]:
        return [event for event in self.audit.events(HANDOFF) if action in (None, event.action)]

    def written(self) -> str:
        """The audit chain as it stands on disk."""
        return (self.path / "audit" / f"{HANDOFF}.jsonl").read_text()

    def received(self) -> list[dict[str, Any]]:
        """Every message the scripted server was sent."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def calls_received(self) -> list[str]:
        return [one["params"]["name"] for one in self.received() if one.get("method") == "tools/call"]

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        self.audit.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def text(self) -> str:
        """The text of a tool's result."""
        return str(self.json["result"]["content"][0]["text"])


class RawClient:
    """Says exactly what it is told to, over HTTP."""

    def __init__(self, url: str, token: SecretStr = TOKEN) -> None:
        self.authority, self.path = url.removeprefix("http://").split("/", 1)
        self.token = token
        self.session: str | None = None

    def send(
        self,
        body: bytes,
        headers: Mapping[str, str | None] | Sequence[tuple[str, str]] = (),
        *,
        method: str = "POST",
        path: str | None = None,
        timeout: float = 20.0,
    ) -> Answer:
        """Send bytes with the usual headers, some replaced, removed (None) or, as a list of pairs, added."""
        usual: dict[str, str | None] = {
            "Host": self.authority,
            "Authorization": f"Bearer {self.token.get_secret_value()}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Content-Length": str(len(body)),
        }
        if self.session is not None:
            usual["Mcp-Session-Id"] = self.session
        more: list[tuple[str, str]] = []
        if isinstance(headers, Mapping):
            usual |= headers
        else:
            more = list(headers)
        connection = http.client.HTTPConnection(self.authority, timeout=timeout)
        try:
            connection.putrequest(method, path or f"/{self.path}", skip_host=True, skip_accept_encoding=True)
            for name, value in [*usual.items(), *more]:
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def initialize(self) -> Answer:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        answer = self.ask("initialize", params)
        self.session = answer.headers.get("mcp-session-id")
        return answer

    def ask(self, method: str, params: Any = None, *, message_id: Any = 1, **more: Any) -> Answer:
        """A request of the handshake era."""
        document = {"jsonrpc": "2.0", "id": message_id, "method": method, "params": {} if params is None else params}
        return self.send(json.dumps(document).encode(), **more)

    def call(self, name: str, arguments: Any = None, **more: Any) -> Answer:
        return self.ask("tools/call", {"name": name, "arguments": {} if arguments is None else arguments}, **more)

    def ask_stateless(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | None] = {},
        message_id: Any = 1,
    ) -> Answer:
        """A request of the stateless era, with the headers it needs unless they are replaced."""
        usual: dict[str, str | None] = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": method}
        if params is not None and "name" in params:
            usual["Mcp-Name"] = str(params["name"])
        document = {"jsonrpc": "2.0", "id": message_id, "method": method, "params": {"_meta": META, **(params or {})}}
        return self.send(json.dumps(document).encode(), {**usual, **headers})

    def call_stateless(self, name: str, arguments: Any = None, **more: Any) -> Answer:
        return self.ask_stateless("tools/call", {"name": name, "arguments": arguments or {}}, **more)
