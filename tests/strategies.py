"""Hypothesis strategies for the pure core: names, and handoff specs that parse (whether or not the gate likes them)."""

from __future__ import annotations

import json
import string
from datetime import date
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from agent_token_injector.names import HandoffId, IdentityName, TaskSlug

if TYPE_CHECKING:
    from collections.abc import Mapping

SURFACE_PREFIXES = ("infisical", "gh-app", "gh-pat", "stripe-restricted", "cf-token", "aws", "heroku", "apple-iap")

slugs = st.lists(
    st.one_of(
        st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=9),
        st.sampled_from(["handoff", "20260620"]),
    ),
    min_size=1,
    max_size=4,
).map("-".join)
"""Task slugs, among them those made of the words that the other names are made of."""

days = st.dates(min_value=date.min, max_value=date.max)
handoff_ids = st.builds(HandoffId, slugs.map(TaskSlug), days)
identity_names = st.builds(IdentityName, st.sampled_from(SURFACE_PREFIXES), handoff_ids)

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
lines = texts.map(str.strip).filter(bool)
seconds = st.integers(min_value=-(10**6), max_value=10**6)
durations = st.one_of(
    st.sampled_from(["PT0S", "PT15M", "PT1H", "PT24H", "P1DT1S", "-PT1H", "P999999999D", "-P999999999D"]),
    seconds.map(lambda count: f"-PT{-count}S" if count < 0 else f"PT{count}S"),
)
maybe_duration = st.none() | durations
access = st.sampled_from(["read", "write", "admin"])
permission_names = st.sampled_from(
    ["contents", "issues", "secrets", "workflows", "administration", "dns", "config_vars", "deploy", "subscriptions"]
) | st.from_regex(r"[A-Za-z][A-Za-z0-9_:.-]{0,12}", fullmatch=True)
permissions = st.dictionaries(permission_names, access, max_size=4)
zone_permissions = st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9 _:/-]{0,12}", fullmatch=True), access, max_size=4)
env_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
servers = st.from_regex(r"[a-z][a-z0-9]{0,6}(_[a-z0-9]{1,4})?", fullmatch=True)
tool_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)
vault_globs = st.builds(
    lambda folders, pattern: "/" + "/".join([*folders, pattern]),
    st.lists(st.sampled_from(["MooseQuest", "handoffs", "staging", "queue", "x_1", "A-b"]), max_size=4),
    st.from_regex(r"[A-Z0-9_]{1,8}\*?|\*", fullmatch=True),
)

json_numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False).filter(
    # Between the two, RFC 8785 writes a float as an integer that not every parser can hold; a spec may not have one.
    lambda number: abs(number) < 2**53 or abs(number) >= 1e21
)
json_values = st.recursive(
    st.none() | st.booleans() | json_numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)

surface_documents = st.fixed_dictionaries(
    {},
    optional={
        "infisical": st.fixed_dictionaries({"read": st.lists(vault_globs, max_size=3)}),
        "github": st.fixed_dictionaries(
            {"repository": texts.filter(bool), "permissions": permissions},
            optional={
                "method": st.sampled_from(["app-installation", "fine-grained-pat"]),
                "push_branches": st.lists(lines, max_size=2),
                "expires_in": maybe_duration,
            },
        ),
        "stripe": st.fixed_dictionaries(
            {"permissions": permissions},
            optional={"mode": st.sampled_from(["test", "live"]), "expires_in": maybe_duration},
        ),
        "aws": st.fixed_dictionaries(
            {
                "account": st.from_regex(r"[0-9]{12}", fullmatch=True),
                "grants": st.lists(
                    st.fixed_dictionaries(
                        {"action": st.sampled_from(["ssm:GetParameter", "s3:GetObject"]), "resource": lines}
                    ),
                    min_size=1,
                    max_size=2,
                ),
            },
            optional={"duration": durations},
        ),
        "cloudflare": st.fixed_dictionaries(
            {"zone": lines, "permissions": zone_permissions}, optional={"expires_in": maybe_duration}
        ),
        "heroku": st.fixed_dictionaries(
            {"app": lines, "permissions": permissions},
            optional={"pipeline_stage": st.none() | lines, "expires_in": maybe_duration},
        ),
        "alpaca": st.fixed_dictionaries(
            {"mode": st.sampled_from(["paper", "live"])},
            optional={
                "paper_gate": st.none()
                | st.fixed_dictionaries(
                    {
                        "cycles": st.integers(1, 9),
                        "passed_at": st.datetimes().map(lambda at: at.isoformat() + "Z"),
                        "reference": lines,
                    }
                )
            },
        ),
        "apple_iap": st.fixed_dictionaries(
            {"bundle_id": st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){1,2}", fullmatch=True)},
            optional={"environment": st.sampled_from(["sandbox", "production"]), "expires_in": durations},
        ),
    },
)

tool_grants = tool_names | st.one_of(
    st.fixed_dictionaries({"name": tool_names}, optional={"arguments": st.none() | json_objects}),
    st.fixed_dictionaries({"name": tool_names, "server": servers, "tool": tool_names}),
)
server_documents = st.just({"builtin": "vault"}) | st.fixed_dictionaries(
    {"command": st.lists(values.filter(bool), min_size=1, max_size=3)},
    optional={
        "env": st.dictionaries(env_names, env_names, max_size=2),
        "plain_env": st.dictionaries(env_names, values, max_size=2),
    },
)

spec_documents: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"task_slug": slugs.filter(lambda text: len(text) <= 40), "expected_runtime": durations, "expires_in": durations},
    optional={
        "card": texts,
        "operator": texts,
        "surfaces": surface_documents,
        "mcp_servers": st.dictionaries(servers, server_documents, max_size=3),
        "mcp_tools": st.lists(tool_grants, max_size=3),
        "mcp_tools_excluded": st.lists(tool_names, max_size=3),
        "env": st.dictionaries(env_names, values, max_size=3),
        "revocation": st.fixed_dictionaries(
            {},
            optional={
                "velvet": st.booleans(),
                "by_hand": st.none() | st.fixed_dictionaries({"who": lines, "how": lines}),
            },
        ),
    },
)
"""Specs as JSON documents that parse; most of them the gate refuses, for every kind of reason."""


@st.composite
def respelled(draw: st.DrawFn, document: Mapping[str, Any]) -> str:
    """The same document as other JSON text: keys in another order, other spacing, other escapes."""

    def shuffle(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffle(value[key]) for key in draw(st.permutations(list(value)))}
        return [shuffle(item) for item in value] if isinstance(value, list) else value

    return json.dumps(
        shuffle(dict(document)), indent=draw(st.none() | st.integers(0, 3)), ensure_ascii=draw(st.booleans())
    )
