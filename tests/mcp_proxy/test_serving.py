"""What an allowed agent gets: the allowlist, its calls, its results, in both eras."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from tests.mcp_proxy.harness import GRANTED, HANDOFF, RawClient, Rig
from tests.requirements import requirement


@requirement("mcp.allowlist-exact")
@pytest.mark.parametrize("era", ["handshake", "stateless"])
def test_the_list_shows_exactly_the_allowlist_and_of_each_definition_what_is_pinned(rig: Rig, era: str) -> None:
    proxy = rig.start(["scripted_echo", {"name": "look", "server": "scripted", "tool": "environ"}])
    client = RawClient(proxy.url)
    if era == "handshake":
        client.initialize()
        tools = client.ask("tools/list").json["result"]["tools"]
    else:
        tools = client.ask_stateless("tools/list").json["result"]["tools"]
    assert proxy.tools == ("scripted_echo", "look")
    assert [tool["name"] for tool in tools] == ["scripted_echo", "look"]
    assert tools[0].keys() <= {"name", "title", "description", "inputSchema", "outputSchema", "annotations"}
    assert tools[0]["inputSchema"]["required"] == ["text"]


@requirement("mcp.empty-allows-nothing")
def test_no_grants_allow_nothing(rig: Rig) -> None:
    client = RawClient(rig.start([]).url)
    client.initialize()
    assert client.ask("tools/list").json["result"]["tools"] == []
    assert client.call("echo", {"text": "x"}).error["code"] == -32602
    assert rig.calls_received() == []


@requirement("D8.canonical-bytes", "D8.minted-ids")
@pytest.mark.parametrize("message_id", [0, 7, "seven", "", -3, 2**53 - 1])
def test_a_call_is_forwarded_in_our_own_bytes_under_our_own_id_and_answered_under_the_clients(
    rig: Rig, message_id: object
) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    body = (
        '{ "id": ID,\r\n "method":"tools\\/c\\u0061ll", "jsonrpc" : "2.0",\r\r'
        '"params": {"arguments": {"text": "\u2028é\\n"}, "name": "\\u0065cho", "_meta": {"progressToken": 9, "x": 1}}}'
    )
    answer = client.send(body.replace("ID", json.dumps(message_id)).encode())
    assert answer.json["id"] == message_id
    assert json.loads(answer.text) == {"text": "\u2028é\n"}
    last = rig.log.read_bytes().splitlines()[-1]
    assert last == (
        b'{"jsonrpc":"2.0","id":3,"method":"tools/call",'
        b'"params":{"name":"echo","arguments":{"text":"\\u2028\\u00e9\\n"},"_meta":{"progressToken":3}}}'
    )


@requirement("mcp.declares-tools-only")
def test_both_greetings_declare_tools_and_nothing_else(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    hello = client.initialize().json["result"]
    assert hello["capabilities"] == {"tools": {"listChanged": True}}
    assert hello["protocolVersion"] == "2025-11-25"
    assert hello["serverInfo"]["name"] == "agent-token-injector"
    assert "instructions" not in hello
    found = client.ask_stateless("server/discover").json["result"]
    assert found["capabilities"] == {"tools": {"listChanged": True}}
    assert found["supportedVersions"] == ["2026-07-28"]
    assert client.ask("ping").json["result"] == {}


@requirement("mcp.private-cache")
def test_a_filtered_list_is_private_and_kept_no_longer_than_the_handoff_lives(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    for method in ("tools/list", "server/discover"):
        result = client.ask_stateless(method).json["result"]
        assert (result["cacheScope"], result["ttlMs"], result["resultType"]) == ("private", 300_000, "complete")
    rig.advance(timedelta(minutes=59, seconds=50))
    assert 0 < client.ask_stateless("tools/list").json["result"]["ttlMs"] <= 10_000


@requirement("mcp.results-masked")
@pytest.mark.parametrize("era", ["handshake", "stateless"])
def test_a_secret_in_a_result_or_an_error_is_masked_and_counted(rig: Rig, era: str) -> None:
    client = RawClient(rig.start(["reveal", "fail"]).url)
    client.initialize()
    call = client.call if era == "handshake" else client.call_stateless
    shown, failed = call("reveal"), call("fail")
    assert shown.text == "the token is ********"
    assert failed.error == {"code": -32050, "message": "no: ********", "data": {"token": "********"}}
    assert GRANTED.get_secret_value().encode() not in shown.body + failed.body
    ends = rig.events("tool.result")
    assert [(end.decision, end.reason, end.detail["masked"]) for end in ends] == [
        ("done", "", 1),
        ("failed", "upstream-error", 0),
    ]


@requirement("H5.one-event-per-access", "D8.audit-before-forward")
def test_every_access_is_one_event_with_the_task_slug_and_a_digest_in_place_of_arguments(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    client.ask("tools/list")
    client.call("echo", {"text": "private words"})
    client.call("forbidden")
    events = rig.events()
    assert [(event.action, event.decision, event.reason) for event in events] == [
        ("tool.listed", "allowed", ""),
        ("tool.call", "allowed", ""),
        ("tool.result", "done", ""),
        ("tool.denied", "refused", "not-listed"),
    ]
    assert {event.task_slug for event in events} == {"founders-checkout"}
    call = events[1]
    assert call.target == "scripted/echo"
    assert call.detail["request_bytes"] == len(b'{"text":"private words"}')
    assert len(str(call.detail["arguments_sha256"])) == 64
    assert "private words" not in (rig.path / "audit" / f"{HANDOFF}.jsonl").read_text()


@requirement("mcp.upstream-cannot-initiate")
def test_a_servers_own_requests_are_refused_and_its_strays_are_dropped(rig: Rig) -> None:
    client = RawClient(rig.start(["ask_back", "answer_others"]).url)
    client.initialize()
    refused = json.loads(client.call("ask_back").text)
    assert refused == {"jsonrpc": "2.0", "id": "mine", "error": {"code": -32601, "message": "Method not found"}}
    assert client.call("answer_others").text == "mine"


@requirement("mcp.upstream-cannot-initiate")
@pytest.mark.parametrize(
    ("tool", "said"), [("nan", "cannot be read safely"), ("task", "is not a result of what it was asked")]
)
def test_an_answer_that_is_not_a_tools_result_fails_its_call_and_no_other(rig: Rig, tool: str, said: str) -> None:
    client = RawClient(rig.start([tool, "echo"]).url)
    client.initialize()
    assert said in client.call(tool).error["message"]
    assert client.call("echo", {"text": "on"}).text == '{"text": "on"}'


@requirement("mcp.upstream-dies")
def test_the_calls_of_a_server_that_died_fail_with_an_error(rig: Rig) -> None:
    client = RawClient(rig.start(["exit", "echo"]).url)
    client.initialize()
    assert "failed: it ended" in client.call("exit").error["message"]
    assert "failed: it ended" in client.call("echo", {"text": "x"}).error["message"]


@requirement("mcp.list-all-pages")
def test_a_paged_list_is_read_to_its_end(rig: Rig) -> None:
    proxy = rig.start(["forbidden"], servers=[rig.scripted(SCRIPTED_START="pages")])
    assert proxy.tools == ("forbidden",)
