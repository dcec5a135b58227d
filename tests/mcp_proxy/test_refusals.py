"""What a hostile agent gets: the same refusal whatever it tries, and nothing reaches a server."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr

from tests.mcp_proxy.harness import META, STATELESS, TOKEN, RawClient, Rig, wait_until
from tests.requirements import requirement

NARROW = {
    "name": "say",
    "server": "scripted",
    "tool": "echo",
    "arguments": {"properties": {"text": {"const": "hello"}}, "required": ["text"]},
}
OK = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"forbidden","arguments":{}}}'


@pytest.fixture
def client(rig: Rig) -> RawClient:
    made = RawClient(rig.start(["echo", NARROW], excluded=["exit"]).url)
    made.initialize()
    return made


def reached(rig: Rig) -> list[str]:
    return rig.calls_received()


def last_reason(rig: Rig) -> str:
    return rig.events("tool.denied")[-1].reason


@requirement("mcp.refused-like-absent")
def test_a_tool_that_is_not_granted_is_byte_for_byte_one_that_does_not_exist_and_the_audit_tells_them_apart(
    rig: Rig, client: RawClient
) -> None:
    answers = {name: client.call(name) for name in ("forbidden", "exit", "nowhere", "scripted_forbidden")}
    for name, answer in answers.items():
        assert answer.status == 200
        assert answer.body.replace(name.encode(), b"NAME") == (
            b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Unknown tool: NAME"}}'
        )
    assert [event.reason for event in rig.events("tool.denied")] == ["not-listed", "excluded", "unknown", "not-listed"]
    assert reached(rig) == []


@requirement("mcp.exact-names")
@pytest.mark.parametrize(
    "name",
    [
        "Echo",
        "ECHO",
        " echo",
        "echo ",
        "echo\u0000",
        "\uff45cho",
        "ech\u043e",
        "scripted/echo",
        "",
        "echo\n",
        "x" * 9000,
    ],
)
def test_a_name_that_only_looks_like_a_granted_one_is_unknown(rig: Rig, client: RawClient, name: str) -> None:
    assert client.call(name, {"text": "x"}).error["message"] == f"Unknown tool: {name[:256]}"
    assert reached(rig) == []


@requirement("mcp.argument-schema")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"text": "other-value"}, "arguments"), ({}, "arguments"), ({"text": "hello", "count": "one"}, "tool-schema")],
)
def test_arguments_outside_the_grant_or_the_tools_own_schema_never_reach_it_and_are_not_echoed(
    rig: Rig, client: RawClient, arguments: Any, reason: str
) -> None:
    answer = client.call("say", arguments)
    assert answer.error["code"] == -32602
    assert "say" in answer.error["message"]
    assert b"other-value" not in answer.body
    assert last_reason(rig) == reason
    assert reached(rig) == []
    assert client.call("say", {"text": "hello"}).text == '{"text": "hello"}'


@requirement("D8.deny-methods")
@pytest.mark.parametrize(
    "method",
    [
        "resources/list", "resources/read", "resources/templates/list", "resources/subscribe", "prompts/list",
        "prompts/get", "completion/complete", "logging/setLevel", "sampling/createMessage", "elicitation/create",
        "roots/list", "tasks/get", "tasks/result", "tasks/cancel", "tools/Call", "tools/call ",
        "x/custom", "rpc.discover",
    ],
)  # fmt: skip
def test_every_method_that_is_not_served_is_unknown_in_both_eras(rig: Rig, client: RawClient, method: str) -> None:
    before = rig.received()
    old = client.ask(method, {"name": "echo", "arguments": {"text": "x"}})
    assert (old.status, old.error["code"]) == (200, -32601)
    new = client.ask_stateless(method, headers={"Mcp-Method": method.strip()})
    assert (new.status, new.error["code"]) == ((404, -32601) if method == method.strip() else (400, -32020))
    assert rig.received() == before


@requirement("D8.deny-methods")
@pytest.mark.parametrize("method", ["initialize", "ping"])
def test_the_stateless_era_has_no_handshake(client: RawClient, method: str) -> None:
    assert client.ask_stateless(method).error["code"] == -32601


@requirement("D8.strict-parse")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (OK.replace(b'"name"', b'"name":"echo","name"'), -32700),
        (OK.replace(b'"method"', b'"method":"ping","method"'), -32700),
        (OK.replace(b'"params"', b'"params":{},"params"'), -32700),
        (OK.replace(b'"name"', b'"name":"echo","n\\u0061me"'), -32700),
        (OK.replace(b'"jsonrpc"', b'"result":{},"jsonrpc"'), -32600),
        (OK.replace(b'"jsonrpc"', b'"error":{},"jsonrpc"'), -32600),
        (OK.replace(b'"jsonrpc"', b'"Method":"ping","jsonrpc"'), -32600),
        (OK.replace(b'"2.0"', b"2.0"), -32600),
        (OK.replace(b'"id":1', b'"id":null'), -32600),
        (OK.replace(b'"id":1', b'"id":1.5'), -32600),
        (OK.replace(b'"id":1', b'"id":true'), -32600),
        (OK.replace(b'"id":1', b'"id":[1]'), -32600),
        (OK.replace(b'"id":1,', b""), -32601),
        (b"[" + OK + b"]", -32600),
        (b"[]", -32600),
        (b"\xef\xbb\xbf" + OK, -32700),
        (OK.decode().encode("utf-16"), -32700),
        (OK.replace(b"forbidden", b"forb\xffidden"), -32700),
        (OK.replace(b"forbidden", b"forb\\ud800idden"), -32700),
        (OK.replace(b"{}", b'{"x":NaN}'), -32700),
        (OK.replace(b"{}", b'{"x":1e999}'), -32700),
        (OK.replace(b"{}", b'{"x":9007199254740993}'), -32700),
        (OK.replace(b"{}", b'{"x":' + b"9" * 5000 + b"}"), -32700),
        (OK.replace(b"{}", b'{"x":' + b"[" * 70 + b"]" * 70 + b"}"), -32700),
        (OK.replace(b"{}", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), -32700),
        (OK + OK, -32700),
        (b"", -32700),
        (b"null", -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}', -32600),
        (OK.replace(b'"name":"forbidden"', b'"Name":"echo"'), -32602),
        (OK.replace(b'"name":"forbidden"', b'"name":["echo"]'), -32602),
        (OK.replace(b'"arguments":{}', b'"arguments":[]'), -32602),
        (OK.replace(b'"arguments":{}', b'"arguments":null'), -32602),
        (OK.replace(b'"arguments":{}', b'"task":{"ttl":1}'), -32602),
        (OK.replace(b'"arguments":{}', b'"inputResponses":{}'), -32602),
        (OK.replace(b"tools/call", b"tools/list"), -32602),
    ],
)  # fmt: skip
def test_a_message_that_two_parsers_could_read_differently_is_refused_and_put_on_record(
    rig: Rig, client: RawClient, body: bytes, code: int
) -> None:
    answer = client.send(body)
    assert answer.error["code"] == code
    assert rig.events("tool.denied")
    assert reached(rig) == []


@requirement("mcp.headers-agree")
@pytest.mark.parametrize(
    "headers",
    [
        {"Mcp-Name": "echo"},
        {"Mcp-Name": "=?base64?ZWNobw==?="},
        {"Mcp-Name": "=?base64?Zm9yYmlkZGVu====?="},
        {"Mcp-Name": None},
        {"Mcp-Method": "tools/list"},
        {"Mcp-Method": None},
        {"MCP-Protocol-Version": "2025-11-25"},
        {"MCP-Protocol-Version": None},
    ],
)
def test_a_stateless_request_whose_headers_do_not_say_what_its_body_says_is_refused(
    rig: Rig, client: RawClient, headers: dict[str, str | None]
) -> None:
    answer = client.call_stateless("forbidden", headers=headers)
    assert (answer.status, answer.error["code"]) == (400, -32020)
    assert last_reason(rig) == "headers"
    assert client.call_stateless("echo", {"text": "x"}, headers={"Mcp-Name": "=?base64?ZWNobw==?="}).status == 200
    assert reached(rig) == ["echo"]


@requirement("mcp.headers-agree")
@pytest.mark.parametrize("name", ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "mcp-session-id"])
def test_a_routing_header_that_comes_twice_is_refused(rig: Rig, client: RawClient, name: str) -> None:
    twice = [(name, "tools/call"), (name, "tools/call")]
    answer = client.send(OK, twice)
    assert (answer.status, answer.error["code"]) == (400, -32020)
    assert reached(rig) == []


@requirement("mcp.headers-agree")
def test_an_old_or_absent_version_header_does_not_hide_what_the_body_says(rig: Rig, client: RawClient) -> None:
    lying = client.ask("tools/call", {"name": "forbidden"}, headers={"Mcp-Name": "echo"})
    assert lying.error["code"] == -32020
    unknown = client.ask("tools/list", headers={"MCP-Protocol-Version": "2031-01-01"})
    assert (unknown.status, unknown.error["code"]) == (400, -32022)
    future = {**META, "io.modelcontextprotocol/protocolVersion": "2031-01-01"}
    both = client.ask_stateless("tools/list", {"_meta": future}, {"MCP-Protocol-Version": "2031-01-01"})
    assert both.error["code"] == -32022
    assert STATELESS in both.error["data"]["supported"]
    bare = client.send(b'{"jsonrpc":"2.0","id":1,"method":"server/discover"}')
    assert bare.error["code"] == -32602
    assert reached(rig) == []


@requirement("mcp.token-required")
@pytest.mark.parametrize(
    "value",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN.get_secret_value()}", TOKEN.get_secret_value(),
     f"Bearer {TOKEN.get_secret_value()}x", f"Bearer {TOKEN.get_secret_value()[:-1]}", f"Bearer {TOKEN.get_secret_value()} x"],
)  # fmt: skip
def test_without_this_handoffs_token_nothing_is_answered(rig: Rig, client: RawClient, value: str | None) -> None:
    answer = client.ask("tools/list", headers={"Authorization": value})
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert last_reason(rig) == "unauthenticated"
    assert client.send(OK, [("Authorization", "Bearer x")]).status == 401


@requirement("mcp.token-required")
def test_the_token_of_one_handoff_opens_no_other_proxy(rig: Rig, tmp_path: Any, client: RawClient) -> None:
    stranger = RawClient(f"http://{client.authority}/mcp", SecretStr("bearer-of-another-handoff"))
    assert stranger.initialize().status == 401


@requirement("mcp.dns-rebinding")
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1:1"}, {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://localhost@evil.example"},
    ],
)  # fmt: skip
def test_another_host_or_origin_is_forbidden(rig: Rig, client: RawClient, headers: dict[str, str | None]) -> None:
    assert client.ask("tools/list", headers=headers).status == 403
    assert client.ask("tools/list", headers={"Origin": "http://localhost:6274"}).status == 200


@requirement("mcp.one-address")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/mcp", 405), ("PATCH", "/mcp", 405), ("OPTIONS", "/mcp", 405), ("HEAD", "/mcp", 405),
        ("POST", "/mcp/", 404), ("POST", "/", 404), ("POST", "/mcp?x=1", 404), ("POST", "/%6dcp", 404), ("POST", "//mcp", 404),
        ("POST", "/sse", 404), ("POST", "/messages", 404), ("POST", "/x/../mcp", 404),
    ],
)  # fmt: skip
def test_there_is_one_address(rig: Rig, client: RawClient, method: str, path: str, status: int) -> None:
    assert client.send(OK, method=method, path=path).status == status
    assert reached(rig) == []


@requirement("mcp.form")
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"}, {"Content-Type": None}, {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Encoding": "gzip"},
    ],
)  # fmt: skip
def test_another_form_than_plain_json_is_refused(rig: Rig, client: RawClient, headers: dict[str, str | None]) -> None:
    assert client.ask("tools/list", headers=headers).status == 415
    assert client.ask("tools/list", headers={"Content-Type": "application/json; charset=UTF-8"}).status == 200


@requirement("mcp.size-cap")
def test_a_body_past_the_limit_is_cut_off_by_its_declared_and_by_its_real_size(rig: Rig, client: RawClient) -> None:
    assert client.send(b"x", {"Content-Length": str(11 * 1024 * 1024)}).status == 413
    chunk = b"%x\r\n%b\r\n" % (1024 * 1024, b" " * 1024 * 1024)
    try:
        answer = client.send(chunk * 12 + b"0\r\n\r\n", {"Content-Length": None, "Transfer-Encoding": "chunked"})
    except (BrokenPipeError, ConnectionResetError):
        pass  # cut off while it was still sending
    else:
        assert answer.status == 413
    assert last_reason(rig) == "malformed"


@requirement("mcp.sessions")
def test_a_handshake_session_is_needed_ours_and_over_when_it_was_ended(rig: Rig, client: RawClient) -> None:
    session = client.session
    for other, status in ((None, 400), ("guess", 404)):
        client.session = other
        assert client.call("echo", {"text": "x"}).status == status
        assert last_reason(rig) == "session"
    client.session = session
    assert client.send(b"", method="DELETE").status == 200
    assert client.send(b"", method="DELETE").status == 404
    assert client.call("echo", {"text": "x"}).status == 404
    assert reached(rig) == []


@requirement("mcp.sessions")
def test_more_sessions_than_are_kept_push_out_the_one_unused_for_longest(client: RawClient) -> None:
    first = client.session
    for _ in range(64):
        client.initialize()
    assert client.ask("ping").status == 200
    client.session = first
    assert client.ask("ping").status == 404


@requirement("D8.deny-methods")
def test_notifications_that_mean_nothing_here_are_refused_and_those_of_the_protocol_are_taken(
    rig: Rig, client: RawClient
) -> None:
    def note(method: str) -> int:
        return client.send(json.dumps({"jsonrpc": "2.0", "method": method}).encode()).status

    assert note("notifications/initialized") == 202
    assert note("notifications/cancelled") == 202
    assert note("notifications/roots/list_changed") == 202
    assert note("notifications/of/nobody") == 400
    assert note("tools/call") == 400
    assert len(rig.received()) == 3


def strangers(rig: Rig) -> list[tuple[str, int]]:
    denied = rig.events("tool.denied")
    return [(event.reason, event.detail["requests"]) for event in denied if "requests" in event.detail]


@requirement("mcp.strangers-coalesced")
def test_refusals_of_strangers_share_one_event_per_reason_and_second_and_none_is_lost(rig: Rig) -> None:
    proxy = rig.start(["echo"])
    stranger = RawClient(proxy.url, SecretStr("wrong"))
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert {one.status for one in pool.map(lambda _: stranger.initialize(), range(50))} == {401}
    assert stranger.ask("ping", headers={"Host": "evil.example"}).status == 403
    assert ("headers", 1) in strangers(rig)
    wait_until(lambda: refused_as_strangers(rig) == 50, "the count is written without another request")
    assert len(strangers(rig)) <= 3 + (time.monotonic() - began)
    for _ in range(7):
        assert stranger.initialize().status == 401
    proxy.close()
    assert refused_as_strangers(rig) == 57
    before = strangers(rig)
    proxy.close()
    assert strangers(rig) == before


def refused_as_strangers(rig: Rig) -> int:
    return sum(count for reason, count in strangers(rig) if reason == "unauthenticated")


@requirement("mcp.strangers-coalesced", "H5.one-event-per-access")
def test_refusals_of_the_agent_itself_have_an_event_each(rig: Rig, client: RawClient) -> None:
    for _ in range(5):
        client.call("forbidden")
        client.ask("tools/list", headers={"Content-Type": "text/plain"})
    assert [event.reason for event in rig.events("tool.denied")] == ["not-listed", "malformed"] * 5


@requirement("mcp.strangers-coalesced")
def test_strangers_are_refused_and_counted_while_nothing_can_be_written(impatient: Rig) -> None:
    rig = impatient
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    stranger = RawClient(rig.proxies[-1].url, SecretStr("wrong"))
    client.call("forbidden")
    with rig.audit_held():
        for _ in range(3):
            assert stranger.initialize().status == 401
    wait_until(lambda: rig.events("tool.denied")[-1].reason == "unauthenticated", "the count is written")
    assert refused_as_strangers(rig) == 3
