"""Start, expiry, revocation and end: what is cut, what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy import StdioServer
from agent_token_injector.mcp_proxy.desk import MAX_CALLS
from tests.mcp_proxy.harness import GRANTED, SCRIPTED, TOKEN, RawClient, Rig, children_of, our_threads, wait_until
from tests.requirements import requirement


def servers_running(rig: Rig) -> list[int]:
    """The processes that run a scripted server of this test, told by their environment."""
    mark = f"SCRIPTED_LOG={rig.log}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                alive = mark in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if alive and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


@requirement("D7.server-env-from-nothing")
def test_a_servers_environment_is_exactly_what_it_was_granted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the operator")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    client = RawClient(rig.start(["environ"], secrets=()).url)
    client.initialize()
    told = json.loads(client.call("environ").text)
    home = told["env"]["HOME"]
    assert told["env"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "SCRIPTED_LOG": str(rig.log),
        "GRANTED": GRANTED.get_secret_value(),
    }
    assert told["cwd"] == home
    assert told["home"] == []
    assert Path(home).stat().st_mode & 0o777 == 0o700
    rig.close()
    assert not Path(home).exists()


@requirement("D7.secrets-not-in-repr")
def test_a_servers_secrets_are_in_no_repr_and_no_argv(rig: Rig) -> None:
    server = rig.scripted()
    assert GRANTED.get_secret_value() not in repr(server)
    rig.start(["echo"], servers=[server])
    for pid in servers_running(rig):
        assert GRANTED.get_secret_value().encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


@requirement("mcp.start-all-or-nothing")
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("dies", "it ended; it said: no good with ********"),
        ("silent", "it did not list its tools within 2 s"),
        ("endless", "its tools/list does not end"),
        ("ancient", "it speaks no protocol version"),
    ],
)
def test_a_server_that_does_not_start_refuses_the_spawn_and_nothing_is_left_running(
    rig: Rig, how: str, cause: str
) -> None:
    proxy = rig.make(["echo"], servers=[rig.scripted("good"), rig.scripted("bad", SCRIPTED_START=how)], start_seconds=2)
    with pytest.raises(SpawnRefused) as refused:
        proxy.start()
    assert refused.value.what == "MCP server 'bad' is not usable"
    assert cause in str(refused.value.cause)
    assert GRANTED.get_secret_value() not in refused.value.diagnostics()
    assert servers_running(rig) == []
    assert our_threads() == []


@requirement("mcp.start-all-or-nothing")
def test_a_command_that_is_not_there_is_said_so(rig: Rig) -> None:
    with pytest.raises(SpawnRefused, match="cannot start no-such-mcp-server: No such file"):
        rig.start(["x"], servers=[StdioServer("gone", ("no-such-mcp-server",))])


@requirement("mcp.start-all-or-nothing")
def test_a_grant_that_cannot_be_honoured_leaves_nothing_running(rig: Rig) -> None:
    with pytest.raises(SpawnRefused, match="'nowhere' is unknown to every server"):
        rig.start(["echo", "nowhere"])
    assert servers_running(rig) == []
    with pytest.raises(SpawnRefused, match="lists 'echo' twice"):
        rig.start(["echo"], servers=[rig.scripted(SCRIPTED_START="twice")])
    assert servers_running(rig) == []


@requirement("mcp.close-leaves-nothing")
def test_closing_cuts_the_call_in_flight_and_leaves_no_process_and_no_thread(rig: Rig) -> None:
    proxy = rig.start(["wait", "spawn_child"])
    client = RawClient(proxy.url)
    client.initialize()
    grandchild = int(client.call("spawn_child").text)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, "wait")
        wait_until(lambda: "wait" in rig.calls_received(), "the call arrives")
        began = time.monotonic()
        proxy.close()
        assert call.result().error == {"code": -32001, "message": "This handoff may not act: closed"}
    assert time.monotonic() - began < 5
    assert servers_running(rig) == []
    wait_until(lambda: not Path(f"/proc/{grandchild}").exists() or _is_zombie(grandchild), "the grandchild is gone")
    assert our_threads() == []
    with pytest.raises(OSError):
        client.call("wait")
    proxy.close()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@requirement("mcp.close-leaves-nothing")
def test_closing_ends_a_servers_daemon_of_another_session_that_ignores_sigterm(rig: Rig) -> None:
    proxy = rig.start(["spawn_daemon"])
    client = RawClient(proxy.url)
    client.initialize()
    daemons = [int(client.call("spawn_daemon").text) for _ in range(3)]
    assert set(daemons) < set(servers_running(rig))
    proxy.close()
    assert servers_running(rig) == []
    assert not any(Path(f"/proc/{daemon}").exists() for daemon in daemons)


@requirement("mcp.close-leaves-nothing")
def test_a_server_that_ends_by_itself_takes_its_daemon_along(rig: Rig) -> None:
    client = RawClient(rig.start(["spawn_daemon", "exit"]).url)
    client.initialize()
    client.call("spawn_daemon")
    assert len(servers_running(rig)) > 1
    assert "it ended" in client.call("exit").error["message"]
    wait_until(lambda: servers_running(rig) == [], "the daemon is gone")


@requirement("mcp.close-leaves-nothing")
def test_a_servers_supervisor_that_was_told_to_end_ends_the_tree_and_one_that_was_stopped_still_does(rig: Rig) -> None:
    for number in (signal.SIGTERM, signal.SIGSTOP):
        proxy = rig.start(["spawn_daemon"])
        client = RawClient(proxy.url)
        client.initialize()
        client.call("spawn_daemon")
        (supervisor,) = _supervisors()
        os.kill(supervisor, number)
        if number == signal.SIGTERM:
            wait_until(lambda: servers_running(rig) == [], "the tree is gone")
        proxy.close()
        assert servers_running(rig) == []


@requirement("mcp.close-leaves-nothing")
def test_killing_a_servers_supervisor_ends_the_server_and_closing_finds_what_it_left_behind(rig: Rig) -> None:
    proxy = rig.start(["spawn_daemon", "spawn_child"])
    client = RawClient(proxy.url)
    client.initialize()
    (first,) = servers_running(rig)
    client.call("spawn_daemon")
    client.call("spawn_child")
    (supervisor,) = _supervisors()
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: first not in servers_running(rig), "the server is gone")
    proxy.close()
    assert servers_running(rig) == []


def _supervisors() -> list[int]:
    """The processes that run child_main.py for an engine of ours."""
    engines = children_of([os.getpid()], b"mcp_proxy.engine")
    return children_of(engines, b"child_main.py")


@requirement("D7.secrets-not-in-repr")
def test_a_servers_secrets_are_not_in_its_supervisors_environment_or_argv(rig: Rig) -> None:
    rig.start(["echo"])
    (supervisor,) = _supervisors()
    for of in ("environ", "cmdline"):
        try:
            shown = Path(f"/proc/{supervisor}/{of}").read_bytes()
        except PermissionError:
            continue
        assert GRANTED.get_secret_value().encode() not in shown


@requirement("mcp.dies-with-parent")
def test_servers_die_with_the_proxys_process_even_when_it_is_killed(rig: Rig) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.mcp_proxy.servers.proxy_process", str(rig.path)],
        env={**os.environ, "TMPDIR": str(rig.path)},  # a killed proxy cannot remove its servers' homes
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder, holder.stdout, holder.stdin:
        daemon = int(json.loads(holder.stdout.readline())["daemon"])
        assert len(servers_running(rig)) > 1
        assert daemon in servers_running(rig)
        holder.kill()
        holder.wait()
        wait_until(lambda: servers_running(rig) == [], "the server and its daemons are gone")


@requirement("D8.audit-before-forward")
def test_what_cannot_be_put_on_record_is_not_done(impatient: Rig) -> None:
    rig = impatient
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    client.ask("tools/list")
    with rig.audit_held():
        for answer in (client.call("echo", {"text": "x"}), client.ask("tools/list")):
            assert answer.error == {"code": -32603, "message": "Audit unavailable: nothing was done"}
        assert client.call("forbidden").error["message"] == "Unknown tool: forbidden"
    assert rig.calls_received() == []
    assert client.call("echo", {"text": "x"}).text == '{"text": "x"}'


@requirement("D8.recheck-standing")
@pytest.mark.parametrize("reason", ["revoked", "vault-unreachable"])
def test_revocation_is_seen_by_the_next_request_and_ends_the_call_in_flight(rig: Rig, reason: str) -> None:
    client = RawClient(rig.start(["wait", "echo"]).url)
    client.initialize()
    assert client.call("echo", {"text": "x"}).status == 200
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, "wait", message_id=7)
        wait_until(lambda: "wait" in rig.calls_received(), "the call arrives")
        rig.stands(reason)
        assert call.result().error == {"code": -32001, "message": f"This handoff may not act: {reason}"}
    for method in ("tools/list", "ping", "initialize"):
        assert client.ask(method).status == 403
    assert client.call("echo", {"text": "y"}).error["message"].endswith(reason)
    assert rig.events("tool.denied")[-1].reason == reason
    assert rig.calls_received() == ["echo", "wait"]
    wait_until(lambda: rig.received()[-1]["method"] == "notifications/cancelled", "the server is told")


@requirement("D8.recheck-standing")
def test_a_check_that_fails_is_a_no(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    rig.stands(broken=True)
    assert client.call("echo", {"text": "x"}).error["message"].endswith("unchecked")
    assert rig.calls_received() == []


@requirement("D8.recheck-standing")
def test_expiry_ends_calls_in_flight_and_refuses_what_follows(rig: Rig) -> None:
    client = RawClient(rig.start(["wait", "echo"]).url)
    client.initialize()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, "wait")
        wait_until(lambda: "wait" in rig.calls_received(), "the call arrives")
        rig.advance(timedelta(hours=1))
        assert call.result().error["message"].endswith("expired")
    assert client.call("echo", {"text": "x"}).status == 403
    assert rig.events("tool.denied")[-1].reason == "expired"


@requirement("D8.cut-off")
def test_a_cut_off_is_at_once_and_for_good(rig: Rig) -> None:
    proxy = rig.start(["wait", "echo"])
    client = RawClient(proxy.url)
    client.initialize()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call_stateless, "wait")
        wait_until(lambda: "wait" in rig.calls_received(), "the call arrives")
        proxy.cut_off("revoked")
        assert call.result().error["message"].endswith("revoked")
    proxy.cut_off("something later")
    assert client.call("echo", {"text": "x"}).error["message"].endswith("revoked")
    assert rig.calls_received() == ["wait"]


@requirement("D8.minted-ids")
def test_a_second_request_with_an_id_in_flight_is_refused_but_another_session_may_use_it(rig: Rig) -> None:
    proxy = rig.start(["wait", "echo"])
    client, other = RawClient(proxy.url), RawClient(proxy.url)
    client.initialize()
    other.initialize()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, "wait", message_id=5)
        wait_until(lambda: "wait" in rig.calls_received(), "the call arrives")
        for method, message_id in (("tools/call", 5), ("tools/call", "5"), ("tools/list", 5)):
            params = {"name": "echo", "arguments": {"text": "x"}} if method == "tools/call" else {}
            assert (
                client.ask(method, params, message_id=message_id).error["message"]
                == "Invalid Request: this id is in flight"
            )
        assert other.call("echo", {"text": "x"}, message_id=5).status == 200
        assert rig.events("tool.denied")[-1].reason == "duplicate-id"
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
        assert other.send(json.dumps(note).encode()).status == 202
        assert client.send(json.dumps(note).encode()).status == 202
        assert call.result().error == {"code": -32000, "message": "Request cancelled"}
    assert rig.calls_received() == ["wait", "echo"]


@requirement("mcp.in-flight-cap")
def test_more_calls_than_the_cap_wait_over_stdio_and_are_refused_over_http(rig: Rig) -> None:
    proxy = rig.start(["wait"])
    client = RawClient(proxy.url)
    client.initialize()
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    call = {"name": "wait", "arguments": {}}
    asked = [("initialize", hello), *[("tools/call", call)] * (MAX_CALLS + 10)]
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(proxy.socket_path))
        line.sendall(f"HANDOFF-MCP/1 bytes {TOKEN.get_secret_value()}\n".encode())
        assert line.recv(3) == b"OK\n"
        for number, (method, params) in enumerate(asked):
            document = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            line.sendall(json.dumps(document).encode() + b"\n")
        wait_until(lambda: len(rig.calls_received()) >= MAX_CALLS, "the calls arrive", 30)
        assert client.call("wait", message_id="one more").error["message"] == "Too many calls in flight"
        assert len(rig.calls_received()) == MAX_CALLS
        proxy.cut_off("revoked")
    assert len(rig.calls_received()) == MAX_CALLS


@requirement("mcp.start-all-or-nothing")
def test_two_servers_of_one_name_and_an_empty_token_are_refused(rig: Rig) -> None:
    with pytest.raises(SpawnRefused, match="one name"):
        rig.make(servers=[rig.scripted(), rig.scripted()])
    with pytest.raises(SpawnRefused, match="no bearer token"):
        rig.make(token=SecretStr(""))


@requirement("mcp.upstream-dies")
def test_a_server_that_ignores_every_polite_end_is_killed(rig: Rig) -> None:
    stubborn = (
        "import signal,runpy,sys,time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"runpy.run_path({SCRIPTED!r})\n"
        "time.sleep(600)\n"
    )
    server = StdioServer("scripted", (sys.executable, "-c", stubborn), env=rig.scripted().env)
    proxy = rig.start(["echo"], servers=[server])
    (pid,) = servers_running(rig)
    os.kill(pid, signal.SIGTERM)
    proxy.close()
    assert servers_running(rig) == []


@requirement("mcp.start-all-or-nothing")
def test_closing_while_servers_start_gives_up_at_once(rig: Rig) -> None:
    proxy = rig.make(["echo"], servers=[rig.scripted(SCRIPTED_START="silent")])
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(proxy.start)
        wait_until(rig.received, "the server is greeted")
        proxy.close()
        with pytest.raises(SpawnRefused, match="closed while it started"):
            starting.result()
    assert servers_running(rig) == []
