"""Mutations of valid messages through the real fronts of one proxy, and of the strict reading against other readers.

Whatever is sent: the proxy stays up, each reply is one line of JSON-RPC, and the server is sent nothing but our own
bytes, under our own ids, for tools that were granted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

from agent_token_injector.mcp_proxy import wire
from tests.mcp_proxy.corpus.fronts import StdioClient, canonical, request, stdio_client
from tests.mcp_proxy.harness import STATELESS, RawClient, Rig
from tests.requirements import requirement

CALL = {"name": "echo", "arguments": {"text": "h\u00e9 \u2028", "count": 3}}
SEEDS = [
    request(method, params, era=era, message_id=message_id)
    for era in ("handshake", "stateless")
    for method, params, message_id in (
        ("tools/call", CALL, 1),
        ("tools/call", {**CALL, "name": "forbidden"}, "two"),
        ("tools/list", {}, 3),
        ("server/discover", {}, 4),
        ("resources/read", {"uri": "x://a"}, 5),
    )
] + [
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"content":[]}}',
]
PIECES = [
    b"forbidden", b'"name":"forbidden"', b'"method":"tools/call"', b'"id":1', b'"result":{}', b"\\u0066", b"\\ud800", b"\r",
    b"\xe2\x80\xa8", b"\xc2\x85", b"\xff", b"\x00", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"NaN", b"1e999",
    b"-0", b"9007199254740993", b"\xef\xbb\xbf", b" ", b"null", b"true", b"\xc5\xbf", b"//",
]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid message with some of its bytes flipped, cut, inserted, repeated or spelled differently."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["flip", "insert", "cut", "repeat", "truncate", "escape", "swap", "member"])):
            case "flip" if at < len(raw):
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                raw[at:at] = draw(st.sampled_from(PIECES) | st.binary(max_size=6))
            case "cut":
                del raw[at:end]
            case "repeat":
                raw[at:at] = raw[at:end]
            case "truncate" if at > len(raw) // 2:
                del raw[at:]
            case "escape" if at < len(raw) and chr(raw[at]).isalnum():
                raw[at : at + 1] = b"\\u%04x" % raw[at]
            case "swap" if end < len(raw):
                raw[at:end] = bytes(reversed(raw[at:end]))
            case "member":
                raw = bytearray(_with_member(bytes(raw), draw))
    return bytes(raw)


def _with_member(raw: bytes, draw: st.DrawFn) -> bytes:
    """The message with one of its members doubled or moved; itself when it is none any more."""
    try:
        document = json.loads(raw)
        objects = [document, document["params"], document["params"]["arguments"]]
    except (ValueError, KeyError, TypeError):
        return raw
    found = draw(st.sampled_from(objects))
    if not isinstance(found, dict) or not found:
        return raw
    members = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in found.items()]
    members.append(draw(st.sampled_from([*members, '"name":"forbidden"', '"Name":"forbidden"', '"_meta":{"x":1}'])))
    text = "{" + ",".join(draw(st.permutations(members))) + "}"
    return json.dumps(document).replace(json.dumps(found), text, 1).encode()


class Target:
    """One long-lived proxy before the scripted server, and a client on each front."""

    def __init__(self, rig: Rig, stack: ExitStack) -> None:
        self.rig = rig
        self.proxy = rig.start(["echo"])
        self.http = RawClient(self.proxy.url)
        self.http.initialize()
        self.stdio: StdioClient = stack.enter_context(stdio_client(self.proxy.socket_path))
        self.stdio.initialize()
        self.probes = 0
        self._read = 0
        self._last = 0

    def probe(self) -> bytes:
        """The line of an allowed call that is sent behind a mutation."""
        self.probes += 1
        params = {"name": "echo", "arguments": {"text": "probe"}}
        return request("tools/call", params, message_id=f"probe-{self.probes}")

    def check_server(self) -> None:
        """Hold what the server was sent since the last time to what it may ever be sent."""
        with self.rig.log.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        self._read += len(found)
        for line in found.splitlines(keepends=True):
            message = canonical(line)
            if message["method"] == "notifications/cancelled":
                continue
            if "id" in message:
                assert type(message["id"]) is int
                assert message["id"] > self._last
                self._last = message["id"]
            if message["method"] == "tools/call":
                assert message["params"]["name"] == "echo"
                assert message["params"].keys() <= {"name", "arguments", "_meta"}
            else:
                assert message["method"] in {"initialize", "notifications/initialized", "tools/list"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with ExitStack() as stack:
        rig = Rig(tmp_path_factory.mktemp("fuzz"))
        stack.callback(rig.close)
        yield Target(rig, stack)


bounded = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)


@requirement("D8.nothing-else-reaches", "fuzz.stdio")
@settings(bounded, max_examples=700)
@given(raw=mutations())
def test_no_mutation_over_stdio_reaches_a_tool_that_was_not_granted_or_ends_the_conversation(
    target: Target, raw: bytes
) -> None:
    target.stdio.say(raw + b"\n" + target.probe() + b"\n")
    *found, last = target.stdio.until(f"probe-{target.probes}")
    assert "result" in last
    # Every line is answered at most once; a call that is still in flight may be answered behind the probe of this one.
    assert len(found) <= raw.count(b"\n") + 2
    target.check_server()


@requirement("fuzz.stdio")
@settings(bounded, max_examples=60)
@given(raws=st.lists(mutations(), min_size=1, max_size=4), cuts=st.sets(st.integers(1, 400), max_size=12))
@example(raws=SEEDS[:2], cuts=set(range(1, 400)))
def test_it_does_not_matter_where_what_comes_over_stdio_is_split(
    target: Target, raws: list[bytes], cuts: set[int]
) -> None:
    whole = b"".join(raw + b"\n" for raw in raws) + target.probe() + b"\n"
    at = 0
    for cut in sorted(one for one in cuts if one < len(whole)):
        target.stdio.say(whole[at:cut])
        at = cut
    target.stdio.say(whole[at:])
    assert "result" in target.stdio.until(f"probe-{target.probes}")[-1]
    target.check_server()


@requirement("D8.nothing-else-reaches", "fuzz.http")
@settings(bounded, max_examples=500)
@given(
    raw=mutations(),
    version=st.sampled_from([None, STATELESS, "2025-11-25", "2031-01-01"]),
    method=st.sampled_from([None, "tools/call", "tools/list"]),
    name=st.sampled_from([None, "echo", "forbidden", "=?base64?ZWNobw==?="]),
)
def test_no_mutation_over_http_reaches_a_tool_that_was_not_granted_and_each_has_one_answer(
    target: Target, raw: bytes, version: str | None, method: str | None, name: str | None
) -> None:
    answer = target.http.send(raw, {"MCP-Protocol-Version": version, "Mcp-Method": method, "Mcp-Name": name})
    if answer.body:
        assert canonical(answer.body + b"\n").keys() & {"result", "error"}
        assert answer.headers["content-type"] == "application/json"
    else:
        assert answer.status == 202
    assert target.http.call("echo", {"text": "probe"}).status == 200
    target.check_server()


# The strict reading, against the readings of others

numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def accepted(raw: bytes) -> wire.Message | None:
    """What the strict reading makes of it; it raises nothing but its own refusal."""
    try:
        return wire.parse(raw)
    except wire.WireError as refused:
        assert refused.code in (wire.PARSE_ERROR, wire.INVALID_REQUEST)  # noqa: PT017 - to be refused is allowed
        return None


def written(message: wire.Message) -> bytes:
    if isinstance(message, wire.Request):
        return wire.request(message.id, message.method, message.params)
    if isinstance(message, wire.Notification):
        return wire.notification(message.method, message.params)
    if message.error is not None:
        return wire.encode({"jsonrpc": "2.0", "id": message.id, "error": message.error})
    return wire.result(message.id, message.result)


def exactly(document: Any) -> Any:
    """A document in which True, 1 and 1.0 are not alike, nor 0.0 and -0.0."""
    if isinstance(document, dict):
        return {key: exactly(value) for key, value in document.items()}
    if isinstance(document, list):
        return [exactly(value) for value in document]
    return type(document).__name__, repr(document)


def check_meaning(raw: bytes) -> None:
    """Hold the strict reading of `raw`, if it has one, against every other reader's of what we write of it."""
    message = accepted(raw)
    if message is None:
        return
    sent = written(message)
    canonical(sent + b"\n")
    meant = json.loads(raw)
    meant.setdefault("params", {}) if "method" in meant else None
    for reader in (json.loads, msgspec.json.decode):
        assert exactly(reader(sent)) == exactly(meant)
    assert wire.parse(sent) == message
    try:
        theirs = jsonrpc_message_adapter.validate_json(sent, by_name=False)
    except ValidationError:
        # It knows no error without a code and a message.
        assert isinstance(message, wire.Response)
        return
    assert exactly(theirs.model_dump(mode="json", by_alias=True, exclude_unset=True)) == exactly(meant)


@requirement("fuzz.parse", "D8.strict-parse")
@settings(bounded, max_examples=1500)
@given(raw=mutations())
def test_what_the_strict_reading_accepts_means_the_same_to_every_reader(raw: bytes) -> None:
    check_meaning(raw)


@requirement("fuzz.parse", "D8.strict-parse", "D8.canonical-bytes")
@settings(bounded, max_examples=300)
@given(arguments=st.dictionaries(st.text(), documents, max_size=4), ascii_only=st.booleans())
def test_whatever_stands_in_arguments_is_written_as_it_was_meant(arguments: dict[str, Any], ascii_only: bool) -> None:
    params = {"name": "echo", "arguments": arguments}
    document = {"jsonrpc": "2.0", "id": "x", "method": "tools/call", "params": params}
    raw = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    check_meaning(raw)


@requirement("fuzz.parse", "D8.strict-parse")
@settings(bounded, max_examples=500)
@given(raw=st.binary(max_size=64) | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join))
def test_no_bytes_at_all_bring_the_readers_down(raw: bytes) -> None:
    check_meaning(raw)
    with suppress(wire.WireError):
        assert isinstance(wire.read_reply(raw), dict)
    assert type(wire.loose_id(raw)) in (int, type(None))
