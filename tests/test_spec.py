"""The spec: read strictly, frozen deep, one digest a meaning, and published as a schema that says the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agent_token_injector.errors import ExitCode, SpecError
from agent_token_injector.signing import digest
from agent_token_injector.spec import MAX_SPEC_BYTES, MAX_SPEC_DEPTH, SPEC_TYPE, HandoffSpec, strict_json, thaw
from tests.gate.cases import REFUSED
from tests.gate.good import GONE, GOOD, NOW, changed, spec_of
from tests.requirements import requirement
from tests.strategies import respelled, spec_documents
from tests.test_names import NOT_PATHS, NOT_PATTERNS, NOT_SLUGS

EXAMPLES: Final = sorted((Path(__file__).parents[1] / "examples").glob("*/handoff-spec.json"))
NAMES: Final = [path.parent.name for path in EXAMPLES]
MINIMAL: Final = '{"task_slug":"a","expected_runtime":"PT1M","expires_in":"PT1M"%s}'
slow = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def refusal(text: str | bytes) -> SpecError:
    """The error with which a text is refused as a spec."""
    with pytest.raises(SpecError) as caught:
        HandoffSpec.parse(text)
    assert caught.value.exit_code is ExitCode.USAGE
    # Whatever was in the text, the error can be printed and written as JSON.
    json.dumps(caught.value.to_dict()).encode()
    return caught.value


# --- reading -----------------------------------------------------------------------------------------------------


@requirement("spec.examples")
def test_the_adrs_two_candidates_and_a_minimal_one_are_there() -> None:
    assert {"founders_checkout", "iap_notif_handler", "minimal"} <= set(NAMES)


@requirement("spec.examples", "spec.round-trip")
@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_an_example_is_read_and_written_back_without_loss(path: Path) -> None:
    spec = HandoffSpec.load(path)
    assert HandoffSpec.parse(json.dumps(spec.to_dict())) == spec
    assert str(spec.handoff_id(NOW)) == f"{spec.task_slug}-20260620"


@requirement("spec.round-trip", "spec.digest")
@slow
@given(spec_documents)
def test_any_spec_is_written_back_without_loss_of_meaning_or_digest(document: dict[str, Any]) -> None:
    spec = HandoffSpec.parse(json.dumps(document))
    again = HandoffSpec.parse(json.dumps(spec.to_dict()))
    assert again == spec
    assert again.to_dict() == spec.to_dict()
    assert again.digest == spec.digest == digest(SPEC_TYPE, spec.to_dict())


@requirement("spec.duplicate-keys")
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"task_slug":"a","task_slug":"b"}', "task_slug"),
        ('{"task_slug":"a","task\\u005fslug":"b"}', "task_slug"),
        (MINIMAL % ',"surfaces":{"stripe":{"mode":"test","mode":"live","permissions":{}}}', "mode"),
        (
            MINIMAL % ',"surfaces":{"github":{"repository":"a/b","permissions":{"issues":"read","issues":"admin"}}}',
            "issues",
        ),
        (MINIMAL % ',"mcp_tools":[{"name":"x","arguments":{"a":[[{"deep":1,"deep":1}]]}}]', "deep"),
        (MINIMAL % ',"env":{"A":"1","A":"1"}', "A"),
    ],
)
def test_a_key_twice_in_one_object_is_refused_at_any_depth(text: str, key: str) -> None:
    error = refusal(text)
    assert error.path == key
    assert "twice" in error.what


@requirement("spec.strict-json")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_a_number_that_json_does_not_have_is_refused(number: str) -> None:
    assert "number" in refusal(MINIMAL % f',"mcp_tools":[{{"name":"x","arguments":{{"maximum":{number}}}}}]').what
    with pytest.raises(SpecError):
        strict_json(number, what="it")


@requirement("spec.strict-json", "spec.digest")
@pytest.mark.parametrize(
    "number", ["9007199254740992", "-9007199254740992", "9007199254740992.0", "1e20", "123456789012345678901"]
)
def test_a_number_that_parsers_round_differently_is_refused(number: str) -> None:
    refusal(MINIMAL % f',"mcp_tools":[{{"name":"x","arguments":{{"maximum":{number}}}}}]')


@requirement("spec.strict-json")
@pytest.mark.parametrize(
    "text",
    [
        *(b"\xff\xfe", b'{"task_slug":"\xff"}', b'{"task_slug":"\xc0\xaf"}', b'{"task_slug":"\xed\xa0\x80"}', "\ud800"),
        *(
            '{"task_slug":"\ud800"}',
            '{"task_slug":"\\ud800"}',
            '{"task_slug":"\\udfff"}',
            '{"\\ud800":1}',
            '["\\ud83d"]',
        ),
    ],
)
def test_what_is_not_unicode_is_refused_escaped_or_not(text: str | bytes) -> None:
    assert "UTF-8" in refusal(text).what


@requirement("spec.strict-json")
@pytest.mark.parametrize("escaped", ['"\\ud83d\\ude00"', '"\U0001f600"'])
def test_a_surrogate_pair_is_one_character(escaped: str) -> None:
    assert strict_json(escaped, what="it") == "\U0001f600"


@requirement("spec.strict-json")
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "{",
            "{} {}",
            "{'task_slug': 'a'}",
            '{"task_slug": "a",}',
            "// a comment\n{}",
            "\ufeff{}",
            b"\xef\xbb\xbf{}",
        ),
        *('{"task_slug": "a\nb"}', "{task_slug: 1}", '{"a": 01}', '{"a": .5}', "{}\x00", "undefined"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(text: str | bytes) -> None:
    error = refusal(text)
    assert "not JSON" in error.what
    assert "line" in (error.cause or "")


@requirement("spec.strict-json")
@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"', "true"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    assert refusal(text).path == "(top level)"


@requirement("spec.bounds")
def test_a_spec_over_the_size_limit_is_refused_before_it_is_parsed() -> None:
    padding = " " * (MAX_SPEC_BYTES - len(MINIMAL % ""))
    HandoffSpec.parse(MINIMAL % "" + padding)
    assert "larger" in refusal(MINIMAL % "" + padding + " ").what
    assert "larger" in refusal(b"\xff" * (MAX_SPEC_BYTES + 1)).what


@requirement("spec.bounds")
@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
@pytest.mark.parametrize("depth", [MAX_SPEC_DEPTH, 200, 990, 1500, 20_000])
def test_a_spec_nested_too_deeply_is_refused_at_every_depth(opening: str, closing: str, depth: int) -> None:
    text = MINIMAL % f',"mcp_tools":[{{"name":"x","arguments":{{"a":{opening * depth}1{closing * depth}}}}}]'
    assert "nested too deeply" in refusal(text).what


@requirement("spec.bounds")
def test_a_spec_nested_as_deeply_as_is_allowed_works_throughout() -> None:
    depth = MAX_SPEC_DEPTH - 5
    spec = HandoffSpec.parse(MINIMAL % f',"mcp_tools":[{{"name":"x","arguments":{{"a":{"[" * depth}{"]" * depth}}}}}]')
    assert HandoffSpec.parse(json.dumps(spec.to_dict())).digest == spec.digest


@requirement("spec.field-paths")
@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"task_slgu": "x"}, "task_slgu"),
        ({"surfaces.fax": {}}, "surfaces.fax"),
        ({"surfaces.github.token": "x"}, "surfaces.github.token"),
        (
            {"surfaces.aws.grants": [{"action": "s3:GetObject", "resource": "a", "effect": "Allow"}]},
            "surfaces.aws.grants.0.effect",
        ),
        ({"surfaces.aws.grants": [{"action": "s3:*", "resource": "a"}]}, "surfaces.aws.grants.0.action"),
        ({"surfaces.aws.grants": []}, "surfaces.aws.grants"),
        ({"surfaces.aws.account": "12345678901"}, "surfaces.aws.account"),
        ({"surfaces.aws.account": "\u0661" * 12}, "surfaces.aws.account"),
        ({"surfaces.stripe.mode": "LIVE"}, "surfaces.stripe.mode"),
        ({"surfaces.stripe.permissions": ["subscriptions"]}, "surfaces.stripe.permissions"),
        ({"surfaces.github.permissions.contents": "rw"}, "surfaces.github.permissions.contents"),
        ({"surfaces.github.permissions": GONE}, "surfaces.github.permissions"),
        ({"surfaces.github.repository": ""}, "surfaces.github.repository"),
        ({"surfaces.github.push_branches": ["a\x1b[2J"]}, "surfaces.github.push_branches.0"),
        ({"surfaces.cloudflare.zone": ["a"]}, "surfaces.cloudflare.zone"),
        ({"surfaces.apple_iap.bundle_id": "com"}, "surfaces.apple_iap.bundle_id"),
        (
            {"surfaces.alpaca.paper_gate": {"cycles": 0, "passed_at": "2026-06-19T00:00:00Z", "reference": "x"}},
            "surfaces.alpaca.paper_gate.cycles",
        ),
        (
            {"surfaces.alpaca.paper_gate": {"cycles": 1, "passed_at": "2026-06-19T00:00:00", "reference": "x"}},
            "surfaces.alpaca.paper_gate.passed_at",
        ),
        ({"surfaces.infisical.read": "/a/B"}, "surfaces.infisical.read"),
        ({"surfaces": []}, "surfaces"),
        ({"task_slug": 1}, "task_slug"),
        ({"task_slug": GONE}, "task_slug"),
        ({"operator": None}, "operator"),
        ({"operator": ["a"]}, "operator"),
        ({"operator": "a" * 201}, "operator"),
        ({"card": {}}, "card"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"expires_in": GONE}, "expires_in"),
        ({"expires_in": "P99999999999D"}, "expires_in"),
        ({"expected_runtime": []}, "expected_runtime"),
        ({"mcp_tools": "*"}, "mcp_tools"),
        ({"mcp_tools": [1]}, "mcp_tools.0"),
        ({"mcp_tools": [""]}, "mcp_tools.0.name"),
        ({"mcp_tools": [{"name": "x", "server": "github"}]}, "mcp_tools.0"),
        ({"mcp_tools": [{"name": "x", "tool": "y"}]}, "mcp_tools.0"),
        ({"mcp_tools": [{"name": "x", "arguments": []}]}, "mcp_tools.0.arguments"),
        ({"mcp_tools_excluded": [None]}, "mcp_tools_excluded.0"),
        ({"mcp_servers.github": {"command": []}}, "mcp_servers.github"),
        ({"mcp_servers.github": {"command": ["a"], "builtin": "vault"}}, "mcp_servers.github"),
        ({"mcp_servers.infisical": {"builtin": "vault", "env": {"A": "B"}}}, "mcp_servers.infisical"),
        ({"mcp_servers.infisical": {"builtin": "shell"}}, "mcp_servers.infisical.builtin"),
        ({"mcp_servers.github.command": ["a", "a\x00b"]}, "mcp_servers.github.command.1"),
        ({"mcp_servers.github.url": "https://a.example/mcp"}, "mcp_servers.github"),
        ({"mcp_servers.r": {"url": "https://a.example/mcp", "builtin": "vault"}}, "mcp_servers.r"),
        ({"mcp_servers.r": {}}, "mcp_servers.r"),
        ({"mcp_servers.r": {"url": "https://a.example/mcp", "env": {"A": "GH_TOKEN"}}}, "mcp_servers.r"),
        ({"mcp_servers.github.headers": {"X-Key": "GH_TOKEN"}}, "mcp_servers.github"),
        ({"mcp_servers.r": {"builtin": "vault", "allow": {"sampling": True}}}, "mcp_servers.r"),
        ({"mcp_servers.r": {"builtin": "vault", "protocol": "2025-11-25"}}, "mcp_servers.r"),
        ({"mcp_servers.github.protocol": "2024-11-05"}, "mcp_servers.github.protocol"),
        ({"mcp_servers.github.allow": {"sample": True}}, "mcp_servers.github.allow.sample"),
        ({"mcp_servers.github.allow": {"sampling": "yes"}}, "mcp_servers.github.allow.sampling"),
        ({"mcp_servers.github.allow": {"resources": ["a b"]}}, "mcp_servers.github.allow.resources.0"),
        ({"mcp_servers.github.allow": {"resources": "*"}}, "mcp_servers.github.allow.resources"),
        ({"mcp_servers.github.allow": {"prompts": [""]}}, "mcp_servers.github.allow.prompts.0"),
        ({"mcp_tools": [{"name": "x", "limits": {"per_hour": 1}}]}, "mcp_tools.0.limits.per_hour"),
        ({"mcp_tools": [{"name": "x", "limits": {"calls": "1"}}]}, "mcp_tools.0.limits.calls"),
        ({"mcp_tools": [{"name": "x", "limits": {"calls": 1.5}}]}, "mcp_tools.0.limits.calls"),
        ({"mcp_tools": [{"name": "x", "limits": {"per_minute": 60_001}}]}, "mcp_tools.0.limits.per_minute"),
        ({"mcp_tools": [{"name": "x", "log_arguments": "title"}]}, "mcp_tools.0.log_arguments"),
        ({"mcp_tools": [{"name": "x", "log_arguments": ["a\nb"]}]}, "mcp_tools.0.log_arguments.0"),
        ({"mcp_tools": [{"name": "x", "tasks": "yes"}]}, "mcp_tools.0.tasks"),
        ({"env": {"A": 1}}, "env.A"),
        ({"env": {"A": "a\x00b"}}, "env.A"),
        ({"revocation": {"by_hand": {"who": "", "how": "x"}}}, "revocation.by_hand.who"),
        ({"revocation": {"by_hand": {"who": "x"}}}, "revocation.by_hand.how"),
        ({"revocation": {"velvet": "perhaps"}}, "revocation.velvet"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], path: str) -> None:
    error = refusal(json.dumps(changed(change)))
    assert error.path == path
    assert f"{path}: " in (error.cause or "")
    assert error.hint


@requirement("spec.field-paths")
@pytest.mark.parametrize(
    "change",
    [
        {"surfaces.github.permissions": {"\u0455ecrets": "write"}},
        {"surfaces.github.permissions": {"content s": "write"}},
        {"surfaces.github.permissions": {"": "write"}},
        {"mcp_servers": {"Git Hub": {"command": ["x"]}}},
        {"mcp_servers": {"g\u0456thub": {"command": ["x"]}}},
        {"env": {"A=B": "x"}},
        {"env": {"BASH_FUNC_x%%": "x"}},
        {"env": {"\uff21": "x"}},
        {"mcp_servers.github.env": {"A": "B=C"}},
    ],
)
def test_a_malformed_name_is_refused_where_it_stands(change: dict[str, Any]) -> None:
    (place,) = change
    assert refusal(json.dumps(changed(change))).path.startswith(place)


REMOTE: Final[Mapping[str, Any]] = {
    "url": "https://mcp.example:8443/mcp?profile=x",
    "headers": {"X-Api-Key": "GH_TOKEN", "Authorization": {"variable": "GH_TOKEN", "prefix": "Bearer "}},
    "protocol": "2026-07-28",
    "allow": {
        "resources": ["docs://handbook/*"],
        "subscribe": True,
        "prompts": ["review"],
        "completion": True,
        "logging": True,
        "methods": ["skills/list"],
        "notifications": ["notifications/skills/list_changed", "vendor/changed"],
    },
}
OAUTH: Final = {
    "token_url": "https://auth.example/token",
    "client_id": "A",
    "client_secret": "B",
    "scopes": ["mcp:tools", "read"],
}


def remote(**change: Any) -> str:
    """A spec with one remote server, as text."""
    return json.dumps(changed({"mcp_servers.remote": {**REMOTE, **change}}))


@requirement("spec.mcp-servers")
def test_a_remote_server_is_read_and_written_back_without_loss() -> None:
    spec = HandoffSpec.parse(remote())
    server = spec.mcp_servers["remote"]
    assert server.headers["X-Api-Key"].variable == server.headers["Authorization"].variable == "GH_TOKEN"
    assert (server.headers["X-Api-Key"].prefix, server.headers["Authorization"].prefix) == ("", "Bearer ")
    assert server.allow.prompts == ("review",)
    assert not server.allow.sampling
    assert HandoffSpec.parse(json.dumps(spec.to_dict())) == spec
    jsonschema_rs.Draft202012Validator(SCHEMA).validate(json.loads(remote()))
    jsonschema_rs.Draft202012Validator(SCHEMA).validate(spec.to_dict())


@requirement("spec.mcp-servers")
def test_the_variables_of_a_server_are_all_that_it_is_given() -> None:
    with_client = HandoffSpec.parse(remote(headers={"X-Api-Key": "GH_TOKEN"}, oauth=OAUTH)).mcp_servers["remote"]
    assert with_client.variables == ("GH_TOKEN", "A", "B")
    assert HandoffSpec.parse(json.dumps(changed())).mcp_servers["github"].variables == ("GH_TOKEN",)


@requirement("spec.mcp-servers")
def test_one_header_said_in_two_ways_has_one_digest() -> None:
    short, long = ({"X-Api-Key": value} for value in ("GH_TOKEN", {"variable": "GH_TOKEN", "prefix": ""}))
    assert HandoffSpec.parse(remote(headers=short)).digest == HandoffSpec.parse(remote(headers=long)).digest


@requirement("spec.mcp-servers")
@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "mcp.example",
            "ftp://mcp.example/",
            "file:///etc/passwd",
            "//mcp.example/mcp",
            "https://",
            "https:///mcp",
        ),
        *(
            "https://user@mcp.example/",
            "https://user:hunter2@mcp.example/",
            "https://@mcp.example/",
            "https://mcp.example/#a",
        ),
        *("https://mcp.example/a b", "https://mcp.example/\n", " https://mcp.example/", "https://mcp.example\\@evil/"),
        *("https://mcp.example:0/", "https://mcp.example:65536/", "https://mcp.example:99999", "https://mcp.example:/"),
        *(
            "https://mcp.example:80:80/",
            "https://b\u00fccher.example/",
            "https://mcp.example/\u2028",
            "https://[::1/",
            "HTTPS://a/",
        ),
        "https://mcp.example/" + "a" * 2000,
    ],
)
def test_an_address_that_is_not_exactly_one_is_refused_and_not_quoted(url: str) -> None:
    error = refusal(remote(url=url))
    assert error.path == "mcp_servers.remote.url"
    assert "hunter2" not in error.diagnostics()
    assert refusal(remote(headers={}, oauth={**OAUTH, "token_url": url})).path == "mcp_servers.remote.oauth.token_url"


@requirement("spec.mcp-servers")
@pytest.mark.parametrize(
    "url",
    [
        "https://mcp.example",
        "http://127.0.0.1:1/mcp",
        "http://[::1]:8080/",
        "https://a-b.example/p@th/x:y?a=b@c",
        "https://x?y",
    ],
)
def test_an_ordinary_address_is_read(url: str) -> None:
    assert HandoffSpec.parse(remote(url=url)).mcp_servers["remote"].url == url


@requirement("spec.mcp-servers")
@pytest.mark.parametrize(
    "name",
    [
        *(
            "Host",
            "host",
            "Connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Expect",
            "Origin",
        ),
        *("Content-Length", "content-type", "Content-X", "Mcp-Session-Id", "MCP-Protocol-Version", "mcp-param-x"),
        *("Accept", "Accept-Encoding", "Proxy-Authorization", "Last-Event-ID", "If-Match", "Range"),
        *("", "X Key", "X:Key", "X\r\nHost", "X\u00e9", "X" * 65, "X-Key "),
    ],
)
def test_a_header_that_the_proxy_writes_itself_or_that_is_none_is_refused(name: str) -> None:
    assert refusal(remote(headers={name: "GH_TOKEN"})).path.startswith("mcp_servers.remote.headers.")


@requirement("spec.mcp-servers")
@pytest.mark.parametrize(
    "change",
    [
        {"headers": {"X-Key": "GH_TOKEN", "x-key": "GH_TOKEN"}},
        {"headers": {"authorization": "GH_TOKEN"}, "oauth": OAUTH},
    ],
)
def test_a_header_given_twice_is_refused(change: dict[str, Any]) -> None:
    assert refusal(remote(**change)).path == "mcp_servers.remote"


@requirement("spec.mcp-servers")
@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"headers": {"X-Key": "a=b"}}, "headers.X-Key"),
        ({"headers": {"X-Key": {"variable": "GH_TOKEN", "prefix": "a\r\nHost: x"}}}, "headers.X-Key"),
        ({"headers": {"X-Key": {"variable": "GH_TOKEN", "suffix": "x"}}}, "headers.X-Key"),
        ({"headers": {"X-Key": {"prefix": "x"}}}, "headers.X-Key"),
        ({"headers": {"X-Key": 1}}, "headers.X-Key"),
        ({"headers": {}, "oauth": {**OAUTH, "scopes": ["a b"]}}, "oauth.scopes.0"),
        ({"headers": {}, "oauth": {**OAUTH, "client_secret": GONE}}, "oauth.client_secret"),
        ({"headers": {}, "oauth": {**OAUTH, "grant_type": "password"}}, "oauth.grant_type"),
    ],
)
def test_a_wrong_header_or_client_is_named_by_its_path(change: dict[str, Any], path: str) -> None:
    oauth = change.get("oauth")
    if oauth is not None:
        change = {**change, "oauth": {key: value for key, value in oauth.items() if value is not GONE}}
    assert refusal(remote(**change)).path.startswith(f"mcp_servers.remote.{path}")


def sdk_methods() -> list[str]:
    """Every request and notification of every revision that the official SDK knows."""
    from mcp_types import methods

    tables = (
        methods.CLIENT_REQUESTS,
        methods.SERVER_REQUESTS,
        methods.CLIENT_NOTIFICATIONS,
        methods.SERVER_NOTIFICATIONS,
    )
    return sorted(
        {method for table in tables for method, _ in table} | {"tasks/get", "tasks/list", "notifications/tasks/status"}
    )


@requirement("spec.mcp-reserved")
def test_no_method_of_the_protocols_own_passes_as_custom_in_any_case() -> None:
    assert len(sdk_methods()) > 25
    for method in sdk_methods():
        for spelled in (method, method.upper(), method.title(), f"{method}/x"):
            for field in ("methods", "notifications"):
                assert refusal(remote(allow={field: [spelled]})).path == f"mcp_servers.remote.allow.{field}.0"


@requirement("spec.mcp-reserved")
@pytest.mark.parametrize(
    "method", ["", "/", "a/", "/a", "a//b", "a b", "rpc.discover", "RPC.x", "a\n", "\u0430", "*", "x/*", "a" * 129]
)
def test_what_is_no_method_or_is_json_rpcs_own_is_refused(method: str) -> None:
    for field in ("methods", "notifications"):
        assert refusal(remote(allow={field: [method]})).path == f"mcp_servers.remote.allow.{field}.0"


MCP_SERVERS: Final = st.fixed_dictionaries(
    {"url": st.sampled_from(["https://a.example/mcp", "http://localhost:1/", "http://b.example"])},
    optional={
        "headers": st.dictionaries(
            st.sampled_from(["X-A", "X-B", "Cookie"]),
            st.just("GH_TOKEN")
            | st.fixed_dictionaries({"variable": st.just("A")}, optional={"prefix": st.just("Bearer ")}),
        ),
        "oauth": st.none() | st.just(OAUTH),
        "protocol": st.sampled_from(["auto", "2025-11-25", "2026-07-28"]),
        "allow": st.fixed_dictionaries(
            {},
            optional={
                "resources": st.lists(st.sampled_from(["*", "a:b", "a:/*"]), max_size=2),
                "prompts": st.lists(st.sampled_from(["a", "\u00e9 b"]), max_size=2),
                "methods": st.lists(st.sampled_from(["x/y", "skills.list"]), max_size=2),
                "notifications": st.lists(st.sampled_from(["notifications/x", "y"]), max_size=2),
                **{
                    name: st.booleans()
                    for name in ("subscribe", "completion", "logging", "sampling", "elicitation", "roots")
                },
            },
        ),
    },
)
MCP_GRANTS: Final = st.fixed_dictionaries(
    {"name": st.just("x")},
    optional={
        "limits": st.fixed_dictionaries(
            {},
            optional={"calls": st.none() | st.integers(-5, 10**6), "per_minute": st.none() | st.integers(-5, 60_000)},
        ),
        "log_arguments": st.lists(st.sampled_from(["title", "a b"]), max_size=2),
        "tasks": st.booleans(),
        "input_required": st.booleans(),
    },
)


@requirement("spec.mcp-servers", "spec.round-trip")
@slow
@given(st.dictionaries(st.sampled_from(["one", "two"]), MCP_SERVERS), st.lists(MCP_GRANTS, max_size=2))
def test_any_server_and_grant_is_written_back_without_loss_and_fits_the_schema(
    found: dict[str, Any], grants: list[dict[str, Any]]
) -> None:
    document = changed({"mcp_servers": found, "mcp_tools": grants})
    spec = HandoffSpec.parse(json.dumps(document))
    again = HandoffSpec.parse(json.dumps(spec.to_dict()))
    assert (again, again.digest) == (spec, spec.digest)
    validator = jsonschema_rs.Draft202012Validator(SCHEMA)
    validator.validate(document)
    validator.validate(spec.to_dict())


@requirement("spec.field-paths")
def test_every_fault_is_named_at_once() -> None:
    error = refusal(json.dumps(changed({"task_slug": "A B", "expires_in": "soon", "extra": 1})))
    assert "3 problems" in error.what
    assert all(f"{path}: " in (error.cause or "") for path in ("task_slug", "expires_in", "extra"))


@requirement("H6.values-not-quoted")
def test_a_refused_value_is_not_quoted_in_the_error() -> None:
    secret = "hunter2-correct-horse"
    for change in (
        {"expires_in": secret},
        {"env": {"A": [secret]}},
        {"surfaces.stripe.mode": secret},
        {"extra": secret},
    ):
        assert secret not in refusal(json.dumps(changed(change))).diagnostics()


@requirement("spec.closed-names", "H1.closed-paths")
@pytest.mark.parametrize("slug", NOT_SLUGS)
def test_a_look_alike_slug_is_refused_with_its_path(slug: str) -> None:
    assert refusal(json.dumps(changed({"task_slug": slug}))).path == "task_slug"


@requirement("spec.closed-names", "H1.closed-paths")
@pytest.mark.parametrize(
    "glob",
    [
        # As a folder: "/" alone would make "//KEY", and "" makes "/KEY", which is the root's and well formed.
        *(f"{path}/KEY_*" for path in NOT_PATHS if path),
        *(f"/MooseQuest/queue/staging/{pattern}" for pattern in NOT_PATTERNS),
        *(
            "/MooseQuest/queue/staging/",
            "MooseQuest/staging/KEY",
            "KEY",
            "",
            "*",
            "/MooseQuest/queue/staging/../prod/KEY",
        ),
        *("/MooseQuest/handoffs/nightly-report-20260620/%2e%2e/KEY", "/MooseQuest/**", "\\MooseQuest\\staging\\KEY"),
    ],
)
def test_a_look_alike_or_encoded_vault_path_is_refused_with_its_path(glob: str) -> None:
    assert refusal(json.dumps(changed({"surfaces.infisical.read": [glob]}))).path == "surfaces.infisical.read.0"


@requirement("spec.load")
def test_a_file_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        HandoffSpec.load(tmp_path / "none.json")
    assert "handoff init" in (caught.value.hint or "")
    with pytest.raises(SpecError):
        HandoffSpec.load(tmp_path)


@requirement("spec.regular-file")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/null", "/dev/urandom"])
def test_a_device_in_a_specs_place_is_refused_and_not_read(device: str) -> None:
    with pytest.raises(SpecError, match="not a regular file") as caught:
        HandoffSpec.load(device)
    assert device in caught.value.what


@requirement("spec.regular-file")
def test_a_pipe_in_a_specs_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="not a regular file"):
        HandoffSpec.load(tmp_path / "pipe")
    with pytest.raises(SpecError, match="null"):
        HandoffSpec.load("a\0b")


@requirement("spec.regular-file")
def test_of_a_file_that_is_too_large_no_more_is_read_than_shows_that(tmp_path: Path) -> None:
    path = tmp_path / "sparse.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SpecError, match="larger than 256 KiB"):
        HandoffSpec.load(path)


@requirement("spec.regular-file")
def test_a_link_to_a_spec_is_followed(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(MINIMAL % "")
    (tmp_path / "link.json").symlink_to("spec.json")
    assert HandoffSpec.load(tmp_path / "link.json") == HandoffSpec.parse(MINIMAL % "")


# --- frozen ------------------------------------------------------------------------------------------------------


def containers(value: Any, where: str = "spec") -> list[tuple[str, Any]]:
    """Every model, mapping and sequence below a value, with its place."""
    found = [(where, value)] if isinstance(value, BaseModel | Mapping | list | tuple) else []
    if isinstance(value, BaseModel):
        inner = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, list | tuple):
        inner = [(str(at), item) for at, item in enumerate(value)]
    else:
        inner = []
    return [*found, *(one for name, item in inner for one in containers(item, f"{where}.{name}"))]


@requirement("spec.frozen")
def test_nothing_in_a_spec_can_be_changed_however_deep() -> None:
    arguments = {"properties": {"a": {"enum": ["x", {"y": [1]}]}}, "required": ["a"]}
    spec = spec_of({"mcp_tools": [{"name": "x", "server": "github", "tool": "y", "arguments": arguments}]})
    before, seen = spec.digest, containers(spec)
    for where, value in seen:
        if isinstance(value, BaseModel):
            for name in type(value).model_fields:
                with pytest.raises(ValidationError):
                    setattr(value, name, None)
        elif isinstance(value, Mapping):
            with pytest.raises(TypeError):
                value["new"] = 1  # type: ignore[index]
            for key in value:
                with pytest.raises(TypeError):
                    del value[key]  # type: ignore[attr-defined]
        else:
            assert isinstance(value, tuple), where
    assert len(seen) > 40
    assert spec.digest == before


@requirement("spec.frozen")
def test_the_defaults_of_one_spec_are_not_another_ones_to_change() -> None:
    spec = HandoffSpec.parse(MINIMAL % "")
    for mapping in (spec.env, spec.mcp_servers):
        with pytest.raises(TypeError):
            mapping["A"] = "x"  # type: ignore[index]
    assert HandoffSpec.parse(MINIMAL % "") == spec


@requirement("spec.frozen")
def test_a_copy_taken_out_of_a_spec_is_free_and_leaves_the_spec_alone() -> None:
    spec = spec_of({"mcp_tools": [{"name": "x", "arguments": {"properties": {"a": {"enum": [1]}}}}]})
    taken, written = thaw(spec.mcp_tools[0].arguments), spec.to_dict()
    before = spec.digest
    taken["properties"]["a"]["enum"].append(2)
    written["mcp_tools"][0]["arguments"]["properties"].clear()
    assert spec.digest == before


# --- digest ------------------------------------------------------------------------------------------------------


@requirement("spec.digest")
@slow
@given(spec_documents, st.data())
def test_the_digest_does_not_depend_on_spelling(document: dict[str, Any], data: st.DataObject) -> None:
    text = data.draw(respelled(document))
    assert HandoffSpec.parse(text).digest == HandoffSpec.parse(json.dumps(document)).digest
    assert HandoffSpec.parse(text.encode()).digest == HandoffSpec.parse(text).digest


@requirement("spec.digest")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"expires_in": "PT1H"}, {"expires_in": "PT60M"}),
        ({"mcp_tools": ["x"]}, {"mcp_tools": [{"name": "x"}]}),
        ({"surfaces.stripe.mode": "test"}, {"surfaces.stripe.mode": GONE}),
        ({"revocation": {"velvet": False}}, {}),
        ({"surfaces.github.expires_in": None}, {}),
    ],
)
def test_two_ways_to_say_one_thing_have_one_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert spec_of(one).digest == spec_of(other).digest


@requirement("spec.digest")
def test_any_change_of_meaning_changes_the_digest() -> None:
    further: list[Mapping[str, Any]] = [
        *({"operator": "other@example.com"}, {"card": "#1"}, {"task_slug": "other"}, {"expected_runtime": "PT19M"}),
        *({"mcp_servers.github.command": ["github-mcp-server"]}, {"mcp_tools": list(reversed(GOOD["mcp_tools"]))}),
        *(
            {"surfaces.github.permissions.contents": "read"},
            {"mcp_tools_excluded": []},
            {"env": {"REPORT_DAY": "Monday"}},
        ),
        *({"revocation": {"by_hand": {"who": "a", "how": "b"}}}, {"revocation": {"by_hand": {"who": "b", "how": "a"}}}),
    ]
    changes: list[Mapping[str, Any]] = [*(case.change for case in REFUSED if case.change), *further]
    meanings = {json.dumps(spec_of(change).to_dict(), sort_keys=True) for change in changes}
    assert len({spec_of(change).digest for change in changes}) == len(meanings)
    assert spec_of().digest not in {spec_of(change).digest for change in changes}


@requirement("spec.digest")
@slow
@given(spec_documents, spec_documents)
def test_two_specs_share_a_digest_only_when_they_say_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = HandoffSpec.parse(json.dumps(one)), HandoffSpec.parse(json.dumps(other))
    assert (first.digest == second.digest) == (first.to_dict() == second.to_dict())


# --- schema ------------------------------------------------------------------------------------------------------

SCHEMA: Final = HandoffSpec.model_json_schema()


@requirement("spec.schema")
def test_the_published_schema_is_itself_valid_draft_2020_12() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    jsonschema_rs.meta.validate(SCHEMA)


@requirement("spec.schema", "spec.examples")
@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_the_schema_accepts_every_example_as_written_and_with_its_defaults(path: Path) -> None:
    validator = jsonschema_rs.Draft202012Validator(SCHEMA)
    validator.validate(json.loads(path.read_bytes()))
    validator.validate(HandoffSpec.load(path).to_dict())


@requirement("spec.schema")
def test_the_schema_accepts_a_spec_with_every_surface() -> None:
    jsonschema_rs.Draft202012Validator(SCHEMA).validate(changed())


@requirement("spec.schema")
@pytest.mark.parametrize(
    "change",
    [
        *({"extra": 1}, {"task_slug": GONE}, {"task_slug": "A"}, {"task_slug": "a" * 41}, {"expires_in": 3600}),
        *({"surfaces.fax": {}}, {"surfaces.github.permissions.contents": "rw"}, {"surfaces.github.repository": ""}),
        *({"surfaces.stripe.mode": "LIVE"}, {"surfaces.aws.grants": []}, {"surfaces.aws.account": "1"}),
        *(
            {"surfaces.infisical.read": ["/a/../B"]},
            {"surfaces.infisical.read": ["/a//B"]},
            {"surfaces.infisical.read": ["/a/b*"]},
        ),
        *(
            {"mcp_tools": [1]},
            {"mcp_tools": [""]},
            {"mcp_tools": [{"tool": "x"}]},
            {"mcp_tools": [{"name": "x", "args": {}}]},
        ),
        *({"mcp_servers.r": {"url": "ftp://x"}}, {"mcp_servers.r": {"url": "https://u:p@x/"}}),
        *({"mcp_tools": [{"name": "x", "limits": {"calls": "1"}}]}, {"mcp_servers.github.allow": {"all": True}}),
        *({"mcp_servers.github.command": "x"}, {"env": {"A": 1}}, {"revocation": {"velvet": "on"}}, {"operator": None}),
        {"surfaces.alpaca.paper_gate": {"cycles": 0, "passed_at": "2026-06-19T00:00:00Z", "reference": "x"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_broken(change: dict[str, Any]) -> None:
    assert not jsonschema_rs.Draft202012Validator(SCHEMA).is_valid(changed(change))
