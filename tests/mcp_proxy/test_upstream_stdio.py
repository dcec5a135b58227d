"""Servers that are our children: what they are asked, what they answer, how they end and begin again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.backlog import Backlog
from agent_token_injector.mcp_proxy.eras import Era
from agent_token_injector.mcp_proxy.links import UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.stdio_upstream import StdioUpstream
from agent_token_injector.mcp_proxy.upstream import Backoff, StdioServerConfig, server_config
from tests.mcp_proxy.servers.recorder import CLIENT_INFO, Recorder, run
from tests.requirements import requirement

LINES = str(Path(__file__).with_name("servers") / "lines.py")
SDK = str(Path(__file__).with_name("servers") / "sdk_server.py")
AT_ONCE = Backoff(first=0.001, limit=0.01)
SOON = 0.3


def config(*argv: str, **more: Any) -> StdioServerConfig:
    return StdioServerConfig("lines", (sys.executable, LINES, *argv), **more)


def gone(starts: Path) -> bool:
    """Whether every process that noted its start there has ended."""
    return not any(Path(f"/proc/{pid}").exists() for pid in starts.read_text().split())


@asynccontextmanager
async def started(
    server: StdioServerConfig, recorder: Recorder, backlog: Backlog | None = None, **more: Any
) -> AsyncIterator[StdioUpstream]:
    upstream = StdioUpstream(
        server,
        recorder,
        client_info=CLIENT_INFO,
        backlog=backlog or Backlog(),
        on_stderr=recorder.said,
        backoff=more.pop("backoff", AT_ONCE),
        **more,
    )
    try:
        await upstream.start()
        yield upstream
    finally:
        await upstream.stop()


@requirement("upstream.stdio-handshake")
def test_a_server_is_greeted_in_its_own_era_and_says_what_it_is() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            house = upstream.house
            assert (house.era, house.version, house.ready) == (Era.HANDSHAKE, "2025-06-18", True)
            assert (house.info, house.instructions) == ({"name": "lines", "version": "1"}, "be kind")
            assert house.capabilities == {"tools": {}}
            assert upstream.speaks == {Era.HANDSHAKE}
            assert upstream.link(None, Era.STATELESS) is house
            assert [tool["name"] for tool in await upstream.definitions()] == ["echo"]
            seen = json.loads(await recorder.text(house, "seen"))
            assert seen == ["initialize", "notifications/initialized", "tools/list", "tools/call"]

    run(main())


@requirement("upstream.stdio-handshake")
@pytest.mark.parametrize("protocol", ["auto", "2026-07-28"])
def test_a_server_that_stays_in_the_era_of_its_first_request_is_started_again_for_the_other(
    protocol: str, tmp_path: Path
) -> None:
    async def main() -> None:
        starts = tmp_path / "starts"
        async with started(config("stateless", str(starts), protocol=protocol), Recorder()) as upstream:
            assert upstream.speaks == {Era.STATELESS}
            assert (upstream.house.version, upstream.house.info) == ("2026-07-28", {"name": "lines", "version": "2"})
            assert await upstream.definitions()
            assert len(starts.read_text().splitlines()) == (2 if protocol == "auto" else 1)

    run(main())


@requirement("upstream.stdio-handshake")
def test_a_server_that_is_to_speak_the_handshake_era_alone_is_asked_nothing_else() -> None:
    async def main() -> None:
        with pytest.raises(UpstreamError) as refused:
            async with started(config("stateless", protocol="2025-11-25"), Recorder()):
                pass
        assert refused.value.code == -32022

    run(main())


@requirement("upstream.many-in-flight")
def test_a_thousand_calls_in_flight_are_each_answered_with_their_own() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            link = upstream.house
            asked = {recorder.ask(link, "tools/call", {"name": "echo", "arguments": {"n": n}}): n for n in range(1000)}
            link.flush()
            for minted, number in asked.items():
                answer = await recorder.answer(link, minted)
                assert json.loads(answer["result"]["content"][0]["text"]) == {"n": number}
            assert not link.pending

    run(main())


@requirement("upstream.large-messages")
def test_messages_of_many_pipes_lengths_pass_both_ways() -> None:
    async def main() -> None:
        recorder, backlog = Recorder(), Backlog()
        async with started(config("handshake"), recorder, backlog) as upstream:
            long = "a" * (4 * 1024 * 1024)
            assert json.loads(await recorder.text(upstream.house, "echo", long=long)) == {"long": long}
            assert len(await recorder.text(upstream.house, "large", size=9 * 1024 * 1024)) == 9 * 1024 * 1024
            assert await recorder.text(upstream.house, "byte_by_byte") == "slow"
            assert backlog.waiting == 0

    run(main())


@requirement("upstream.noise-dropped")
def test_what_answers_no_question_is_nobodys_and_carriage_returns_and_empty_lines_mean_nothing() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            assert await recorder.text(upstream.house, "noise") == "after the noise"
            assert await recorder.text(upstream.house, "crlf") == "crlf"
            minted = recorder.call(upstream.house, "nan")
            await recorder.until(lambda: recorder.over(upstream.house, minted))
            assert "cannot be read safely" in recorder.unreadable[upstream.house, minted]
            assert [message["id"] for message, _, _ in recorder.others] == [10**6, "2", None, True]

    run(main())


@requirement("upstream.bounded")
def test_a_line_without_an_end_loses_the_conversation_and_not_the_memory() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            link = upstream.house
            assert (
                await recorder.failure(link, recorder.call(link, "endless")) == "it sent a message of more than 10 MiB"
            )
            assert link.lost is not None
            await recorder.until(lambda: recorder.restarts)
            assert await recorder.text(upstream.house, "echo") == "{}"

    run(main())


@requirement("upstream.bounded")
def test_a_flood_waits_in_the_servers_own_pipe_while_the_backlog_is_full() -> None:
    async def main() -> None:
        recorder, backlog = Recorder(), Backlog(limit=1000)
        async with started(config("handshake"), recorder, backlog) as upstream:
            backlog.add(2000)
            minted = recorder.call(upstream.house, "flood", count=50_000)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SOON):
                    await recorder.until(lambda: recorder.others)
            backlog.done(2000)
            await recorder.answer(upstream.house, minted)
            assert len(recorder.others) == 50_000

    run(main())


@requirement("upstream.bounded")
def test_nothing_is_read_between_pause_and_resume() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            upstream.house.pause()
            minted = recorder.call(upstream.house, "echo")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SOON):
                    await recorder.answer(upstream.house, minted)
            upstream.house.resume()
            await recorder.answer(upstream.house, minted)

    run(main())


@requirement("upstream.bounded")
def test_a_server_that_does_not_read_is_counted_and_then_lost() -> None:
    async def main() -> None:
        recorder, backlog = Recorder(), Backlog()
        server = config("deaf")
        async with started(server, recorder, backlog, stall=SOON, backoff=Backoff(first=60)) as upstream:
            link = upstream.house
            first = recorder.call(link, "echo", long="b" * 1024 * 1024)
            second = recorder.call(link, "echo", long="c" * 1024 * 1024)
            assert backlog.waiting > 1024 * 1024
            assert await recorder.failure(link, first) == "it stopped reading"
            assert await recorder.failure(link, second) == "it stopped reading"
            assert backlog.waiting == 0

    run(main())


@requirement("upstream.restart")
def test_a_server_that_dies_fails_what_waits_and_is_started_again() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            link = upstream.house
            before = await recorder.text(link, "pid")
            assert await recorder.failure(link, recorder.call(link, "exit")) == "it ended"
            assert await recorder.failure(link, recorder.call(link, "echo")) == "it ended"
            await recorder.until(lambda: recorder.restarts == [upstream])
            assert upstream.house is not link
            assert upstream.link(None, Era.HANDSHAKE) is upstream.house
            assert await recorder.text(upstream.house, "pid") != before
            assert await upstream.definitions()

    run(main())


@requirement("upstream.restart")
def test_what_a_server_answered_before_it_died_arrives() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder, backoff=Backoff(first=60)) as upstream:
            assert await recorder.text(upstream.house, "answer_and_exit") == "the last"
        async with started(config("handshake"), recorder, backoff=Backoff(first=60)) as upstream:
            link = upstream.house
            assert await recorder.text(link, "close_input") == "input closed"
            assert await recorder.failure(link, recorder.call(link, "echo")) == "it closed its input"

    run(main())


@requirement("upstream.restart")
def test_restarts_that_fail_are_tried_again_ever_more_slowly(tmp_path: Path) -> None:
    async def main() -> None:
        recorder = Recorder()
        starts, gate = tmp_path / "starts", tmp_path / "gate"
        script = f"import os, runpy, sys; os.path.exists({str(gate)!r}) and sys.exit('shut'); runpy.run_path({LINES!r}, run_name='__main__')"
        server = StdioServerConfig("lines", (sys.executable, "-c", script, "handshake", str(starts)))
        async with started(server, recorder, start_seconds=5) as upstream:
            gate.touch()
            await recorder.failure(upstream.house, recorder.call(upstream.house, "exit"))
            await recorder.until(lambda: recorder.stderr.count("shut") >= 3)
            assert upstream.house.lost == "it ended"
            assert upstream.last_words() == "shut"
            gate.unlink()
            await recorder.until(lambda: recorder.restarts)
            assert await recorder.text(upstream.house, "echo") == "{}"

    run(main())


@requirement("upstream.restart")
def test_the_pauses_before_restarts_double_up_to_ten_seconds() -> None:
    backoff = Backoff()
    delays = [backoff.delay(failures) for failures in range(1, 60)]
    assert all(
        0.9 * most <= delay <= most for delay, most in zip(delays, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4], strict=False)
    )
    assert all(9 <= delay <= 10 for delay in delays[7:])


@requirement("upstream.stderr")
def test_stderr_is_told_by_whole_lines_and_its_end_is_kept() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            await recorder.text(upstream.house, "stderr", text="one\ntw")
            await recorder.until(lambda: recorder.stderr == ["one"])
            await recorder.text(upstream.house, "stderr", text=f"o\n{'l' * 20000}\nfour\n")
            await recorder.until(lambda: recorder.stderr == ["one", "two", "four"])
            assert upstream.last_words() == "four"

    run(main())


@requirement("upstream.stderr")
def test_a_server_that_does_not_start_leaves_its_last_words_and_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        for how, seconds, why in (("dies", 10.0, "it ended"), ("mute", SOON, None)):
            starts = tmp_path / how
            server = StdioUpstream(
                config(how, str(starts)), Recorder(), client_info=CLIENT_INFO, backlog=Backlog(), backoff=AT_ONCE
            )
            try:
                with pytest.raises(UpstreamFailed if why else TimeoutError, match=why):
                    async with asyncio.timeout(seconds):
                        await server.start()
                assert server.last_words() == ("no such luck" if how == "dies" else "")
                with pytest.raises(UpstreamFailed, match="not running"):
                    server.link(None, Era.HANDSHAKE)
            finally:
                await server.stop()
                await server.stop()
            assert gone(starts)

    run(main())


@requirement("upstream.restart")
def test_stop_ends_a_restart_that_is_under_way_and_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        recorder, starts = Recorder(), tmp_path / "starts"
        async with started(config("handshake", str(starts)), recorder) as upstream:
            os.kill(int(await recorder.text(upstream.house, "pid")), signal.SIGKILL)
            await recorder.failure(upstream.house, recorder.call(upstream.house, "echo"))
        assert upstream.house.lost is not None
        assert gone(starts)

    run(main())


@requirement("upstream.noise-dropped")
def test_a_servers_own_question_reaches_the_relay_and_its_answer_the_server() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with started(config("handshake"), recorder) as upstream:
            link = upstream.house
            recorder.call(link, "ask")
            await recorder.until(lambda: recorder.others)
            question, route, event = recorder.others[0]
            assert (question["method"], question["id"], route, event) == ("roots/list", "theirs", None, None)
            link.say(wire.error("theirs", -32601, "Method not found"))
            link.flush()
            await recorder.until(lambda: len(recorder.others) == 2)
            assert recorder.others[1][0]["params"]["id"] == "theirs"
            listen = object()
            link.listen(None, listen)
            assert recorder.ends == [(listen, "a server over stdio has no streams of its own")]

    run(main())


@requirement("upstream.sdk-servers")
def test_a_server_of_the_official_sdk_is_spoken_to() -> None:
    async def main() -> None:
        recorder = Recorder()
        server = StdioServerConfig("sdk", (sys.executable, SDK, "stdio"))
        async with started(server, recorder) as upstream:
            assert [tool["name"] for tool in await upstream.definitions()] == ["add", "count"]
            assert await recorder.text(upstream.house, "add", a=2, b=3) == "5"

    run(main())


@requirement("upstream.config")
def test_a_servers_secrets_are_in_no_repr_and_a_wrong_configuration_is_named_without_values() -> None:
    plain = {"kind": "stdio", "name": "s", "argv": ["x", "--key=hunter2"], "env": {"TOKEN": "hunter2"}}
    assert "hunter2" not in repr(server_config(plain))
    http = {"kind": "http", "name": "h", "url": "https://h/hunter2", "headers": {"X-Key": "hunter2"}, "oauth": True}
    assert "hunter2" not in repr(server_config(http))
    for change in (
        {"argv": []},
        {"argv": "hunter2"},
        {"env": {"A": 1}},
        {"cwd": 7},
        {"protocol": "hunter2"},
        {"kind": "hunter2"},
        {"name": ""},
        {"declare": "hunter2"},
    ):
        with pytest.raises(UpstreamFailed) as refused:
            server_config({**plain, **change})
        assert "hunter2" not in str(refused.value)
    for change in ({"url": 1}, {"headers": {"A": None}}, {"oauth": "yes"}):
        with pytest.raises(UpstreamFailed):
            server_config({**http, **change})


@requirement("upstream.no-leak")
def test_servers_that_die_and_are_started_again_leave_no_descriptor() -> None:
    async def main() -> None:
        recorder = Recorder()

        def descriptors() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        async with started(config("handshake"), recorder) as upstream:
            before = descriptors()
            for generation in range(1, 6):
                await recorder.failure(upstream.house, recorder.call(upstream.house, "exit"))
                await recorder.until(lambda: len(recorder.restarts) == generation)  # noqa: B023 - awaited here
                assert descriptors() <= before
        assert descriptors() < before

    run(main())
