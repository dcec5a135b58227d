"""Plain schemas are judged without the library, and never otherwise than by it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_token_injector.mcp_proxy.plain_schema import compiled
from tests.requirements import requirement

TEXTS = st.sampled_from(["", "a", "b", "text", "\u00e9\u00e9", "\U0001f600"])
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.0, 1.0, 1.5, -2.5, 2**53, 1e20]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
KINDS = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])
SIZES = st.integers(0, 3)


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(KINDS, st.lists(KINDS, min_size=1, max_size=3, unique=True)),
            "properties": st.dictionaries(TEXTS, inner, max_size=3),
            "required": st.lists(TEXTS, max_size=2, unique=True),
            "additionalProperties": st.booleans(),
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "enum": st.lists(TEXTS, min_size=1, max_size=3, unique=True),
            "const": TEXTS,
            "minLength": SIZES,
            "maxLength": SIZES,
            "minItems": SIZES,
            "maxItems": SIZES,
            "minProperties": SIZES,
            "maxProperties": SIZES,
            "minimum": st.integers(-2, 2),
            "maximum": st.integers(-2, 2),
            "title": TEXTS,
            "default": VALUES,
        },
    )


SCHEMAS = st.recursive(schemas(st.just({})), schemas, max_leaves=4)


@requirement("mcp.plain-schema")
@settings(max_examples=400, deadline=None)
@given(schema=SCHEMAS, values=st.lists(VALUES, min_size=1, max_size=8))
def test_a_plain_schema_is_judged_as_the_library_judges_it(schema: dict[str, Any], values: list[Any]) -> None:
    plain = compiled(schema)
    assert plain is not None
    library = jsonschema_rs.Draft202012Validator(schema)
    for value in values:
        assert plain.is_valid(value) is library.is_valid(value), (schema, value)


@requirement("mcp.plain-schema")
@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "a"},
        {"format": "uri"},
        {"$ref": "#/$defs/a"},
        {"const": 1},
        {"enum": ["a", 1]},
        {"enum": []},
        {"minimum": 1.5},
        {"minLength": -1},
        {"minLength": True},
        {"type": "text"},
        {"type": []},
        {"required": ["a", "a"]},
        {"additionalProperties": {"type": "string"}},
        {"patternProperties": {}, "additionalProperties": False},
        {"properties": {"a": True}},
        {"properties": []},
        {"items": False},
        {"prefixItems": [{}], "items": {"type": "string"}},
        {"unheard": 1},
        {"examples": "a"},
        {"title": 1},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"properties": {"a": {"not": {}}}},
        {"anyOf": []},
        True,
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_the_library(schema: Any) -> None:
    assert compiled(schema) is None


@requirement("mcp.plain-schema")
def test_a_nest_of_schemas_without_end_is_left_to_the_library() -> None:
    schema: dict[str, Any] = {}
    for _ in range(40):
        schema = {"items": schema}
    assert compiled(schema) is None


@requirement("mcp.plain-schema")
def test_the_library_is_not_loaded_for_plain_schemas() -> None:
    code = """
import sys
from agent_token_injector.mcp_proxy.argument_schema import compile_grant, compile_tool
schema = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 3}}, "required": ["text"]}
for validator in (compile_tool(schema), compile_grant(schema)):
    assert validator.is_valid({"text": "abc"}) and not validator.is_valid({"text": "abcd"})
assert "jsonschema_rs" not in sys.modules
compile_tool({"properties": {"text": {"pattern": "a"}}})
assert "jsonschema_rs" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
