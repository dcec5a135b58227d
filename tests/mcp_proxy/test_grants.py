"""What the engine is told of a spec: plain data, read back strictly, and the URIs that a server's grant covers."""

from __future__ import annotations

import json
import posixpath
import subprocess
import sys
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_token_injector.mcp_proxy.grants import Grant, Limits, Places, ServerAllow
from agent_token_injector.spec import ServerAllow as SpecAllow
from agent_token_injector.spec import ToolGrant
from tests.requirements import requirement

GRANT: dict[str, Any] = {
    "name": "pr_create",
    "server": "github",
    "tool": "create_pull_request",
    "arguments": {"properties": {"base": {"enum": ["x", {"y": [1]}]}}},
    "limits": {"calls": 5, "per_minute": 2},
    "log_arguments": ["title", "head"],
    "tasks": True,
    "input_required": True,
}
ALLOW: dict[str, Any] = {
    "resources": ["docs://handbook/*", "memo://one"],
    "subscribe": True,
    "prompts": ["review"],
    "completion": True,
    "logging": True,
    "sampling": True,
    "elicitation": True,
    "roots": True,
    "methods": ["skills/list"],
    "notifications": ["notifications/skills/list_changed"],
}


@requirement("mcp.plain-grants")
def test_what_a_spec_grants_reaches_the_engine_without_loss() -> None:
    grant = ToolGrant.model_validate(GRANT)
    plain = Grant.from_plain(grant.model_dump(mode="json"))
    assert plain == Grant(
        name="pr_create",
        server="github",
        tool="create_pull_request",
        arguments=GRANT["arguments"],
        limits=Limits(5, 2),
        log_arguments=("title", "head"),
        tasks=True,
        input_required=True,
    )
    allow = SpecAllow.model_validate_json(json.dumps(ALLOW))
    read = ServerAllow.from_plain(allow.model_dump(mode="json"))
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in vars_of(read).items()} == ALLOW


@requirement("mcp.plain-grants")
def test_what_is_left_out_is_off() -> None:
    assert Grant.from_plain({"name": "x"}) == Grant(name="x")
    assert Grant.from_plain(ToolGrant(name="x").model_dump(mode="json")) == Grant(name="x")
    assert Grant.from_plain({"name": "x", "limits": None}).limits == Limits(None, None)
    assert not any(vars_of(ServerAllow.from_plain({})).values())
    assert ServerAllow.from_plain(SpecAllow().model_dump(mode="json")) == ServerAllow()
    assert Places.from_plain({"worktree": None, "repository": None, "branches": []}) == Places()


@requirement("mcp.plain-grants")
@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (Grant, {"name": "x", "limit": {}}),
        (Grant, {"name": 1}),
        (Grant, {"name": "x", "limits": {"calls": "5"}}),
        (Grant, {"name": "x", "limits": {"calls": True}}),
        (Grant, {"name": "x", "limits": {"calls": 1.0}}),
        (Grant, {"name": "x", "limits": {"per_hour": 1}}),
        (Grant, {"name": "x", "tasks": 1}),
        (Grant, {"name": "x", "log_arguments": "title"}),
        (Grant, {"name": "x", "arguments": []}),
        (ServerAllow, {"sampling": "no"}),
        (ServerAllow, {"sample": True}),
        (ServerAllow, {"resources": [1]}),
        (Places, {"branch": []}),
        (Places, {"worktree": 1}),
    ],
)
def test_a_field_that_one_side_does_not_know_or_means_otherwise_is_refused(kind: Any, document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=kind.__name__ + "|Limits"):
        kind.from_plain(document)


def vars_of(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


@requirement("mcp.resource-grants")
@pytest.mark.parametrize(
    "uri",
    [
        *("memo://one", "docs://handbook/", "docs://handbook/a", "docs://handbook/a/b.md", "docs://handbook/a?x=1#y"),
        *("docs://handbook/caf\u00e9", "docs://handbook/.hidden", "docs://handbook/a%20b"),
    ],
)
def test_a_granted_resource_may_be_read(uri: str) -> None:
    assert ServerAllow.from_plain(ALLOW).may_read(uri)


@requirement("mcp.resource-grants")
@pytest.mark.parametrize(
    "uri",
    [
        *(
            "",
            "*",
            "memo://one/",
            "memo://One",
            "memo://one ",
            "memo://two",
            "docs://handbook",
            "docs://handboo/",
            "DOCS://handbook/a",
        ),
        *(
            "docs://handbook/../x",
            "docs://handbook/..",
            "docs://handbook/a/../../x",
            "docs://handbook/./x",
            "docs://handbook/.",
        ),
        *(
            "docs://handbook/%2e%2e/x",
            "docs://handbook/%2E./x",
            "docs://handbook/a%2fb",
            "docs://handbook/%252e",
            "docs://handbook/a\\b",
        ),
        *(
            "docs://handbook/%5c..",
            "docs://handbook/a\x00",
            "docs://handbook/%00",
            "docs://handbook/a b",
            "docs://handbook/a\nb",
        ),
        *(
            "docs://handbook/\uff0e\uff0e/x",
            "docs://handbook/\u2025",
            "docs://handbook/\uff3cx",
            "docs://handbook/?p=../x",
        ),
        *("docs://handbook/*/../..", "docs://handbook/.;/x" + "/.."),
    ],
)
def test_any_other_resource_may_not_and_no_spelling_leads_out_of_a_prefix(uri: str) -> None:
    assert not ServerAllow.from_plain(ALLOW).may_read(uri)


@requirement("mcp.resource-grants")
def test_a_prefix_that_ends_in_a_dot_does_not_hide_the_second_one() -> None:
    allow = ServerAllow(resources=("x://a/.*", "x://a/.config"))
    assert allow.may_read("x://a/.config")
    assert allow.may_read("x://a/.other")
    assert not allow.may_read("x://a/../b")
    assert not allow.may_read("x://a/..")
    assert not allow.may_read("x://a/./b")


@requirement("mcp.resource-grants")
@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("docs://handbook/{page}", True),
        ("docs://handbook/a/{page}", True),
        ("docs://handbook/{+path}", True),
        ("docs://{book}/x", False),
        ("docs://handbook/../{page}", False),
        ("memo://{name}", False),
        ("memo://one", False),
        ("{+uri}", False),
    ],
)
def test_a_template_is_shown_when_its_fixed_beginning_lies_below_a_granted_prefix(template: str, shown: bool) -> None:
    assert ServerAllow.from_plain(ALLOW).shows_template(template) is shown


@requirement("mcp.resource-grants")
@given(uri=st.text("docs:/hanbk.%2eE5cf\\x", max_size=24))
def test_nothing_granted_by_prefix_normalises_to_outside_of_it(uri: str) -> None:
    whole = "docs://handbook/" + uri
    if ServerAllow.from_plain(ALLOW).may_read(whole):
        for reading in (whole, unquote(whole), unquote(unquote(whole))):
            assert posixpath.normpath(reading.replace("\\", "/")).startswith("docs:/handbook")


@requirement("mcp.light-imports")
def test_the_policys_modules_import_nothing_heavy() -> None:
    heavy = ["pydantic", "mcp", "httpx", "cryptography", "anyio", "uvicorn", "click", "rich"]
    names = ["tool_policy", "argument_formats", "argument_schema", "budgets", "grants", "lookalike_keys"]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module("agent_token_injector.mcp_proxy." + name)
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
