"""The allowlist as it is compiled from a spec, without any server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.tool_policy import Allowed, Denied, ToolPolicy
from tests.mcp_proxy.harness import grants
from tests.requirements import requirement

OPEN = {"type": "object"}


def tool(name: str, schema: Any = None) -> dict[str, Any]:
    return {"name": name, "inputSchema": OPEN if schema is None else schema}


OFFERED = {
    "github": [tool("create_pull_request"), tool("get_me"), tool("b_c")],
    "github_b": [tool("c"), tool("merge")],
    "files": [tool("read"), tool("write"), tool("get_me")],
}


def refusal(*wanted: Any, excluded: tuple[str, ...] = (), offered: Any = None) -> str:
    with pytest.raises(SpawnRefused) as refused:
        ToolPolicy.resolve(grants(*wanted), excluded, OFFERED if offered is None else offered)
    return str(refused.value.cause or refused.value)


def narrowed(schema: Any, arguments: Any, own: Any = None) -> str:
    """`allowed`, or the reason of the refusal."""
    grant = {"name": "t", "server": "s", "tool": "t", "arguments": schema}
    decision = ToolPolicy.resolve(grants(grant), (), {"s": [tool("t", own)]}).decide("t", arguments)
    return decision.reason.value if isinstance(decision, Denied) else "allowed"


@requirement("mcp.grant-names")
@pytest.mark.parametrize(
    ("grant", "target"),
    [
        ("create_pull_request", ("github", "create_pull_request")),
        ("github_create_pull_request", ("github", "create_pull_request")),
        ("files_get_me", ("files", "get_me")),
        ("github_b_merge", ("github_b", "merge")),
        ({"name": "x", "server": "files", "tool": "read"}, ("files", "read")),
    ],
)
def test_a_grant_means_server_and_tool_or_a_tool_that_one_server_has(grant: Any, target: tuple[str, str]) -> None:
    policy = ToolPolicy.resolve(grants(grant), (), OFFERED)
    assert policy.decide(policy.tools[0], {}) == Allowed(*target)


@requirement("mcp.grant-names")
@pytest.mark.parametrize(
    ("grant", "why"),
    [
        ("get_me", "is ambiguous: it could mean 'get_me' of 'files', 'get_me' of 'github'"),
        ("github_b_c", "is ambiguous: it could mean 'b_c' of 'github', 'c' of 'github_b'"),
        ("nothing", "is unknown to every server"),
        ("files_", "is unknown to every server"),
        ("Read", "is unknown to every server"),
        ("re\u0430d", "is not a tool's name"),
        ("read ", "is not a tool's name"),
        ("*", "is not a tool's name"),
        ({"name": "x", "server": "files", "tool": "merge"}, "has no such tool"),
        ({"name": "x", "server": "gone", "tool": "read"}, "has no such tool"),
    ],
)
def test_a_grant_that_is_ambiguous_unknown_or_no_name_is_refused(grant: Any, why: str) -> None:
    assert why in refusal(grant)


@requirement("mcp.grant-names")
def test_every_grant_that_cannot_be_honoured_is_named() -> None:
    text = refusal("get_me", "nothing", "read", "files_read", "read", excluded=("files_read",))
    assert "'get_me' is ambiguous" in text
    assert "'nothing' is unknown" in text
    assert text.count("an exclusion wins") == 3
    assert "'write' is granted twice" in refusal("write", "write")


@requirement("mcp.excluded-wins")
@pytest.mark.parametrize("excluded", ["read", "files_read", "look"])
def test_an_exclusion_wins_under_every_name_a_tool_goes_by(excluded: str) -> None:
    assert "an exclusion wins" in refusal({"name": "look", "server": "files", "tool": "read"}, excluded=(excluded,))


@requirement("mcp.excluded-wins")
def test_an_exclusion_that_names_nothing_is_kept_and_one_that_cannot_name_anything_is_refused() -> None:
    policy = ToolPolicy.resolve(grants("read"), ("stripe_charge",), OFFERED)
    assert policy.decide("stripe_charge", {}) == Denied("excluded")  # type: ignore[arg-type]
    assert "mcp_tools_excluded is not a tool's name" in refusal("read", excluded=("stripe\u2010charge",))


@requirement("mcp.argument-schema")
@pytest.mark.parametrize(
    ("schema", "arguments", "verdict"),
    [
        ({"properties": {"base": {"const": "main"}}}, {}, "allowed"),
        ({"properties": {"base": {"const": "main"}}}, {"base": "main", "more": 1}, "allowed"),
        ({"properties": {"base": {"const": "main"}}}, {"base": "prod"}, "arguments"),
        ({"required": ["owner"]}, {}, "arguments"),
        ({"additionalProperties": False}, {"x": 1}, "arguments"),
        ({"properties": {"n": {"maximum": 5}}}, {"n": 6}, "arguments"),
        ({"properties": {"p": {"pattern": "^feature/"}}}, {"p": "main"}, "arguments"),
        ({"properties": {"u": {"format": "uri"}}}, {"u": "not a uri"}, "arguments"),
        ({"$defs": {"o": {"const": "raxx"}}, "properties": {"o": {"$ref": "#/$defs/o"}}}, {"o": "x"}, "arguments"),
        (
            {"not": {"properties": {"b": {"enum": ["main", "production"]}}, "required": ["b"]}},
            {"b": "main"},
            "arguments",
        ),
    ],
)
def test_a_grants_schema_constrains_as_json_schema_says(schema: Any, arguments: Any, verdict: str) -> None:
    assert narrowed(schema, arguments) == verdict


@requirement("mcp.argument-schema")
def test_the_tools_own_schema_holds_beside_the_grants() -> None:
    own = {"type": "object", "properties": {"n": {"type": "integer"}}, "x-vendor": 1}
    assert narrowed({}, {"n": "one"}, own) == "tool-schema"
    assert narrowed({}, {"n": 1}, own) == "allowed"
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"p": {"items": [{"const": 1}]}}}
    assert narrowed({}, {"p": [2]}, draft7) == "tool-schema"


@requirement("mcp.argument-schema")
@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"proprties": {"base": {"const": "main"}}}, "'proprties' is not a keyword"),
        ({"properties": {"a": {"anyOf": [{"cnst": 1}]}}}, "'cnst' is not a keyword"),
        ({"properties": {"a": {"$ref": "https://example.invalid/s.json"}}}, "would have to be fetched"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "would have to be fetched"),
        ({"$ref": "#/$defs/none"}, "cannot be used"),
        ({"type": "objekt"}, "cannot be used"),
        ({"properties": {"a": {"pattern": "^(?!main)"}}}, "cannot be used"),
        ({"properties": {"a": {"pattern": "("}}}, "cannot be used"),
        ({"properties": {"a": {"format": "no-such-format"}}}, "cannot be used"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "$schema is not"),
    ],
)
def test_a_grants_schema_that_cannot_be_relied_on_is_refused(schema: Any, why: str) -> None:
    grant = {"name": "t", "server": "s", "tool": "t", "arguments": schema}
    assert why in refusal(grant, offered={"s": [tool("t")]})


@requirement("mcp.argument-schema")
@pytest.mark.parametrize(
    "schema", ["none", None, [], {"type": 7}, {"$ref": "https://example.invalid/x"}, {"$schema": "https://example.invalid/d"}]
)  # fmt: skip
def test_a_tool_whose_own_schema_cannot_be_used_cannot_be_granted_and_harms_no_other(schema: Any) -> None:
    offered = {"s": [{"name": "t", "inputSchema": schema}, tool("u")]}
    assert "inputSchema" in refusal("t", offered=offered)
    assert ToolPolicy.resolve(grants("u"), (), offered).tools == ("u",)


NAMES = st.text(max_size=12) | st.sampled_from(
    ["read", "Read", "read ", "files_read", "write", "files_write", "get_me"]
)


@requirement("mcp.allowlist-exact")
@given(name=NAMES, granted=st.sets(st.sampled_from(["read", "write", "merge"])))
def test_nothing_but_a_granted_name_is_ever_allowed(name: str, granted: set[str]) -> None:
    policy = ToolPolicy.resolve(grants(*sorted(granted)), (), OFFERED)
    assert isinstance(policy.decide(name, {}), Allowed) == (name in granted)


@requirement("mcp.argument-schema")
@given(
    arguments=st.dictionaries(
        st.sampled_from(["base", "Base", "x"]),
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5) | st.just("main"),
    )
)  # fmt: skip
def test_no_arguments_get_past_a_required_constant(arguments: dict[str, Any]) -> None:
    verdict = narrowed({"properties": {"base": {"const": "main"}}, "required": ["base"]}, arguments)
    assert (verdict == "allowed") == (arguments.get("base") == "main")
