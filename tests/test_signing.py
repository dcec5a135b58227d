"""Canonical JSON, digests and signatures: one spelling, one digest, one signature, bound to what was signed."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_token_injector.errors import SettingsError, SignatureInvalid
from agent_token_injector.signing import SigningKey, VerifyKey, canonical, digest, secret_digest
from tests.requirements import requirement
from tests.strategies import json_objects

SEED = bytes(range(32))
KEY = SigningKey.from_seed(SEED)
TAG = "agent_token_injector/test/v1"
DOCUMENT = {
    "b": [1, 2.5, True, None],
    "a": {"\u20ac": "\u00e9\n", "z": "x", "": 1e21},
    "A": -0.0,
    "\U0001f600": "s",
    "\ufb33": 1,
}


@requirement("D6.canonical")
def test_the_canonical_form_and_digest_of_a_fixed_document_never_change() -> None:
    # RFC 8785 §3.2.3: keys in the order of their UTF-16 code units, so the emoji (D83D) comes before U+FB33.
    assert canonical(DOCUMENT).decode() == (
        '{"A":0,"a":{"":1e+21,"z":"x","\u20ac":"\u00e9\\n"},"b":[1,2.5,true,null],"\U0001f600":"s","\ufb33":1}'
    )
    assert digest(TAG, DOCUMENT) == "sha256:8c2fd0c6281e82a23ccfe9d4d842312a19cf3cf7c7b1a8552be1e708fa3e42cd"
    assert digest(TAG, DOCUMENT) == "sha256:" + hashlib.sha256(TAG.encode() + b"\x00" + canonical(DOCUMENT)).hexdigest()


@requirement("D6.signature")
def test_the_signature_of_a_fixed_key_and_document_never_changes() -> None:
    assert KEY.key_id == "56475aa75463474c"
    assert str(KEY.public) == "ed25519:A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
    assert (
        KEY.sign(TAG, DOCUMENT)
        == "Q7e9XaczDrjh/B0r71aLonP3KsEdqPjNnneC76HU7VF0kCO6fWVNX5Y2BT8pUoF4aQN23orgeD034EREAvJNBQ=="
    )


@requirement("D6.canonical")
@given(json_objects)
def test_the_canonical_form_is_json_of_the_same_meaning_and_its_own_canonical_form(document: dict[str, Any]) -> None:
    once = canonical(document)
    assert json.loads(once) == document
    assert canonical(json.loads(once)) == once


@requirement("D6.canonical")
@pytest.mark.parametrize(
    "document", [float("nan"), float("inf"), 2**53, "\ud800", {"\udfff": 1}, {1: 2}, b"x", object(), {"a": {1, 2}}]
)
def test_what_is_not_plain_json_has_no_canonical_form(document: Any) -> None:
    with pytest.raises(ValueError):
        canonical(document)


@requirement("D6.canonical")
@given(json_objects, json_objects)
def test_two_documents_share_a_digest_only_when_they_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (digest(TAG, one) == digest(TAG, other)) == (canonical(one) == canonical(other))


@requirement("D6.type-tag")
def test_one_document_of_two_types_has_two_digests_and_two_signatures() -> None:
    other = "agent_token_injector/other/v1"
    assert digest(TAG, DOCUMENT) != digest(other, DOCUMENT)
    with pytest.raises(SignatureInvalid):
        KEY.public.verify(other, DOCUMENT, KEY.sign(TAG, DOCUMENT))


@requirement("D6.signature")
@given(json_objects)
def test_a_signature_verifies_whatever_the_order_of_the_keys(document: dict[str, Any]) -> None:
    signature = KEY.sign(TAG, document)
    KEY.public.verify(TAG, dict(reversed(document.items())), signature)


@requirement("D6.signature")
@settings(max_examples=200)
@given(st.data())
def test_a_signature_with_any_one_character_changed_does_not_verify(data: st.DataObject) -> None:
    # Every character, the last before the padding too: base64 has unused bits there, and a decoder may overlook them.
    signature = KEY.sign(TAG, DOCUMENT)
    at = data.draw(st.integers(0, len(signature) - 1) | st.just(85))
    other = data.draw(
        st.sampled_from(string.ascii_letters + string.digits + "+/=-_ \n\u00e9").filter(lambda c: c != signature[at])
    )
    with pytest.raises(SignatureInvalid):
        KEY.public.verify(TAG, DOCUMENT, signature[:at] + other + signature[at + 1 :])


@requirement("D6.signature")
@pytest.mark.parametrize("signature", ["", "A", "=" * 88, "A" * 86 + "==", "A" * 88, "not base64!", "\u00e9", "\ud800"])
def test_what_is_not_a_signature_does_not_verify(signature: str) -> None:
    with pytest.raises(SignatureInvalid):
        KEY.public.verify(TAG, DOCUMENT, signature)


@requirement("D6.signature")
def test_a_signature_has_one_spelling() -> None:
    signature = KEY.sign(TAG, DOCUMENT)
    for spelled in (signature + "\n", " " + signature, signature.rstrip("="), signature + "=="):
        with pytest.raises(SignatureInvalid):
            KEY.public.verify(TAG, DOCUMENT, spelled)


@requirement("D6.signature")
@given(st.data())
def test_a_document_changed_in_one_byte_does_not_verify(data: st.DataObject) -> None:
    raw = canonical(DOCUMENT)
    at = data.draw(st.integers(0, len(raw) - 1))
    try:
        changed = json.loads(raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :])
    except ValueError:
        return
    signature = KEY.sign(TAG, DOCUMENT)
    try:
        same = canonical(changed) == raw
    except ValueError:
        same = False
    if same:
        KEY.public.verify(TAG, changed, signature)
    else:
        with pytest.raises(SignatureInvalid):
            KEY.public.verify(TAG, changed, signature)


@requirement("D6.signature")
def test_another_keys_signature_does_not_verify() -> None:
    other = SigningKey.generate()
    assert other.key_id != KEY.key_id
    with pytest.raises(SignatureInvalid):
        KEY.public.verify(TAG, DOCUMENT, other.sign(TAG, DOCUMENT))


@requirement("D6.signature")
def test_a_public_key_and_a_seed_read_back() -> None:
    key = SigningKey.generate()
    assert VerifyKey.parse(f" {key.public}\n") == key.public
    assert SigningKey.from_seed(key.seed()).public == key.public


@requirement("D6.signature")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "ed25519:AAAA",
        "rsa:" + "A" * 43 + "=",
        "A" * 43 + "=",
        "ed25519:" + "A" * 44,
        "ed25519:" + "-" * 43 + "=",
    ],
)
def test_what_is_not_a_public_key_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        VerifyKey.parse(text)


@requirement("H6.key-hidden")
@pytest.mark.parametrize("seed", [b"", b"x" * 31, b"x" * 33, b"x" * 64])
def test_a_seed_of_another_length_is_refused_without_being_quoted(seed: bytes) -> None:
    with pytest.raises(SettingsError) as caught:
        SigningKey.from_seed(seed)
    assert "xxx" not in caught.value.diagnostics()


@requirement("H6.key-hidden")
def test_a_signing_key_shows_its_id_and_never_its_seed() -> None:
    shown = " ".join([repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr({"key": KEY}), f"{KEY!r}"])
    assert KEY.key_id in shown
    for spelled in (SEED.hex(), base64.b64encode(SEED).decode(), repr(SEED), base64.urlsafe_b64encode(SEED).decode()):
        assert spelled not in shown


@requirement("H6.key-hidden")
def test_a_signing_key_cannot_be_written_out_by_accident() -> None:
    for write_out in (pickle.dumps, json.dumps):
        with pytest.raises(TypeError):
            write_out(KEY)
    with pytest.raises(ValueError):
        canonical({"key": KEY})


@requirement("D6.secret-digest")
def test_a_secrets_digest_depends_on_value_and_salt_and_quotes_neither() -> None:
    salt, other = "00" * 16, "01" * 16
    found = secret_digest("hunter2", salt)
    assert found == secret_digest("hunter2", salt)
    assert len({found, secret_digest("hunter3", salt), secret_digest("hunter2", other)}) == 3
    assert found.startswith("hmac-sha256:")
    assert "hunter2" not in found
    assert found == "hmac-sha256:48d1763b879fda850b0a9457bae301bb6f6d50b9a240a8d995639c6f14d80ea1"
