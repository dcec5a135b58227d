from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.masking import MASK, MAX_DEPTH, Redactor
from tests.requirements import requirement

TOKEN = "ghs_Zk3+x/9Q~pLm?vW2"
SECRETS = [TOKEN, "nul\x00 in it", "4711", "12345678"]

texts = st.lists(
    st.sampled_from(
        [*SECRETS, "4", "7", "11", " ", "\x00", "\\", "%", "a", "é", "\U0001d54f", TOKEN.encode().hex(), "\ue000"]
    ),
    max_size=4,
).map("".join)
values = st.recursive(
    texts | st.none() | st.booleans() | st.sampled_from([1, 4711, 12345678, 4711.0, -4711, 0.5]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def masked_text_by_text(known: Redactor, value: Any) -> tuple[Any, int]:
    """The promise, one text at a time."""
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        total = 0
        for key, item in value.items():
            name, in_key = known.text_counted(key)
            inner, in_item = masked_text_by_text(known, item)
            number = 1
            unique = name
            while unique in result:
                number += 1
                unique = f"{name}#{number}"
            result[unique] = inner
            total += in_key + in_item
        return result, total
    if isinstance(value, list):
        pairs = [masked_text_by_text(known, item) for item in value]
        return [inner for inner, _ in pairs], sum(count for _, count in pairs)
    if value is None or isinstance(value, bool):
        return value, 0
    text, count = known.text_counted(str(value))
    return (text if count else value), count


@requirement("masking.json")
@settings(deadline=None, max_examples=300)
@given(value=values, secrets=st.lists(st.sampled_from(SECRETS), unique=True))
def test_a_document_is_masked_as_each_of_its_texts_would_be(value: Any, secrets: list[str]) -> None:
    known = Redactor(secrets)
    before = copy.deepcopy(value)

    masked = known.json_counted(value)

    assert repr(masked) == repr(masked_text_by_text(known, value))
    assert repr(value) == repr(before)


@requirement("masking.untouched")
@settings(deadline=None)
@given(value=values)
def test_a_document_with_nothing_to_mask_is_returned_itself(value: Any) -> None:
    for known in (Redactor(), Redactor(["not in there"]), Redactor(["not in there", "nul\x00 but not there"])):
        masked, count = known.json_counted(value)

        assert masked is value
        assert count == 0


@requirement("masking.untouched")
def test_text_and_bytes_with_nothing_to_mask_are_returned_themselves() -> None:
    text, data = "some text \\n %20", b"some bytes \\n %20"
    known = Redactor([TOKEN])

    assert known.text_counted(text)[0] is text
    assert known.bytes_counted(data)[0] is data


@requirement("masking.json")
def test_no_secret_is_found_across_two_texts_and_none_is_missed_beside_the_border() -> None:
    known = Redactor(["abcdefgh", "ij\x00klmnop", "42"])

    assert known.json_counted(["abcd", "efgh", "ij", "klmnop", "4", "2"])[1] == 0
    assert known.json_counted(["\x00", "\x00abcdefgh\x00", "ij\x00klmnop", "4", "42"]) == (
        ["\x00", f"\x00{MASK}\x00", MASK, "4", MASK],
        3,
    )
    assert Redactor(["abcdefgh"]).json_counted(["a\x00b", "\x00abcdefgh\x00", {"\x00": "abcdefgh"}]) == (
        ["a\x00b", f"\x00{MASK}\x00", {"\x00": MASK}],
        2,
    )


@requirement("masking.json")
@pytest.mark.parametrize("secrets", [[], [TOKEN]])
def test_what_is_no_plain_json_is_taken_as_its_text(secrets: list[str]) -> None:
    value = {1: ("a", b"b"), "hidden": SecretStr("unknown to it"), None: {"x": 1}}

    assert Redactor(secrets).json_counted(value) == ({"1": ["a", "b'b'"], "hidden": MASK, "None": {"x": 1}}, 1)


@requirement("masking.json")
@pytest.mark.parametrize("secrets", [[], [TOKEN]])
def test_a_document_is_read_to_the_same_depth_whether_or_not_it_holds_a_secret(secrets: list[str]) -> None:
    def nested(depth: int) -> Any:
        value: Any = "leaf"
        for _ in range(depth):
            value = [value]
        return value

    allowed, too_deep = nested(MAX_DEPTH - 1), nested(MAX_DEPTH)

    assert Redactor(secrets).json_counted(allowed) == (allowed, 0)
    assert Redactor(secrets).json_counted(too_deep)[1] == 1
    assert str(Redactor(secrets).json(too_deep)).strip("[]'") == MASK


@requirement("masking.untouched")
def test_a_document_that_is_masked_is_a_copy() -> None:
    value = {"kept": ["a", {"b": 1.5}], "token": TOKEN}

    masked = Redactor([TOKEN]).json(value)

    assert masked == {"kept": ["a", {"b": 1.5}], "token": MASK}
    assert value["token"] == TOKEN
