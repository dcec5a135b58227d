"""The allowlist as it is compiled from a spec, without any server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.grants import Grant, Limits
from agent_token_injector.mcp_proxy.tool_policy import Allowed, Decision, Denied, Reason, ToolPolicy
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


def allowed(decision: Decision) -> tuple[str, str]:
    """Where an allowed call goes."""
    assert isinstance(decision, Allowed)
    return decision.server, decision.tool


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
    assert allowed(policy.decide(policy.tools[0], {})) == target


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


@requirement("mcp.allowed-once")
def test_what_is_allowed_is_made_once_and_says_all_that_the_relay_needs() -> None:
    definition = {
        "name": "read",
        "title": "Read",
        "inputSchema": {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
        "x-vendor": [1],
    }
    grant = {
        "name": "look",
        "server": "files",
        "tool": "read",
        "limits": {"per_minute": 3},
        "log_arguments": ["region"],
    }
    policy = ToolPolicy.resolve(grants({**grant, "tasks": True}), (), {"files": [definition]})
    one = policy.decide("look", {})
    assert isinstance(one, Allowed)
    assert one is policy.decide("look", {"region": "eu"}) is policy.allowed["look"]
    assert (one.name, one.server, one.tool, one.target) == ("look", "files", "read", "files/read")
    assert (one.limits, one.log_arguments, one.tasks, one.input_required) == (Limits(None, 3), ("region",), True, False)
    assert one.tool_json == b'"read"'
    assert one.definition is definition
    assert one.param_headers is not None
    pinned = {field: value for field, value in definition.items() if field != "x-vendor"}
    assert policy.definitions() == [{**pinned, "name": "look"}]
    assert "x-vendor" not in repr(policy)
    plain = ToolPolicy.resolve([Grant(name="read")], (), OFFERED).decide("read", {})
    assert isinstance(plain, Allowed)
    assert (plain.limits, plain.param_headers, plain.log_arguments) == (None, None, ())


@requirement("mcp.allowed-once")
def test_the_specs_grants_and_the_engines_mean_the_same() -> None:
    arguments = {"properties": {"base": {"enum": ["a", "b"]}}, "required": ["base"]}
    spec = grants({"name": "read", "arguments": arguments, "limits": {"calls": 2}})
    plain = [Grant.from_plain(one.model_dump(mode="json")) for one in spec]
    for policy in (ToolPolicy.resolve(spec, (), OFFERED), ToolPolicy.resolve(plain, (), OFFERED)):
        assert policy.allowed["read"].limits == Limits(2, None)
        assert policy.decide("read", {"base": "c"}) == Denied(Reason.ARGUMENTS)
        assert allowed(policy.decide("read", {"base": "b"})) == ("files", "read")


@requirement("mcp.withdrawn")
def test_a_tool_that_is_withdrawn_is_neither_listed_nor_allowed_and_the_rest_stays() -> None:
    whole = ToolPolicy.resolve(
        grants("read", "write", {"name": "look", "server": "files", "tool": "get_me"}), ("x",), OFFERED
    )
    less = whole.without(["read", "nothing", "merge"])
    assert less.tools == ("write", "look")
    assert [one["name"] for one in less.definitions()] == ["write", "look"]
    assert less.decide("read", {}) == Denied(Reason.WITHDRAWN)
    assert less.without({"look"}).decide("read", {}) == Denied(Reason.WITHDRAWN)
    assert less.decide("merge", {}) == Denied(Reason.NOT_LISTED)
    assert less.decide("nothing", {}) == Denied(Reason.UNKNOWN)
    assert less.decide("x", {}) == Denied(Reason.EXCLUDED)
    assert allowed(less.decide("write", {})) == ("files", "write")
    assert allowed(whole.decide("read", {})) == ("files", "read")


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
    assert (verdict == "allowed") == (arguments.get("base") == "main" and "Base" not in arguments)


TEXT = {"properties": {"text": {"const": "ok"}}, "required": ["text"]}


@requirement("mcp.lookalike-keys")
@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (TEXT, {"text": "ok", "Text": "evil"}),
        (TEXT, {"TEXT": "evil", "text": "ok"}),
        (TEXT, {"text": "ok", "\uff54ext": "evil"}),
        ({"properties": {"keys": {"const": 1}}}, {"\u212aeys": 2}),
        ({"properties": {"status": {"const": 1}}}, {"\u017ftatus": 2}),
        ({"properties": {"id": {"const": 1}}}, {"\u0130d": 2}),
        ({"properties": {"id": {"const": 1}}}, {"\u0131d": 2}),
        ({"properties": {"base": {"const": "main"}}}, {"Base": "prod"}),
        ({"required": ["base"]}, {"base": 1, "bAse": 2}),
        ({"not": {"required": ["force"]}}, {"Force": True}),
        ({"dependentRequired": {"force": ["reason"]}}, {"Force": True}),
        ({"dependentSchemas": {"force": {"required": ["reason"]}}}, {"FORCE": True}),
        ({"propertyNames": {"enum": ["a"]}, "properties": {"o": TEXT}}, {"A": 1}),
        ({"properties": {"o": TEXT}}, {"o": {"text": "ok", "Text": "evil"}}),
        ({"properties": {"o": {"items": TEXT}}}, {"o": [{"text": "ok"}, {"text": "ok", "Text": "evil"}]}),
        ({"properties": {"o": {"prefixItems": [TEXT]}}}, {"o": [{"text": "ok", "Text": "evil"}]}),
        ({"additionalProperties": TEXT}, {"o": {"text": "ok", "Text": "evil"}}),
        ({"patternProperties": {"^o": TEXT}}, {"o": {"text": "ok", "Text": "evil"}}),
        ({"allOf": [{"if": TEXT, "then": {"properties": {"o": {"anyOf": [TEXT]}}}}]}, {"text": "ok", "o": {"text": "ok", "Text": ""}}),
        ({"$defs": {"a/b": TEXT}, "properties": {"o": {"$ref": "#/$defs/a~1b"}}}, {"o": {"text": "ok", "Text": ""}}),
        ({"$defs": {"x": {"allOf": [{}, TEXT]}}, "$ref": "#/$defs/x/allOf/1"}, {"text": "ok", "Text": ""}),
        ({"$defs": {"x": {"$anchor": "x", **TEXT}}, "$ref": "#x"}, {"text": "ok", "Text": ""}),
        ({"properties": {"o": {"$ref": "#"}, "text": {"const": "ok"}}}, {"o": {"o": {"Text": "evil"}}}),
        ({"properties": {"a": {}, "A": {}}}, {"a": 1, "A": 2}),
        ({"properties": {"o": {"maxProperties": 3}}}, {"o": {"x": 1, "X": 2}}),
        ({}, {"x": 1, "X": 2}),
    ],
)  # fmt: skip
def test_a_key_that_a_server_which_ignores_case_reads_as_a_constrained_one_is_refused(
    schema: Any, arguments: Any
) -> None:
    assert narrowed(schema, arguments) == "arguments"


@requirement("mcp.lookalike-keys")
@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (TEXT, {"text": "ok", "more": 1}),
        (TEXT, {"text": "ok", "texts": 1, "env": {"Text": 1, "http_proxy": "", "HTTP_PROXY": ""}}),
        (TEXT, {"text": "ok", "o": [{"Text": 1}]}),
        ({"properties": {"o": TEXT}}, {"Text": "elsewhere", "o": {"text": "ok"}}),
        ({"properties": {"Base": {}, "base": {}}}, {"Base": 1}),
        ({"properties": {"o": {"const": {"text": 1}}}}, {"o": {"text": 1}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": TEXT}}, {"text": "ok"}),
    ],
)
def test_a_key_that_no_reader_takes_for_a_constrained_one_passes(schema: Any, arguments: Any) -> None:
    assert narrowed(schema, arguments) == "allowed"


@requirement("mcp.lookalike-keys")
def test_two_keys_that_are_alike_but_for_case_are_refused_even_without_a_grants_schema() -> None:
    policy = ToolPolicy.resolve(grants("read"), (), OFFERED)
    assert policy.decide("read", {"path": "a", "Path": "b"}) == Denied(Reason.ARGUMENTS)
    assert allowed(policy.decide("read", {"path": "a", "paths": "b"})) == ("files", "read")


@requirement("mcp.lookalike-keys")
@given(key=st.text(min_size=1, max_size=6), constant=st.text("abkxs\u00df\u0130\u01c5", min_size=1, max_size=3))
def test_no_other_spelling_that_a_known_folding_makes_alike_passes(key: str, constant: str) -> None:
    alike = any(
        how(key) == how(constant) for how in (str.lower, str.upper, str.casefold, lambda one: one.upper().lower())
    )
    verdict = narrowed({"properties": {constant: {}}}, {key: 1})
    assert not (alike and key != constant and verdict == "allowed")


@requirement("mcp.lookalike-keys")
def test_an_agent_that_sends_other_keys_each_time_is_judged_alike_to_the_end() -> None:
    grant = {"name": "t", "server": "s", "tool": "t", "arguments": TEXT}
    policy = ToolPolicy.resolve(grants(grant), (), {"s": [tool("t")]})
    for number in range(600):
        assert isinstance(policy.decide("t", {"text": "ok", f"More{number}": {f"K{number}": 1}}), Allowed)
        assert policy.decide("t", {"text": "ok", f"More{number}": 1, "TEXT": 1}) == Denied(Reason.ARGUMENTS)
