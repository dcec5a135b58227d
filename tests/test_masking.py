from __future__ import annotations

import base64
import itertools
import json
import pickle
import string
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.masking import MASK, MAX_DEPTH, Redactor
from tests.requirements import requirement

TOKEN = "ghs_Zk3+x/9Q~pLm?vW2"
PHRASE = 'pä ss%20\\w"ord/1+é𝕏'
PEM = "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ\r\nq83vEjRWeJq83vEjRWeJ==\n-----END KEY-----\n"

Encoder = Callable[[bytes], bytes]


def _percent(data: bytes) -> bytes:
    return urllib.parse.quote(data, safe="").encode()


def _percent_lower(data: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte if chr(byte) not in string.ascii_letters else bytes([byte]) for byte in data)


def _json(data: bytes, *, ascii_only: bool = True) -> bytes:
    return json.dumps(data.decode(), ensure_ascii=ascii_only)[1:-1].encode()


ENCODERS: dict[str, Encoder] = {
    "plain": lambda data: data,
    "base64": base64.b64encode,
    "base64 without padding": lambda data: base64.b64encode(data).rstrip(b"="),
    "base64url": base64.urlsafe_b64encode,
    "base64url without padding": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "base64 in JSON": lambda data: base64.b64encode(data).replace(b"/", rb"\/"),
    "base64 in a URL": lambda data: urllib.parse.quote(base64.b64encode(data), safe="").encode(),
    "hex": lambda data: data.hex().encode(),
    "upper-case hex": lambda data: data.hex().upper().encode(),
    "percent": _percent,
    "lower-case percent": _percent_lower,
    "percent of every byte": lambda data: b"".join(b"%%%02X" % byte for byte in data),
    "percent that spares the path": lambda data: urllib.parse.quote(data, safe="/:+").encode(),
    "form": lambda data: urllib.parse.quote_plus(data).encode(),
    "JSON": _json,
    "JSON in UTF-8": lambda data: _json(data, ascii_only=False),
    "JSON with slashes escaped": lambda data: _json(data).replace(b"/", rb"\/"),
    "JSON in upper-case hex": lambda data: b"".join(
        b"\\u%04X" % unit for unit in memoryview(data.decode().encode("utf-16-le")).cast("H")
    ),
}

every_encoding = pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS.keys())

long_secrets = st.text(min_size=8, max_size=40).filter(lambda text: len(text.strip()) >= 8 and text == text.strip())
utf8_secrets = long_secrets.filter(lambda text: text.isascii() or text.encode("utf-8", "ignore").decode() == text)


def redactor(*secrets: str) -> Redactor:
    return Redactor(SecretStr(secret) for secret in secrets)


@requirement("masking.encodings", "H6.no-values")
@every_encoding
@pytest.mark.parametrize("secret", [TOKEN, PHRASE], ids=["token", "phrase"])
@pytest.mark.parametrize("before", ["", "u", "u:", "us:"])
@pytest.mark.parametrize("after", ["", "\n", "@h", "@ho"])
def test_a_secret_is_masked_in_every_encoding_and_alignment(
    encode: Encoder, secret: str, before: str, after: str
) -> None:
    alone = encode(secret.encode())

    masked, count = redactor(secret).bytes_counted(b"<" + encode((before + secret + after).encode()) + b">")

    assert count == 1
    assert alone not in masked
    assert masked.startswith(b"<")
    assert masked.endswith(b">")
    # What is left is what the surroundings took, at most six characters for each of theirs, and padding.
    assert len(masked) <= len(MASK) + 2 + 6 * len(before + after) + 6


@requirement("masking.encodings")
@pytest.mark.parametrize("secret", [TOKEN, PHRASE])
def test_nothing_of_a_secret_is_left_beside_the_asterisks_in_base64(secret: str) -> None:
    for before in (b"", b"u", b"us", b"use"):
        whole = base64.b64encode(before + secret.encode() + b"xyz")
        masked = redactor(secret).bytes(whole)
        left, _, right = masked.partition(MASK.encode())

        assert whole.startswith(left)
        assert len(left) * 6 <= len(before) * 8
        assert len(right.rstrip(b"=")) <= 4


@requirement("masking.encodings")
@settings(deadline=None)
@given(secret=utf8_secrets, before=st.text(max_size=5), after=st.text(max_size=5), name=st.sampled_from(list(ENCODERS)))
@example(secret="+ + + + +", before="", after="", name="form")
@example(secret="%25%25%25%25", before="%", after="2", name="percent")
@example(secret="\\\\\\\\u005cu005c", before="\\", after="\\", name="JSON")
def test_no_random_secret_survives(secret: str, before: str, after: str, name: str) -> None:
    assume((before + after).encode("utf-8", "ignore").decode() == before + after)
    whole = ENCODERS[name]((before + secret + after).encode())
    # Surroundings may not change where the secret's own escapes begin, nor hold it themselves.
    assume(secret not in before + MASK + after)

    masked, count = redactor(secret).bytes_counted(whole)

    assert count >= 1
    assert ENCODERS[name](secret.encode()) not in masked.replace(MASK.encode(), b"\x00")


@requirement("masking.chunks")
@every_encoding
def test_a_secret_is_masked_wherever_the_stream_is_cut(encode: Encoder) -> None:
    known = redactor(PHRASE, "word/1+é𝕏 and on", "abc")
    data = b"abc " + encode((PHRASE + " and on").encode()) + b" xabc abc." + encode(PHRASE.encode())
    whole = known.bytes(data)

    for cut in range(len(data) + 1):
        stream = known.stream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.flush() == whole
    stream = known.stream()
    assert b"".join(stream.feed(bytes([byte])) for byte in data) + stream.flush() == whole


@requirement("masking.chunks")
@settings(deadline=None)
@given(
    secrets=st.lists(st.text(alphabet="ab+% ", min_size=1, max_size=10), min_size=1, max_size=4),
    data=st.binary(max_size=20) | st.text(alphabet="ab+% =2B5", max_size=120).map(str.encode),
    cuts=st.lists(st.integers(0, 120), max_size=6),
)
def test_a_stream_comes_out_as_the_whole_would(secrets: list[str], data: bytes, cuts: list[int]) -> None:
    known = redactor(*secrets)
    stream = known.stream()
    edges = [0, *sorted(cuts), len(data) + 120]

    out = b"".join(stream.feed(data[start:end]) for start, end in itertools.pairwise(edges))

    assert out + stream.flush() == known.bytes(data)


@requirement("masking.chunks")
def test_a_stream_holds_back_no_more_than_its_longest_secret_needs() -> None:
    stream = redactor("aaaaaaaa").stream()
    shown = sum(len(stream.feed(b"a" * 1000)) for _ in range(50))

    assert shown == len(MASK)
    assert "aaaa" not in repr(stream)
    held = int(repr(stream).split("(")[1].split()[0])
    assert held <= 6 * 8 + 2
    assert stream.flush(b"!") == b"!"


@requirement("masking.chunks")
def test_a_stream_can_be_used_again_after_a_flush() -> None:
    stream = redactor("abc").stream()

    assert [stream.flush(b"abc"), stream.flush(b"abc"), stream.count] == [MASK.encode(), MASK.encode(), 2]


@requirement("masking.overlap")
def test_overlapping_secrets_leave_no_tail() -> None:
    known = redactor("abcdefgh1234", "1234ijklmnop", "abcdefgh")

    assert known.text_counted("<abcdefgh1234ijklmnop>") == (f"<{MASK}>", 1)
    assert known.text_counted("abcdefghabcdefgh") == (MASK * 2, 2)


@requirement("masking.overlap")
def test_the_longer_of_two_secrets_is_taken_whatever_its_encoding() -> None:
    known = redactor("a%41%41%41", "aAAAAAAA", "aAAAAAAAB", "%41%41%41%41AAAAAA")

    for text in ("a%41%41%41AAAAB", "aAAAAAAAB", "%41%41%41%41AAAAAA"):
        assert known.text(f"<{text}>") == f"<{MASK}>"


@requirement("masking.overlap")
@settings(deadline=None)
@given(
    secrets=st.lists(st.text(alphabet="abc", min_size=8, max_size=14), min_size=1, max_size=4),
    text=st.text(alphabet="abc-", max_size=80),
)
def test_exactly_the_covered_places_are_masked(secrets: list[str], text: str) -> None:
    covered = [False] * len(text)
    for secret in secrets:
        for start in range(len(text)):
            if text.startswith(secret, start):
                covered[start : start + len(secret)] = [True] * len(secret)

    shown = "".join(letter for letter, hidden in zip(text, covered, strict=True) if not hidden)

    assert redactor(*secrets).text(text).replace("*", "") == shown


@requirement("masking.lines")
@every_encoding
def test_each_line_of_a_secret_is_masked_by_itself(encode: Encoder) -> None:
    known = redactor(PEM)

    for line in PEM.splitlines():
        if len(line) >= 8:
            assert encode(line.encode()) not in known.bytes(b"|" + encode(line.encode()) + b"|")
    assert known.text(PEM.replace("\r\n", "\n")).count("MC4C") == 0
    assert known.text(json.dumps(json.dumps({"key": PEM}))).count("q83v") == 0


@requirement("masking.lines")
def test_a_secret_is_found_without_the_newline_that_its_file_ended_in() -> None:
    assert redactor(TOKEN + "\n").text(f"token={TOKEN}&") == f"token={MASK}&"


@requirement("masking.short")
@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("pin 4711", f"pin {MASK}"),
        ("pin=4711;", f"pin={MASK};"),
        ("order 847112", "order 847112"),
        ("a4711", "a4711"),
        ("4711b 4711", f"4711b {MASK}"),
        (base64.b64encode(b"4711").decode(), base64.b64encode(b"4711").decode()),
        ("34373131", "34373131"),
    ],
)
def test_a_short_secret_is_masked_as_a_whole_word_only(text: str, masked: str) -> None:
    assert redactor("4711").text(text) == masked


@requirement("masking.short")
@pytest.mark.parametrize("blank", ["", " ", "\n\t", " " * 20])
def test_a_blank_secret_masks_nothing(blank: str) -> None:
    text = "some  text\n\twith " + " " * 30 + "blanks"

    assert redactor(blank).text_counted(text) == (text, 0)


@requirement("masking.exact")
@settings(deadline=None)
@given(st.text())
def test_text_without_a_secret_is_returned_as_it_was(text: str) -> None:
    assume(TOKEN not in text)

    assert redactor(TOKEN, PHRASE).text_counted(text) == (text, 0)
    assert Redactor().text(text) == text


@requirement("masking.exact")
@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_taken(data: bytes) -> None:
    assert redactor(TOKEN).bytes(data) == data


@requirement("masking.exact")
def test_an_almost_secret_is_not_masked() -> None:
    for near in (TOKEN[:-1], TOKEN[1:], TOKEN.swapcase(), TOKEN[::-1]):
        assert redactor(TOKEN).text(near) == near


@requirement("masking.json")
def test_json_is_masked_in_values_keys_and_numbers() -> None:
    known = redactor(TOKEN, "12345678")
    value = {
        "list": [TOKEN, 1, None, True, 2.5],
        TOKEN: {"deep": f"Bearer {TOKEN}"},
        "x" + TOKEN: 12345678,
        f"{TOKEN}/": SecretStr("unknown to it"),
    }

    masked, count = known.json_counted(value)

    assert masked == {
        "list": [MASK, 1, None, True, 2.5],
        MASK: {"deep": f"Bearer {MASK}"},
        f"x{MASK}": MASK,
        f"{MASK}/": MASK,
    }
    assert count == 7
    assert value["list"][0] == TOKEN  # type: ignore[index]


@requirement("masking.json")
def test_keys_that_are_alike_once_masked_are_kept_apart() -> None:
    assert redactor("secret-one", "secret-two").json({"secret-one": 1, "secret-two": 2}) == {MASK: 1, f"{MASK}#2": 2}


@requirement("masking.json")
def test_json_nested_too_deep_is_masked_whole() -> None:
    value: object = TOKEN
    for _ in range(20 * MAX_DEPTH):
        value = [value]

    masked = redactor(TOKEN).json(value)

    assert str(masked).strip("[]'") == MASK


@requirement("masking.immutable")
def test_more_secrets_make_another_redactor() -> None:
    one = redactor("secret-one")
    two = one.with_secrets([SecretStr("secret-two")])

    assert one.text("secret-one secret-two") == f"{MASK} secret-two"
    assert two.text("secret-one secret-two") == f"{MASK} {MASK}"
    assert two.with_secrets([SecretStr("secret-one")]) is two


@requirement("masking.silent", "H6.no-values")
def test_a_redactor_tells_how_many_secrets_it_has_and_nothing_else() -> None:
    known = redactor(TOKEN, PHRASE, TOKEN)
    known.text("% \\ +")

    assert repr(known) == str(known) == "Redactor(2 secrets)"
    assert known.secret_count == 2
    with pytest.raises(TypeError, match="not written down"):
        pickle.dumps(known)
