"""The control side, against an engine of a few lines: what it is handed, what it is told, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.masking import MASK
from agent_token_injector.mcp_proxy import McpProxy, StdioServer, list_tools
from agent_token_injector.mcp_proxy.grants import Places
from agent_token_injector.mcp_proxy.pins import ToolPin
from agent_token_injector.mcp_proxy.servers import (
    BuiltinAnswer,
    BuiltinServer,
    BuiltinTool,
    HttpServer,
    OAuthClient,
    Recorder,
)
from tests.launchers.agents import open_descriptors
from tests.mcp_proxy.harness import GRANTED, HANDOFF, START, TOKEN, Rig, grants, our_threads, wait_until
from tests.requirements import requirement

ENGINE = str(Path(__file__).with_name("servers") / "scripted_engine.py")
READY = {"ready": {"port": 1, "tools": ["echo"]}}
VALUE = SecretStr("whsec_ReadFromTheVault77")


class Scripted:
    """A proxy with a scripted engine, and what that engine was told."""

    def __init__(self, rig: Rig, script: Mapping[str, Any], **more: Any) -> None:
        self.log = rig.path / "engine.log"
        self.proxy = rig.make(["echo"], engine=self.command(self.log, script), **more)

    @staticmethod
    def command(log: Path, script: Mapping[str, Any]) -> tuple[str, ...]:
        return (sys.executable, "-S", ENGINE, str(log), json.dumps(script))

    def start(self) -> McpProxy:
        self.proxy.start()
        return self.proxy

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()[1:]] if self.log.exists() else []

    @property
    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.log.read_text().splitlines()[0])
        return found

    def beats(self) -> list[dict[str, Any]]:
        return [one["beat"] for one in self.told if "beat" in one]

    def answers(self) -> dict[int, dict[str, Any]]:
        return {one["answer"]["id"]: one["answer"] for one in self.told if "answer" in one}

    def gone(self) -> bool:
        return not Path(f"/proc/{self.about['pid']}").exists()


def builtin(run: Callable[[Mapping[str, Any], Recorder], BuiltinAnswer]) -> BuiltinServer:
    definition = {"name": "get", "inputSchema": {"type": "object"}}
    return BuiltinServer("ours", (BuiltinTool(definition, run),))


def asking(number: int, kind: str = "builtin", **more: Any) -> dict[str, Any]:
    return {"ask": {"id": number, "kind": kind, "server": "ours", "tool": "get", "arguments": {"n": number}, **more}}


@requirement("mcp.engine-from-nothing", "H6.no-secret-in-proc")
def test_the_engine_starts_from_nothing_with_one_descriptor_and_its_secrets_come_over_the_channel(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the operator")
    scripted = Scripted(rig, {})
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        scripted.start()
    finally:
        os.close(inherited)
    about = scripted.about
    assert about["env"].keys() - {"LC_CTYPE"} == {"PATH", "LANG", "TMPDIR"}
    assert about["cwd"] == "/"
    assert about["session"] == about["pid"]
    assert about["fds"].keys() - {"2"} == {"0", "1", str(about["channel"])}
    assert about["fds"]["0"] == about["fds"]["1"] == "/dev/null"
    for secret in (GRANTED, TOKEN):
        assert secret.get_secret_value() not in json.dumps(about)
        assert secret.get_secret_value() in json.dumps(scripted.told[0])


@requirement("mcp.engine-configuration")
def test_the_engine_is_handed_all_that_it_needs_to_decide(rig: Rig) -> None:
    pin = ToolPin.of("scripted", "echo", {"name": "echo", "inputSchema": {"type": "object"}})
    allow = {"scripted": {"logging": True}}
    places = Places(worktree="/srv/worktree", repository="raxx/api", branches=("fix",))
    servers = [
        StdioServer("scripted", ("server",), env={"KEY": GRANTED, "PLAIN": "x"}, protocol="2025-11-25"),
        HttpServer("far", "https://mcp.example.com/mcp", headers={"X-Key": GRANTED}),
        builtin(lambda _arguments, _record: BuiltinAnswer("")),
    ]
    scripted = Scripted(rig, {}, servers=servers, excluded=["exit"], allow=allow, pins=[pin], places=places)
    proxy = scripted.start()
    told = scripted.told[0]
    assert told["handoff"] == str(HANDOFF)
    assert [grant["name"] for grant in told["grants"]] == ["echo"]
    assert (told["excluded"], told["allow"], told["pins"]) == (["exit"], allow, [pin.to_plain()])
    assert {name: told["places"][name] for name in ("worktree", "repository", "branches")} == {
        "worktree": "/srv/worktree",
        "repository": "raxx/api",
        "branches": ["fix"],
    }
    assert datetime.fromisoformat(told["expires_at"]) == START + timedelta(hours=1)
    assert datetime.fromisoformat(told["now"]) == START
    assert told["token"] == TOKEN.get_secret_value()
    assert set(told["secrets"]) == {GRANTED.get_secret_value(), TOKEN.get_secret_value()}
    assert told["audit"]["directory"] == str(rig.path / "audit")
    assert (told["audit"]["actor"], told["audit"]["deadline"]) == ("tests", 2.0)
    assert told["listen"] == {"http": True, "socket": str(proxy.socket_path)}
    assert told["server_info"]["name"] == "agent-token-injector"
    assert told["servers"] == [
        {
            "kind": "stdio",
            "name": "scripted",
            "argv": ["server"],
            "env": {"KEY": GRANTED.get_secret_value(), "PLAIN": "x"},
            "cwd": None,
            "protocol": "2025-11-25",
        },
        {
            "kind": "http",
            "name": "far",
            "url": "https://mcp.example.com/mcp",
            "headers": {"X-Key": GRANTED.get_secret_value()},
            "oauth": False,
            "protocol": "auto",
        },
        {"kind": "builtin", "name": "ours", "definitions": [{"name": "get", "inputSchema": {"type": "object"}}]},
    ]
    assert (proxy.url, proxy.tools) == ("http://127.0.0.1:1/mcp", ("echo",))


@requirement("D7.secrets-not-in-repr")
def test_no_repr_of_a_server_or_its_client_shows_a_secret() -> None:
    client = OAuthClient("https://auth.example.com/token", SecretStr("an-id"), GRANTED)
    server = HttpServer("far", "https://mcp.example.com/mcp", headers={"X-Key": "plain-secret"}, oauth=client)
    assert not re.search(f"{GRANTED.get_secret_value()}|an-id|plain-secret", repr(server))


@requirement("mcp.engine-beats")
def test_beats_come_by_themselves_and_a_recheck_is_taken_before_it_returns(rig: Rig) -> None:
    scripted = Scripted(rig, {})
    proxy = scripted.start()
    wait_until(lambda: len(scripted.beats()) >= 3, "beats come", 5)
    assert [beat["reason"] for beat in scripted.beats()] == [None] * len(scripted.beats())
    rig.stands("revoked")
    assert scripted.beats()[-1]["reason"] == "revoked"
    rig.stands(broken=True)
    assert scripted.beats()[-1]["reason"] == "unchecked"
    rig.stands()
    rig.advance(timedelta(minutes=5))
    assert datetime.fromisoformat(scripted.beats()[-1]["now"]) == START + timedelta(minutes=5)
    numbers = [beat["n"] for beat in scripted.beats()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert proxy.recheck() is True


@requirement("mcp.engine-beats")
def test_beats_of_several_threads_are_in_order(rig: Rig) -> None:
    scripted = Scripted(rig, {})
    proxy = scripted.start()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: proxy.recheck(), range(64)))
    numbers = [beat["n"] for beat in scripted.beats()]
    assert numbers == list(range(1, len(numbers) + 1))


@requirement("mcp.start-all-or-nothing")
def test_a_refusal_of_the_engine_is_raised_as_it_was_said_and_masked_once_more(rig: Rig) -> None:
    said = {"what": "MCP server 'a' is not usable", "cause": f"it said {GRANTED.get_secret_value()}", "hint": "try"}
    scripted = Scripted(rig, {"say": [{"refused": said}]})
    with pytest.raises(SpawnRefused) as refused:
        scripted.start()
    assert (refused.value.what, refused.value.cause, refused.value.hint) == (said["what"], f"it said {MASK}", "try")
    assert scripted.gone()
    assert our_threads() == []


@requirement("mcp.start-all-or-nothing")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ({"say": [], "exit": 3, "stderr": f"Traceback: {GRANTED.get_secret_value()}"}, "exit status 3"),
        ({"say": ["not JSON"]}, "not JSON"),
        ({"say": [{"who": "knows"}]}, "no word for"),
        ({"say": [[]]}, "no word for"),
        ({"say": [{"ready": {"port": "many"}}]}, "many"),
        ({"say": ["[" * 100_000]}, "not JSON"),
    ],
)
def test_an_engine_that_dies_or_talks_nonsense_refuses_the_start_and_nothing_is_left(
    rig: Rig, script: dict[str, Any], cause: str
) -> None:
    scripted = Scripted(rig, script)
    with pytest.raises(SpawnRefused, match="did not start") as refused:
        scripted.start()
    assert cause in str(refused.value.cause)
    assert GRANTED.get_secret_value() not in refused.value.diagnostics()
    assert scripted.gone()
    assert our_threads() == []


@requirement("mcp.start-all-or-nothing")
def test_an_engine_that_cannot_be_started_is_said_so(rig: Rig) -> None:
    proxy = rig.make(["echo"], engine=("/no/such/program",))
    with pytest.raises(SpawnRefused, match="cannot be started: No such file"):
        proxy.start()
    with pytest.raises(SpawnRefused, match="was closed before"):
        proxy.start()
    assert our_threads() == []


@requirement("mcp.start-all-or-nothing")
def test_closing_while_the_engine_gets_ready_gives_up_at_once(rig: Rig) -> None:
    scripted = Scripted(rig, {"say": []})
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(scripted.start)
        wait_until(lambda: scripted.told, "the engine is told")
        scripted.proxy.close()
        with pytest.raises(SpawnRefused, match="closed while it started"):
            starting.result()
    assert scripted.gone()


@requirement("mcp.close-leaves-nothing")
def test_closing_tells_the_engine_and_leaves_no_process_thread_descriptor_or_folder(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_descriptors()
    scripted = Scripted(rig, {})
    proxy = scripted.start()
    folder = Path(scripted.about["env"]["TMPDIR"])
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "home").mkdir()
    proxy.close()
    assert {"close": True} in scripted.told
    assert {"closed": True} in scripted.told
    assert scripted.gone()
    assert our_threads() == []
    assert not folder.exists()
    assert len(open_descriptors()) <= len(before)
    assert proxy.failed is None
    proxy.close()
    assert proxy.recheck() is False


@requirement("mcp.engine-killed")
def test_an_engine_that_does_not_close_is_killed(rig: Rig) -> None:
    scripted = Scripted(rig, {"obey": False})
    proxy = scripted.start()
    began = time.monotonic()
    proxy.close()
    assert 4 < time.monotonic() - began < 9
    assert scripted.gone()


@requirement("D8.cut-off")
def test_a_cut_off_returns_when_the_engine_has_taken_it_and_stays(rig: Rig) -> None:
    scripted = Scripted(rig, {})
    proxy = scripted.start()
    proxy.cut_off("revoked")
    assert {"cut": "revoked"} in scripted.told
    after = scripted.told[scripted.told.index({"cut": "revoked"}) :]
    assert after[1]["beat"]["reason"] == "revoked"
    proxy.cut_off("something later")
    rig.stands()
    assert scripted.beats()[-1]["reason"] == "revoked"
    assert proxy.failed is None


@requirement("mcp.engine-killed", "D8.cut-off")
@pytest.mark.parametrize("script", [{"ack": False}, {"read": False}])
def test_an_engine_that_does_not_confirm_a_cut_off_is_killed_within_a_second_or_so(
    rig: Rig, script: dict[str, Any]
) -> None:
    scripted = Scripted(rig, script)
    proxy = scripted.start()
    assert proxy.failed is None
    began = time.monotonic()
    proxy.cut_off("revoked")
    wait_until(scripted.gone, "the engine is dead", 5)
    assert time.monotonic() - began < 4
    wait_until(lambda: proxy.failed is not None, "it is known", 5)
    assert "cut off (signal 9)" in str(proxy.failed)


@requirement("mcp.engine-dies")
def test_an_engine_that_dies_later_is_known_to_have_failed_and_its_last_words_are_masked(rig: Rig) -> None:
    scripted = Scripted(rig, {"stderr": f"it was {GRANTED.get_secret_value()}"})
    proxy = scripted.start()
    os.kill(scripted.about["pid"], 9)
    wait_until(lambda: proxy.failed is not None, "it is known")
    assert f"signal 9); it said: it was {MASK}" in str(proxy.failed)
    assert proxy.recheck() is False
    proxy.cut_off("revoked")
    proxy.close()
    assert our_threads() == []


@requirement("mcp.engine-dies")
def test_an_engine_that_breaks_the_protocol_later_is_killed(rig: Rig) -> None:
    scripted = Scripted(rig, {"echo_cut": READY})
    proxy = scripted.start()
    proxy.cut_off("revoked")
    wait_until(lambda: proxy.failed is not None, "it is known")
    assert "no word for" in str(proxy.failed)
    assert scripted.gone()


@requirement("mcp.dies-with-parent")
def test_a_killed_orchestrator_closes_the_channel(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    program = (
        "import sys, pathlib\n"
        "from agent_token_injector.mcp_proxy.control import Engine\n"
        "engine = Engine(beat=dict, asked=print, scratch=pathlib.Path('/'), command=sys.argv[1:])\n"
        "engine.start({})\n"
        "engine.first(20)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = Scripted.command(log, {"ack": False, "say": [READY]})
    holder = subprocess.Popen([sys.executable, "-c", program, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder, holder.stdout, holder.stdin:
        assert holder.stdout.readline() == b"ready\n"
        holder.kill()
        holder.wait()
        wait_until(lambda: '{"eof": true}' in log.read_text(), "the engine sees the end of the channel")


@requirement("mcp.engine-questions", "mcp.vault-get-secret")
def test_a_builtin_tool_is_run_here_and_what_it_grants_is_learnt_before_it_is_said(rig: Rig) -> None:
    def run(arguments: Mapping[str, Any], record: Recorder) -> BuiltinAnswer:
        record("vault.read", decision=Decision.ALLOWED, target=f"/a/{arguments['n']}\n{VALUE.get_secret_value()}")
        return BuiltinAnswer(VALUE if arguments["n"] == 1 else f"plain {arguments['n']}", is_error=arguments["n"] == 2)

    scripted = Scripted(rig, {"say": [READY, asking(1), asking(2)]}, servers=[builtin(run)])
    scripted.start()
    wait_until(lambda: len(scripted.answers()) == 2, "both are answered")
    value = VALUE.get_secret_value()
    assert scripted.answers() == {
        1: {"id": 1, "text": value, "is_error": False, "granted": True, "learn": [value]},
        2: {"id": 2, "text": "plain 2", "is_error": True, "granted": False, "learn": []},
    }
    first, second = rig.events("vault.read")
    assert (first.surface, first.task_slug) == ("mcp", "founders-checkout")
    assert second.target == f"/a/2\\n{MASK}"


@requirement("D8.audit-before-forward", "mcp.engine-questions")
def test_an_access_that_cannot_be_put_on_record_is_answered_with_that_and_no_value(impatient: Rig) -> None:
    def run(_arguments: Mapping[str, Any], record: Recorder) -> BuiltinAnswer:
        record("vault.read", decision=Decision.ALLOWED, target="/a/b")
        return BuiltinAnswer(VALUE)

    with impatient.audit_held():
        scripted = Scripted(impatient, {"say": [READY, asking(1)]}, servers=[builtin(run)])
        scripted.start()
        wait_until(lambda: 1 in scripted.answers(), "it is answered")
    answer = scripted.answers()[1]
    assert (answer.keys(), answer["audit"]) == ({"id", "failed", "audit"}, True)


@requirement("mcp.engine-questions")
def test_questions_that_cannot_be_answered_are_said_so_and_a_tools_own_fault_tells_nothing(rig: Rig) -> None:
    def run(_arguments: Mapping[str, Any], _record: Recorder) -> BuiltinAnswer:
        raise RuntimeError(f"the driver says {VALUE.get_secret_value()}")

    say = [
        READY,
        asking(1),
        asking(2, tool="another"),
        asking(3, arguments="none"),
        asking(4, kind="oauth"),
        asking(5, kind="gossip"),
    ]
    scripted = Scripted(rig, {"say": say}, servers=[builtin(run)])
    scripted.start()
    wait_until(lambda: len(scripted.answers()) == 5, "all are answered")
    assert {number: answer["failed"] for number, answer in scripted.answers().items()} == {
        1: "it failed (RuntimeError)",
        2: "there is no such tool",
        3: "there is no such tool",
        4: "there is no such server",
        5: "there is nobody to answer this",
    }


@requirement("mcp.engine-questions")
def test_builtin_calls_run_one_at_a_time_and_beats_go_on_meanwhile(rig: Rig) -> None:
    release, running, most = threading.Event(), [0], [0]

    def run(_arguments: Mapping[str, Any], _record: Recorder) -> BuiltinAnswer:
        running[0] += 1
        most[0] = max(most[0], running[0])
        release.wait(20)
        running[0] -= 1
        return BuiltinAnswer("done")

    scripted = Scripted(rig, {"say": [READY, *(asking(n) for n in range(5))]}, servers=[builtin(run)])
    proxy = scripted.start()
    assert proxy.recheck()
    release.set()
    wait_until(lambda: len(scripted.answers()) == 5, "all are answered")
    assert most == [1]


@requirement("mcp.engine-listing")
def test_listing_gives_a_pin_of_each_granted_tool_and_leaves_nothing(tmp_path: Path) -> None:
    definition = {"name": "echo", "description": "does echo", "inputSchema": {"type": "object"}, "x-extra": 1}
    listed = [{"server": "scripted", "tool": "echo", "name": "echo", "definition": definition}]
    log = tmp_path / "engine.log"
    pins = list_tools(
        handoff=HANDOFF,
        grants=grants("echo"),
        excluded=["exit"],
        servers=[StdioServer("scripted", ("server",), env={"KEY": GRANTED})],
        secrets=[GRANTED],
        places=Places(repository="raxx/api"),
        engine=Scripted.command(log, {"say": [{"listed": listed}]}),
    )
    assert pins == [ToolPin.of("scripted", "echo", definition)]
    told = json.loads(log.read_text().splitlines()[1])
    assert (told["listing"], told["listen"]) == (True, {"http": False, "socket": None})
    assert told["places"]["repository"] == "raxx/api"
    assert told["places"]["worktree"] is not None
    assert our_threads() == []
    assert not Path(json.loads(log.read_text().splitlines()[0])["env"]["TMPDIR"]).exists()


@requirement("mcp.engine-listing")
@pytest.mark.parametrize(
    ("say", "message"),
    [
        ([{"refused": {"what": "no", "cause": GRANTED.get_secret_value(), "hint": None}}], f"no: {re.escape(MASK)}"),
        ([{"listed": [{"server": "scripted"}]}], "could not be listed"),
        ([READY], "could not be listed"),
        (["nonsense"], "could not be listed"),
    ],
)
def test_a_listing_that_fails_is_refused_and_leaves_nothing(tmp_path: Path, say: list[Any], message: str) -> None:
    with pytest.raises(SpawnRefused, match=message):
        list_tools(
            handoff=HANDOFF,
            grants=grants("echo"),
            excluded=[],
            servers=[],
            secrets=[GRANTED],
            engine=Scripted.command(tmp_path / "engine.log", {"say": say}),
        )
    assert our_threads() == []


@requirement("mcp.engine-listing")
def test_the_real_engine_lists_what_real_servers_define(rig: Rig) -> None:
    ours = builtin(lambda _arguments, _record: BuiltinAnswer(""))
    pins = list_tools(
        handoff=HANDOFF,
        grants=grants("echo", {"name": "say", "server": "scripted", "tool": "echo"}, "ours_get"),
        excluded=["exit"],
        servers=[rig.scripted(), ours],
        secrets=[GRANTED],
    )
    assert {(pin.server, pin.tool) for pin in pins} == {("scripted", "echo"), ("ours", "get")}
    assert next(pin for pin in pins if pin.tool == "echo").definition["description"] == "does echo"
    assert [one["method"] for one in rig.received() if "id" in one] == ["initialize", "tools/list"]
    with pytest.raises(SpawnRefused, match="'nowhere' is unknown to every server"):
        list_tools(handoff=HANDOFF, grants=grants("nowhere"), excluded=[], servers=[rig.scripted()], secrets=[GRANTED])
    with pytest.raises(SpawnRefused, match=f"it ended; it said: no good with {re.escape(MASK)}"):
        list_tools(
            handoff=HANDOFF,
            grants=grants("echo"),
            excluded=[],
            servers=[rig.scripted(SCRIPTED_START="dies")],
            secrets=[GRANTED],
        )
    assert our_threads() == []


@requirement("mcp.light-imports")
@pytest.mark.parametrize("module", ["engine", "wire", "eras", "grants", "pins", "tool_policy", "handoff_mcp"])
def test_importing_a_module_of_the_engine_loads_nothing_heavy(module: str) -> None:
    heavy = ("pydantic", "mcp", "httpx", "cryptography", "anyio", "uvicorn", "click", "rich")
    probe = (
        f"import sys, agent_token_injector.mcp_proxy.{module}\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
