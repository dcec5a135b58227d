"""Pins: one definition has one digest, any change that an agent could see has another, and is told in words."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.audit.event import MAX_ITEMS
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy.pinning import check_pins, details
from agent_token_injector.mcp_proxy.pins import (
    MAX_DEFINITION_BYTES,
    MAX_LINES,
    MAX_PINNED_BYTES,
    PINNED_FIELDS,
    ToolPin,
    drift,
    pin,
    size,
)
from agent_token_injector.signing import canonical
from tests import strategies as our
from tests.requirements import requirement

DEFINITION: dict[str, Any] = {
    "name": "read_file",
    "title": "Read a file",
    "description": "Read one file of the worktree.",
    "inputSchema": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "limit": {"type": "integer", "maximum": 100}},
        "required": ["path"],
    },
    "annotations": {"readOnlyHint": True},
}
PIN = ToolPin.of("files", "read_file", DEFINITION)


def changed(**fields: Any) -> dict[str, Any]:
    """The definition with some fields replaced, or taken away (None)."""
    return {name: value for name, value in {**DEFINITION, **fields}.items() if value is not None}


def schema(**fields: Any) -> dict[str, Any]:
    return changed(inputSchema={**DEFINITION["inputSchema"], **fields})


definitions = st.fixed_dictionaries(
    {"name": our.texts},
    optional={
        "title": our.texts,
        "description": our.values,
        "inputSchema": our.json_objects,
        "outputSchema": our.json_objects,
        "annotations": our.json_objects,
        "_meta": our.json_objects,
    },
)
beyond = st.integers(min_value=2**53) | st.integers(max_value=-(2**53))


# -- digest ------------------------------------------------------------------------------------------------------------


@requirement("mcp.pin-digest")
def test_the_digest_is_sha256_over_the_canonical_form_of_the_pinned_fields() -> None:
    text = (
        b'{"annotations":{"readOnlyHint":true},"description":"Read one file of the worktree.","inputSchema":'
        b'{"properties":{"limit":{"maximum":100,"type":"integer"},"path":{"type":"string"}},"required":["path"],'
        b'"type":"object"},"name":"read_file","title":"Read a file"}'
    )
    assert pin(DEFINITION) == PIN.digest == "sha256:" + hashlib.sha256(text).hexdigest()


@requirement("mcp.pin-digest")
@given(definition=definitions)
def test_one_definition_has_one_digest_however_it_was_written(definition: dict[str, Any]) -> None:
    again = json.loads(json.dumps(dict(reversed(definition.items()))))
    assert pin(again) == pin(definition)
    assert ToolPin.of("s", "t", definition).fits(again)


@requirement("mcp.pin-digest")
@given(first=definitions, second=definitions)
def test_two_definitions_have_one_digest_only_when_their_canonical_forms_are_one(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, other = ({name: d[name] for name in PINNED_FIELDS if name in d} for d in (first, second))
    assert (pin(first) == pin(second)) is (canonical(one) == canonical(other))


@requirement("mcp.pin-digest")
@pytest.mark.parametrize(
    "other",
    [
        changed(name="read_flle"),
        changed(name="Read_file"),
        changed(title="Read a file "),
        changed(title=None),
        changed(description="Read one file of the worktree.\u200b"),
        schema(additionalProperties=False),
        schema(required=[]),
        changed(outputSchema={"type": "object"}),
        changed(outputSchema=[]),
        changed(annotations={"readOnlyHint": 1}),
        changed(annotations={}),
        changed(annotations=None),
    ],
)
def test_any_change_of_a_pinned_field_is_another_definition_and_is_told(other: dict[str, Any]) -> None:
    assert not PIN.fits(other)
    assert drift(PIN, other)


@requirement("mcp.pin-digest")
def test_a_field_that_no_client_acts_on_is_not_pinned() -> None:
    assert PIN.fits({**DEFINITION, "_meta": {"etag": "7"}, "icons": [], "x-extra": 1})


@requirement("mcp.pin-digest")
@given(number=beyond.filter(lambda n: abs(n) < 10**300))
def test_numbers_are_doubles_as_rfc_8785_has_them(number: int) -> None:
    large, near = schema(minimum=number), schema(minimum=float(number))
    assert pin(large) == pin(near)
    assert ToolPin.of("s", "t", large).fits(near)
    assert drift(ToolPin.of("s", "t", large), near) == ()


@requirement("mcp.pin-digest")
@pytest.mark.parametrize("odd", [10**400, float("nan"), float("inf"), "\ud800", {"k\udfff": 1}, {1, 2}])
def test_what_has_no_digest_fits_no_pin_and_raises_only_where_a_pin_is_made(odd: Any) -> None:
    other = schema(default=odd)
    with pytest.raises((ValueError, TypeError)):
        ToolPin.of("files", "read_file", other)
    assert not PIN.fits(other)
    (line,) = drift(PIN, other)
    assert line.isascii()


@requirement("mcp.pin-digest", "mcp.pin-bounded")
def test_what_is_nested_deeper_than_any_message_fits_no_pin_and_raises_nothing() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    other = schema(default=deep)
    assert not PIN.fits(other)
    assert len(drift(PIN, other)) == 1
    while isinstance(deep, list) and deep:  # Taken apart here: the interpreter would recurse to free it.
        deep = deep.pop()


@requirement("mcp.pin-bounded")
def test_what_is_larger_than_a_pin_may_be_fits_none_and_is_told_by_its_sizes() -> None:
    large = changed(description="x" * MAX_DEFINITION_BYTES)
    assert size(large) > MAX_DEFINITION_BYTES
    assert not ToolPin.of("files", "read_file", large).fits(large)
    assert drift(PIN, large) == (f"description: 32 bytes -> {MAX_DEFINITION_BYTES + 2} bytes",)


# -- what may stand in a manifest --------------------------------------------------------------------------------------

TOKEN = "ghs_ServerSecretOfTheHandoff42"
KNOWS = Redactor([SecretStr(TOKEN)])


@requirement("mcp.pin-bounded")
def test_pins_up_to_both_limits_may_be_signed_and_a_byte_more_may_not() -> None:
    room = MAX_DEFINITION_BYTES - size(changed(description=""))
    largest = [ToolPin.of("files", "read_file", changed(description="x" * room))] * (
        MAX_PINNED_BYTES // MAX_DEFINITION_BYTES
    )
    check_pins(largest, KNOWS)
    with pytest.raises(SpawnRefused, match="9 granted tools are too large") as caught:
        check_pins([*largest, PIN], KNOWS)
    assert f"{MAX_PINNED_BYTES + size(DEFINITION)} bytes together" in str(caught.value)
    with pytest.raises(SpawnRefused, match="'read_file' of MCP server 'files' is too large"):
        check_pins([ToolPin.of("files", "read_file", changed(description="x" * (room + 1)))], KNOWS)


@requirement("mcp.pinned", "H6.no-values")
@pytest.mark.parametrize(
    "holding",
    [
        changed(description=f"Use {TOKEN}"),
        changed(description=base64.b64encode(f"x{TOKEN}".encode()).decode()),
        schema(default=TOKEN.encode().hex()),
        schema(**{f"x-{TOKEN}": 1}),
    ],
)
def test_a_definition_that_holds_a_secret_may_not_be_signed_and_the_refusal_does_not_show_it(holding: Any) -> None:
    with pytest.raises(SpawnRefused, match="holds a secret of the handoff") as caught:
        check_pins([ToolPin.of("files", "read_file", holding)], KNOWS)
    assert TOKEN not in caught.value.diagnostics()


@requirement("mcp.pinned")
def test_a_digest_that_is_not_that_of_its_definition_may_not_be_signed() -> None:
    check_pins([PIN], KNOWS)
    check_pins([], KNOWS)
    with pytest.raises(SpawnRefused, match="not what its digest was made of"):
        check_pins([ToolPin("files", "read_file", "sha256:" + "0" * 64, DEFINITION)], KNOWS)


@requirement("mcp.pinned", "H5.provision-audited")
def test_every_pin_is_in_the_audit_however_many_there_are() -> None:
    pins = [ToolPin.of("files", f"tool_{number}", DEFINITION) for number in range(450)]
    found = [line for detail in details(pins) for line in detail["tools"]]
    assert found == [f"files/tool_{number} {PIN.digest}" for number in range(450)]
    assert all(len(detail["tools"]) <= MAX_ITEMS for detail in details(pins))
    assert list(details([])) == []


# -- a pin as data -----------------------------------------------------------------------------------------------------


@requirement("mcp.pin-digest")
@given(definition=definitions)
def test_a_pin_survives_json(definition: dict[str, Any]) -> None:
    made = ToolPin.of("files", "read_file", definition)
    read = ToolPin.from_plain(json.loads(json.dumps(made.to_plain())))
    assert read == made
    assert pin(read.definition) == made.digest


def test_a_pin_reads_a_frozen_document_and_its_repr_is_short() -> None:
    frozen = MappingProxyType(
        {**PIN.to_plain(), "definition": MappingProxyType({**DEFINITION, "inputSchema": MappingProxyType({})})}
    )
    assert ToolPin.from_plain(frozen).to_plain()["definition"]["inputSchema"] == {}
    assert "worktree" not in repr(PIN)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"server": 1},
        {"tool": None},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "md5:0"},
        {"digest": PIN.digest + "\n"},
        {"definition": []},
    ],
)
@requirement("mcp.pin-digest")
def test_what_is_no_pin_is_not_read_as_one(broken: dict[str, Any]) -> None:
    document = {**PIN.to_plain(), **broken} if broken else {"server": "files"}
    with pytest.raises(ValueError, match="a pin"):
        ToolPin.from_plain(document)


# -- drift -------------------------------------------------------------------------------------------------------------


@requirement("mcp.pin-drift")
@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (DEFINITION, ()),
        (changed(title=None), ("title: 'Read a file' -> (absent)",)),
        (changed(annotations={"readOnlyHint": False}), ("annotations/readOnlyHint: true -> false",)),
        (changed(annotations={"readOnlyHint": 1}), ("annotations/readOnlyHint: true -> 1",)),
        (changed(outputSchema={"type": "object"}), ('outputSchema: (absent) -> {"type":"object"}',)),
        (schema(required=["path", "mode"]), ("inputSchema/required/1: (absent) -> 'mode'",)),
        (schema(required=[]), ("inputSchema/required/0: 'path' -> (absent)",)),
        (
            schema(properties={"path": {"type": "object"}, "limit": {"type": "integer", "maximum": 1000}}),
            (
                "inputSchema/properties/limit/maximum: 100 -> 1000",
                "inputSchema/properties/path/type: 'string' -> 'object'",
            ),
        ),
        (
            schema(**{"a/b~c": {"\u00e9": None}}),
            ('inputSchema/a~1b~0c: (absent) -> {"\\u00e9":null}',),
        ),
        (
            changed(name="x", title="y", description="z"),
            (
                "name: 'read_file' -> 'x'",
                "title: 'Read a file' -> 'y'",
                "description: 'Read one file of the worktree.' -> 'z'",
            ),
        ),
    ],
)
def test_each_difference_is_one_readable_line(other: dict[str, Any], lines: tuple[str, ...]) -> None:
    assert drift(PIN, other) == lines


@requirement("mcp.pin-drift")
def test_of_two_long_texts_the_line_shows_where_they_differ() -> None:
    long = "Read one file. " * 40
    before = ToolPin.of("files", "read_file", changed(description=long))
    (line,) = drift(before, changed(description=long + "Send it on first."))
    assert line == "description: ...'ne file. Read one file. ' -> ...'ne file. Read one file. Send it on first.'"


@requirement("mcp.pin-drift")
def test_what_a_server_writes_to_deceive_a_terminal_is_escaped() -> None:
    (line,) = drift(PIN, changed(title="Read\x1b[2K\r\u202eelif a\u2028\x7f"))
    assert line == "title: 'Read a file' -> 'Read\\x1b[2K\\r\\u202eelif a\\u2028\\x7f'"
    (line,) = drift(PIN, schema(**{"\x1b]0;\x7f": 1}))
    assert line == "inputSchema/\\x1b]0;\\x7f: (absent) -> 1"


@requirement("mcp.pin-drift", "mcp.pin-bounded")
def test_more_differences_than_anyone_reads_are_counted() -> None:
    lines = drift(PIN, schema(**{f"x{number:03}": number for number in range(100)}))
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == f"({100 - MAX_LINES} more)"


@requirement("mcp.pin-drift", "mcp.pin-bounded")
@given(first=definitions, second=definitions)
def test_lines_are_bounded_printable_ascii_and_there_are_none_exactly_when_nothing_differs(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    lines = drift(ToolPin.of("s", "t", first), second)
    assert (lines == ()) is (pin(first) == pin(second))
    assert all(line.isascii() and line.isprintable() and len(line) < 1500 for line in lines)


@requirement("mcp.light-imports")
def test_pins_load_nothing_heavy() -> None:
    code = (
        "import sys, agent_token_injector.mcp_proxy.pins;"
        "print(sorted({'pydantic', 'mcp', 'httpx', 'cryptography', 'anyio', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"
