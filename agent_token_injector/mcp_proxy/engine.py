"""The engine process: one handoff's MCP proxy, away from the memory that holds more than this handoff's secrets.

    python -I -m agent_token_injector.mcp_proxy.engine FD

FD is the channel to the control side, which sends the configuration first and says from then on whether the handoff may
go on. It holds no vault and no admin credential. When the channel ends it ends, with every server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent_token_injector.audit.log import AuditLog
from agent_token_injector.clock import parse_iso
from agent_token_injector.errors import HandoffError, SpawnRefused
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy.backlog import Backlog
from agent_token_injector.mcp_proxy.budgets import WINDOW_SECONDS, Budgets
from agent_token_injector.mcp_proxy.builtin_upstream import BuiltinUpstream
from agent_token_injector.mcp_proxy.catalogue import Catalogue, look_again
from agent_token_injector.mcp_proxy.channel import Channel, ChannelClosed, NoAnswer
from agent_token_injector.mcp_proxy.desk import Desk
from agent_token_injector.mcp_proxy.grants import Grant, Limits, Places, ServerAllow
from agent_token_injector.mcp_proxy.http_front import HttpFront
from agent_token_injector.mcp_proxy.inbound import Inbound
from agent_token_injector.mcp_proxy.ledger import BeatClock, Ledger
from agent_token_injector.mcp_proxy.links import UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.methods import SERVER_CAPABILITIES
from agent_token_injector.mcp_proxy.pins import ToolPin
from agent_token_injector.mcp_proxy.relay import Relay
from agent_token_injector.mcp_proxy.stdio_front import StdioFront
from agent_token_injector.mcp_proxy.stdio_upstream import StdioUpstream
from agent_token_injector.mcp_proxy.streams import Streams
from agent_token_injector.mcp_proxy.tool_policy import Reason, ToolPolicy
from agent_token_injector.mcp_proxy.tracing import Tracing
from agent_token_injector.mcp_proxy.upstream import HttpServerConfig, Upstream, server_config
from agent_token_injector.mcp_proxy.watches import Watches
from agent_token_injector.names import HandoffId

TICK_SECONDS: Final = 0.25
LOOK_PAUSE: Final = 1.0
SCRATCH_PREFIX: Final = "handoff-proxy-"
_PR_SET_DUMPABLE: Final = 4


@dataclass(frozen=True, slots=True)
class _Refused(Exception):
    """The engine does not start, and says why."""

    error: HandoffError


class Engine:
    """Everything between one handoff's agent and its servers, on one event loop.

    Args:
        channel: to the control side.
        configuration: its first document (docs/mcp-proxy.md).
    """

    def __init__(self, channel: Channel, configuration: Mapping[str, Any]) -> None:
        self._channel = channel
        self._configuration = configuration
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._stop = asyncio.Event()
        self._why = Reason.CLOSED.value
        self._backlog = Backlog()
        handoff = HandoffId.parse(configuration["handoff"])
        clock = self._clock = BeatClock(parse_iso(configuration["now"]), time.monotonic)
        redactor = Redactor(configuration["secrets"])
        audit = configuration["audit"]
        self._audit = AuditLog(
            Path(audit["directory"]),
            clock=clock,
            actor=audit["actor"],
            redactor=redactor,
            durability=audit["durability"],
            deadline=audit["deadline"],
        )
        self._ledger = Ledger(
            handoff=handoff,
            audit=self._audit,
            expires_at=parse_iso(configuration["expires_at"]),
            clock=clock,
            monotonic=time.monotonic,
            schedule=self._schedule,
            later=self._loop.call_later,
        )
        self._handoff = handoff
        self._upstreams: dict[str, Upstream] = {}
        self._desk = Desk(
            policy=ToolPolicy.resolve((), (), {}),
            upstreams=self._upstreams,
            allow={name: ServerAllow.from_plain(one) for name, one in configuration["allow"].items()},
            ledger=self._ledger,
            audit=self._audit,
            redactor=redactor,
            budgets=Budgets({}),
            info=configuration["server_info"],
            monotonic=time.monotonic,
        )
        pins = configuration["pins"]
        self._catalogue = Catalogue(
            [Grant.from_plain(one) for one in configuration["grants"]],
            configuration["excluded"],
            Places.from_plain(configuration["places"]),
            None if pins is None else [ToolPin.from_plain(one) for one in pins],
        )
        self._streams = Streams(self._desk)
        self._watches = Watches(configuration["server_info"], self._loop.call_later)
        self._inbound = Inbound(self._desk, self._streams, self._watches, self._tools_changed)
        self._relay = Relay(self._desk, self._streams)
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._look_again: set[str] = set()
        self._fronts: list[HttpFront | StdioFront] = []

    # The turn of the loop

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._desk.turn(_nothing)

    # Life

    async def run(self) -> None:
        """Start, serve until it is told to end, and leave nothing. Raises _Refused."""
        self._channel.serve(self._heard, lambda: self._end(Reason.CLOSED))
        try:
            offered = await self._start_servers()
            if self._stop.is_set():
                return
            policy = self._catalogue.resolve(offered)
            if self._configuration.get("listing"):
                listed = [
                    {"server": one.server, "tool": one.tool, "name": one.name, "definition": dict(one.definition)}
                    for one in policy.allowed.values()
                ]
                self._channel.say({"listed": listed})
                return
            self._admit(policy, offered)
            if (target := self._configuration.get("tracing")) is not None:
                desk = self._desk
                desk.tracing = Tracing.to(target, handoff=self._handoff, redactor=lambda: desk.redactor)
            await self._serve()
        except HandoffError as error:
            raise _Refused(error) from None
        finally:
            await self._close()

    def _admit(self, policy: ToolPolicy, offered: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._desk.policy = policy
        limits = {one.name: one.limits for one in policy.allowed.values() if one.limits is not None}
        if limits:
            self._desk.budgets = self._budgets(limits)
        for name, definitions in offered.items():
            self._catalogue.judge(name, definitions, self._desk)
            if any(one.server == name for one in policy.allowed.values()):
                self._watches.open(self._upstreams[name])
        self._desk.flush()

    def _budgets(self, limits: Mapping[str, Limits]) -> Budgets:
        """What is left of each budget by this handoff's chain: a proxy that starts anew begins where the last one was."""
        used: dict[str, int] = {}
        recent: dict[str, list[float]] = {}
        now = self._clock.now()
        for event in self._audit.events(self._handoff):
            tool = event.detail.get("tool")
            if event.action == "tool.call" and isinstance(tool, str) and tool in limits:
                used[tool] = used.get(tool, 0) + 1
                if (ago := (now - event.when).total_seconds()) < WINDOW_SECONDS:
                    recent.setdefault(tool, []).append(self._ledger.seconds() - ago)
        return Budgets(limits, used, recent)

    async def _serve(self) -> None:
        listen, token = self._configuration["listen"], self._configuration["token"]
        port = 0
        if listen.get("http"):
            http = HttpFront(self._relay, token, self._backlog)
            self._fronts.append(http)
            port = await http.start(listen.get("port", 0))
        if listen.get("socket"):
            stdio = StdioFront(self._relay, token, self._backlog, time.monotonic)
            self._fronts.append(stdio)
            stdio.start(listen["socket"])
        # What has been made so far stays: it is not looked through again and again.
        gc.collect()
        gc.freeze()
        self._channel.say({"ready": {"port": port, "tools": list(self._desk.policy.tools)}})
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._stop.wait()
            self._relay.tick()
            for front in self._fronts:
                if isinstance(front, StdioFront):
                    front.tick()
        self._relay.cut_off(self._why)

    def _heard(self, document: Mapping[str, Any]) -> None:
        match document:
            case {"beat": {"n": int(number), "reason": reason, "now": str(now)}}:
                self._relay.beat(reason, now)
                self._desk.flush()
                self._channel.say({"ack": number})
            case {"cut": str(reason)}:
                self._relay.cut_off(reason)
            case _:
                self._end(Reason.CLOSED)

    def _end(self, why: str) -> None:
        self._why = why
        self._stop.set()

    async def _close(self) -> None:
        self._watches.close()
        for front in self._fronts:
            if isinstance(front, StdioFront):
                front.close()
            else:
                await front.close()
        for look in tuple(self._looks.values()):
            look.cancel()
        ending = [one.stop() for one in self._upstreams.values()]
        if self._desk.tracing is not None:
            ending.append(self._desk.tracing.close())
        await asyncio.gather(*ending, return_exceptions=True)
        self._ledger.settle_strangers(at_once=True)
        with contextlib.suppress(HandoffError):
            # What could not be written was refused when it happened.
            self._audit.close()

    # Servers

    async def _start_servers(self) -> dict[str, list[dict[str, Any]]]:
        """Start every server and list its tools; all or none. Raises SpawnRefused."""
        for plain in self._configuration["servers"]:
            try:
                self._upstreams[plain["name"]] = self._made(plain)
            except UpstreamFailed as error:
                raise SpawnRefused(f"MCP server {plain['name']!r} cannot be used", cause=str(error)) from None
        stopping = asyncio.create_task(self._stop.wait())
        starting = {name: asyncio.create_task(self._start_one(name)) for name in self._upstreams}
        try:
            # Builds the automata, while the servers start.
            self._loop.call_soon(self._desk.redactor.text, "%20")
            pending: set[asyncio.Task[Any]] = {*starting.values()}
            while pending and not stopping.done():
                done, pending = await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
                pending.discard(stopping)
                for task in done - {stopping}:
                    # One server that cannot be used is reason enough; the others are given up because of it.
                    task.result()
            return {} if stopping.done() else {name: task.result() for name, task in starting.items()}
        finally:
            stopping.cancel()
            for task in starting.values():
                task.cancel()
            await asyncio.gather(*starting.values(), return_exceptions=True)

    def _made(self, plain: Mapping[str, Any]) -> Upstream:
        name = plain["name"]
        if plain["kind"] == "builtin":
            return BuiltinUpstream(name, plain["definitions"], self._channel, self._inbound, self._desk)
        allow = self._desk.allow.get(name)
        declare: dict[str, Any] = {
            one: {} for one, field in SERVER_CAPABILITIES.items() if allow is not None and getattr(allow, field)
        }
        config = server_config({**plain, "declare": declare})
        info = self._configuration["server_info"]
        if isinstance(config, HttpServerConfig):
            from agent_token_injector.mcp_proxy.http_upstream import HttpUpstream

            async def bearer(refused: str | None) -> str:
                try:
                    answer = await self._channel.ask("oauth", server=name, fresh=refused is not None)
                except NoAnswer as error:
                    raise UpstreamFailed(f"no OAuth token: {error}") from None
                self._desk.learn(answer.get("learn", ()))
                return str(answer["token"])

            return HttpUpstream(
                config, self._inbound, client_info=info, backlog=self._backlog, bearer=bearer if config.oauth else None
            )
        return StdioUpstream(config, self._inbound, client_info=info, backlog=self._backlog)

    async def _start_one(self, name: str) -> list[dict[str, Any]]:
        upstream, seconds = self._upstreams[name], self._configuration["start_seconds"]
        try:
            async with asyncio.timeout(seconds):
                await upstream.start()
                return await upstream.definitions()
        except TimeoutError:
            cause = f"it did not list its tools within {seconds:g} s"
        except UpstreamFailed as error:
            cause = str(error)
        except UpstreamError as error:
            cause = f"it answered with an error: {self._desk.redactor.text(error.message)}"
        words = self._desk.redactor.text(upstream.last_words())
        raise SpawnRefused(
            f"MCP server {name!r} is not usable",
            cause=f"{cause}; it said: {words[-1000:]}" if words else cause,
            hint="run its command by hand with the same environment",
        )

    def _tools_changed(self, server: str) -> None:
        """A server says that its tools are others, or began anew: look, one look at a time for each."""
        upstream = self._upstreams.get(server)
        if upstream is None or self._stop.is_set():
            return
        if server in self._looks:
            self._look_again.add(server)
            return
        look = self._looks[server] = self._loop.create_task(self._look(upstream))
        look.add_done_callback(lambda _: self._looks.pop(server, None))

    async def _look(self, upstream: Upstream) -> None:
        """Look until nothing has changed since; with pauses, however often a server says that it has."""
        self._look_again.add(upstream.name)
        while upstream.name in self._look_again:
            self._look_again.discard(upstream.name)
            await look_again(upstream, self._catalogue, self._desk)
            # Clients that listen are told what the server told us, whether or not it concerns a tool of theirs.
            self._streams.tools_changed()
            self._schedule()
            await asyncio.sleep(LOOK_PAUSE)


def _nothing() -> None:
    """What is staged is all there is to do."""


async def serve(connection: socket.socket) -> None:
    """Run an engine on a channel until it ends. Returns when nothing of it is left."""
    channel = Channel(connection)
    try:
        configuration = await channel.configuration()
    except ChannelClosed:
        return
    try:
        await Engine(channel, configuration).run()
    except _Refused as refused:
        error = refused.error
        channel.say({"refused": {"what": error.what, "cause": error.cause, "hint": error.hint}})
    channel.say({"closed": True})
    channel.close()
    # The control side's, which may be gone: the socket and the servers' homes were in it.
    scratch = Path(tempfile.gettempdir())
    if scratch.name.startswith(SCRATCH_PREFIX):
        shutil.rmtree(scratch, ignore_errors=True)


def keep_private() -> None:
    """Let no other process of this user read this one's memory, now or from a core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main() -> None:
    """The process's entry point."""
    keep_private()
    # The orchestrator's terminal and its group are not ours: it ends us over the channel, or with SIGKILL.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(connection))


if __name__ == "__main__":
    main()
