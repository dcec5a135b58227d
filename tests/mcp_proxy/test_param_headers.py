"""`Mcp-Param-*` and `Mcp-Name`, held to the official SDK's own functions over generated schemas, arguments and headers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mcp.shared import inbound

from agent_token_injector.mcp_proxy import eras, wire
from agent_token_injector.mcp_proxy.eras import Era, McpHeaders, Refused
from agent_token_injector.mcp_proxy.param_headers import (
    PREFIX,
    ParamHeaders,
    check_param_headers,
    decode_header_value,
    encode_header_value,
    param_headers,
)
from tests.requirements import requirement

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(["region", "tenant", "deep", "n"])
TOKENS = st.sampled_from(["Region", "REGION", "Tenant-Id", "X!", "n", "", "two words", "é", "a:b", 7, None])
KINDS = st.sampled_from(["string", "integer", "boolean", "number", "object", ["string"], None])
LEAVES = st.fixed_dictionaries(
    {"type": KINDS}, optional={"x-mcp-header": TOKENS, "default": st.just({"x-mcp-header": "No"})}
)
KEYWORDS = st.sampled_from(
    ["properties", "properties", "properties", "items", "allOf", "$defs", "not", "default", "enum"]
)


@st.composite
def nested(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    keyword, held = draw(KEYWORDS), draw(st.dictionaries(NAMES, inner, max_size=3))
    schema: dict[str, Any] = draw(LEAVES)
    if keyword in ("properties", "$defs"):
        schema[keyword] = held
    elif keyword in ("allOf", "enum"):
        schema[keyword] = list(held.values())
    else:
        schema[keyword] = next(iter(held.values()), {})
    return schema


SCHEMAS = st.recursive(LEAVES, nested, max_leaves=6).map(
    lambda inner: {"type": "object", "properties": {"region": inner}}
)
TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "n": {"type": "integer", "x-mcp-header": "Count"},
        "dry": {"type": "boolean", "x-mcp-header": "Dry-Run"},
        "deep": {"type": "object", "properties": {"tenant": {"type": "string", "x-mcp-header": "Tenant-Id"}}},
        "plain": {"type": "string"},
    },
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = SCALARS | st.lists(SCALARS, max_size=2)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["region", "n", "dry", "tenant", "plain"]), VALUES | st.dictionaries(NAMES, VALUES, max_size=2)
)
SPELLINGS = TEXT | st.integers().map(str) | st.sampled_from(
    ["true", "false", "True", "", "42", "42.0", "42.00", "42.5", "042", "-0", "4e1", "1e+16", "=?base64?ZXU=?=", "=?base64?ZXV=?=",
     "=?base64?!?=", "=?base64?/w==?=", "=?base64??=", "=?BASE64?ZXU=?="]
)  # fmt: skip
RECEIVED = st.dictionaries(st.sampled_from(["region", "count", "dry-run", "tenant-id", "other", "n"]), SPELLINGS)


def theirs(schema: Any, arguments: dict[str, Any], received: dict[str, str]) -> bool:
    return inbound.validate_mcp_param_headers(
        schema, arguments, {PREFIX + name: value for name, value in received.items()}
    ) is not None  # fmt: skip


@requirement("mcp.param-headers")
@given(TEXT | SPELLINGS)
@example(" x")
@example("=?base64?eA==?=")
@example("a\nb")
@example("\x7f")
def test_values_are_coded_as_the_sdk_codes_them(value: str) -> None:
    assert encode_header_value(value) == inbound.encode_header_value(value)
    assert decode_header_value(value) == inbound.decode_header_value(value)
    assert decode_header_value(encode_header_value(value)) == value
    assert encode_header_value(value).isascii()


@requirement("mcp.param-headers")
@given(st.sampled_from([TOOL]) | SCHEMAS, ARGUMENTS)
def test_what_is_sent_is_what_the_sdk_sends(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    before = copy.deepcopy(schema)
    sent = param_headers(schema, arguments)
    if inbound.find_invalid_x_mcp_header(schema) is not None:
        assert sent == {}
        assert not ParamHeaders(schema)
    else:
        assert sent == inbound.mcp_param_headers(inbound.x_mcp_header_map(schema), arguments)
    assert repr(schema) == repr(before)
    received = {name.removeprefix(PREFIX).lower(): value for name, value in sent.items()}
    assert check_param_headers(schema, arguments, received) is None


@requirement("mcp.param-headers")
@given(st.sampled_from([TOOL]) | SCHEMAS, ARGUMENTS, RECEIVED)
@example(TOOL, {"n": 42}, {"count": "42.0"})
@example(TOOL, {"n": 42.0}, {"count": "42"})
@example(TOOL, {"n": True}, {"count": "1"})
@example(TOOL, {"n": 42}, {"count": "42.5"})
@example(TOOL, {"n": 1e300}, {"count": "1e+300"})
@example(TOOL, {"n": "42"}, {"count": "42.0"})
@example(TOOL, {"n": 10**5000}, {})
@example(TOOL, {"n": 10**5000}, {"count": "1" + "0" * 5000})
@example(TOOL, {"n": 42}, {"count": "٤٢"})
def test_what_is_refused_is_what_the_sdk_refuses(
    schema: dict[str, Any], arguments: dict[str, Any], received: dict[str, str]
) -> None:
    assert (check_param_headers(schema, arguments, received) is not None) is theirs(schema, arguments, received)


@requirement("mcp.param-headers")
def test_the_header_that_disagrees_is_named() -> None:
    arguments = {"region": "eu", "n": 3, "dry": False, "deep": {"tenant": "Zoë"}}
    assert param_headers(TOOL, arguments) == {
        "Mcp-Param-Region": "eu",
        "Mcp-Param-Count": "3",
        "Mcp-Param-Dry-Run": "false",
        "Mcp-Param-Tenant-Id": "=?base64?Wm/Dqw==?=",
    }
    right = {"region": "eu", "count": "3.0", "dry-run": "false", "tenant-id": "=?base64?Wm/Dqw==?="}
    compiled = ParamHeaders(TOOL)
    assert compiled.disagreeing(arguments, right) is None
    assert compiled.disagreeing(arguments, right | {"region": "us"}) == "Mcp-Param-Region"
    assert compiled.disagreeing(arguments, right | {"tenant-id": "Zoe"}) == "Mcp-Param-Tenant-Id"
    assert compiled.disagreeing(arguments, {k: v for k, v in right.items() if k != "count"}) == "Mcp-Param-Count"
    assert compiled.disagreeing({}, {"region": "eu"}) == "Mcp-Param-Region"
    assert check_param_headers(TOOL, {}) is None
    assert check_param_headers(TOOL, {"region": "\ud800"}, {"region": "x"}) == "Mcp-Param-Region"
    assert param_headers(TOOL, {"region": "\ud800"}) == {}


@requirement("mcp.param-headers")
def test_a_schema_nested_without_end_is_read() -> None:
    schema: dict[str, Any] = {"type": "string", "x-mcp-header": "Deep"}
    for _ in range(100_000):
        schema = {"not": schema}
    assert not ParamHeaders(schema)
    for nothing in (None, [], "x", True, {}):
        assert param_headers(nothing, {"a": 1}) == {}


@requirement("mcp.headers-agree")
def test_the_methods_that_bear_a_name_are_the_sdks() -> None:
    assert dict(eras.NAMED) == dict(inbound.NAME_BEARING_METHODS)


def stateless(method: str, **params: Any) -> wire.Request:
    meta = {eras.META_VERSION: "2026-07-28", eras.META_CAPABILITIES: {}}
    return wire.Request(1, method, {**params, "_meta": meta})


@requirement("mcp.headers-agree")
@pytest.mark.parametrize(
    ("method", "params"),
    [("tools/call", {"name": "echo"}), ("prompts/get", {"name": "echo"}), ("resources/read", {"uri": "echo"})],
)
def test_a_name_in_a_header_is_the_bodys_in_both_eras(method: str, params: dict[str, str]) -> None:
    request = stateless(method, **params)
    old = wire.Request(1, method, dict(params))
    for said in ("echo", "=?base64?ZWNobw==?="):
        assert eras.era_of(request, McpHeaders("2026-07-28", method, said)) is Era.STATELESS
        assert eras.era_of(old, McpHeaders(name=said)) is Era.HANDSHAKE
    assert eras.era_of(old, McpHeaders()) is Era.HANDSHAKE
    for wrong in ("other", "Echo", "", "=?base64?ZWNobw=?=", "=?base64?/w==?=", "=?base64?AA==?="):
        for message, headers in ((request, McpHeaders("2026-07-28", method, wrong)), (old, McpHeaders(name=wrong))):
            with pytest.raises(Refused, match="Mcp-Name header does not match") as refused:
                eras.era_of(message, headers)
            assert (refused.value.code, refused.value.status) == (inbound.HEADER_MISMATCH, 400)
    with pytest.raises(Refused, match="Mcp-Name"):
        eras.era_of(request, McpHeaders("2026-07-28", method))


@requirement("mcp.headers-agree")
def test_a_header_that_decodes_to_nothing_matches_no_name() -> None:
    with pytest.raises(Refused, match="Mcp-Name"):
        eras.era_of(wire.Request(1, "tools/call", {"name": "\x00"}), McpHeaders(name="=?base64?!?="))


@requirement("mcp.headers-agree")
def test_where_there_are_no_headers_the_body_alone_tells_the_era() -> None:
    assert eras.era_of(stateless("tools/call", name="echo"), None) is Era.STATELESS
    assert eras.era_of(wire.Request(1, "tools/list", {}), None) is Era.HANDSHAKE
    with pytest.raises(Refused, match="is missing"):
        eras.era_of(wire.Request(1, "server/discover", {}), None)
    unknown = stateless("tools/list")
    unknown.params["_meta"][eras.META_VERSION] = "2031-01-01"
    with pytest.raises(Refused, match="Unsupported protocol version"):
        eras.era_of(unknown, None)
    unknown.params["_meta"][eras.META_VERSION] = None
    with pytest.raises(Refused, match="is not a string"):
        eras.era_of(unknown, None)


@requirement("mcp.headers-agree")
@given(
    version=st.sampled_from([None, "2026-07-28", "2025-11-25", "2031-01-01"]),
    method=st.sampled_from([None, "tools/call", "tools/list"]),
    name=st.sampled_from([None, "echo", "other", "=?base64?ZWNobw==?=", "=?base64?!?="]),
    body_version=st.sampled_from(["2026-07-28", "2025-11-25", "2031-01-01", None, 7]),
    body_name=st.sampled_from([None, "echo", "other"]),
)
def test_a_request_of_the_stateless_era_is_refused_where_the_sdk_refuses_it(
    version: str | None, method: str | None, name: str | None, body_version: Any, body_name: str | None
) -> None:
    params = {"name": body_name, "_meta": {eras.META_VERSION: body_version, eras.META_CAPABILITIES: {}}}
    given_headers = {"mcp-protocol-version": version, "mcp-method": method, "mcp-name": name}
    verdict = inbound.classify_inbound_request(
        {"method": "tools/call", "params": params},
        headers={key: value for key, value in given_headers.items() if value is not None},
    )
    try:
        eras.era_of(wire.Request(1, "tools/call", params), McpHeaders(version, method, name))
        ours = None
    except Refused as refused:
        ours = refused.code
    theirs = verdict.code if isinstance(verdict, inbound.InboundLadderRejection) else None
    # A name in a header and none in the body is refused by us alone.
    assert ours == theirs or (ours == eras.HEADER_MISMATCH and body_name is None and name is not None)
