from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from agent_token_injector.masking import MASK, Redactor
from tests.masking.readers import WRITERS, randomly, readings
from tests.requirements import requirement

# Letters that mean something to some encoding make a secret hard to tell from its surroundings.
HARD = '\\u0041n"/%+ aAf25-_=\n\té\U0001d54f>?~bz'
# What may stand before a secret and take its first characters for the rest of an escape.
BITERS = ["", "x", " ", "\\", "\\\\", "\\\\\\", "%", "%%", "%4", "\\u", "\\u0", "\\u00", "\\u004", "%2", "A", "+"]

hard_secrets = (
    st.text(alphabet=HARD, min_size=8, max_size=24) | st.text(min_size=8, max_size=24).filter(str.isprintable)
).filter(lambda text: len(text.strip()) >= 8)
each_writer = pytest.mark.parametrize("name", WRITERS)
seeds = st.integers(0, 2**32)


@requirement("masking.encodings", "H6.no-values")
@each_writer
@settings(deadline=None, max_examples=150)
@given(secrets=st.lists(hard_secrets, min_size=1, max_size=3), before=st.sampled_from(BITERS), seed=seeds)
@example(secrets=["\\" * 8], before="\\", seed=1)
@example(secrets=["\\\\u0041bcdef"], before="\\", seed=2)
@example(secrets=["u00412345 word"], before="\\", seed=3)
@example(secrets=["41bcdefgh ij"], before="%", seed=4)
def test_nobody_can_read_a_secret_from_what_is_shown(name: str, secrets: list[str], before: str, seed: int) -> None:
    rng = randomly(seed)
    secret = secrets[0]
    written = WRITERS[name](secret, rng)
    whole = before.encode() + written + rng.choice(["", "!", "\\", "%", "a", "="]).encode()
    assume(secret not in MASK)

    masked, count = Redactor(secrets).bytes_counted(whole)

    assert count >= 1
    shown = masked.replace(MASK.encode(), b"\x00")
    assert not any(secret.encode() in reading for reading in readings(shown))


@requirement("masking.encodings")
@settings(deadline=None, max_examples=300)
@given(secrets=st.lists(hard_secrets, min_size=1, max_size=3), seed=seeds)
def test_secrets_side_by_side_are_all_masked_in_whatever_encodings(secrets: list[str], seed: int) -> None:
    rng = randomly(seed)
    whole = b"".join(
        rng.choice(BITERS).encode() + WRITERS[rng.choice(list(WRITERS))](rng.choice(secrets), rng) for _ in range(4)
    )
    assume(not any(secret in MASK for secret in secrets))

    shown = Redactor(secrets).bytes(whole).replace(MASK.encode(), b"\x00")

    assert not any(secret.encode() in reading for reading in readings(shown) for secret in secrets)


@requirement("masking.exact")
@each_writer
@settings(deadline=None, max_examples=150)
@given(
    secret=st.text(alphabet="abcdefXYZ0123456789/+% \\\"'-_é", min_size=8, max_size=24),
    at=st.integers(2, 5),
    before=st.sampled_from(BITERS),
    seed=seeds,
)
def test_nothing_is_masked_where_one_character_differs(name: str, secret: str, at: int, before: str, seed: int) -> None:
    assume(secret == secret.strip())
    other = secret[:at] + "#" + secret[at + 1 :]
    whole = before.encode() + WRITERS[name](other, randomly(seed)) + b"."

    assert Redactor([secret]).bytes_counted(whole) == (whole, 0)


@requirement("masking.exact")
@settings(deadline=None, max_examples=300)
@given(
    secrets=st.lists(st.text(alphabet="ab1%+ \\nu/", min_size=8, max_size=12), min_size=1, max_size=3),
    data=st.text(alphabet="ab1%+ \\nu/0246cdef", max_size=60).map(str.encode),
)
def test_nothing_is_masked_where_nobody_can_read_a_secret(secrets: list[str], data: bytes) -> None:
    found = set(readings(data))
    secrets = [secret.strip() for secret in secrets if len(secret.strip()) >= 8]
    assume(not any(secret.encode() in reading for reading in found for secret in secrets))

    assert Redactor(secrets).bytes_counted(data) == (data, 0)


@requirement("masking.encodings")
@pytest.mark.parametrize(
    "written",
    [
        r"Pz8%2fPj4\u002bfn5+",
        r"Pz8\/Pj4%2Bfn5-",
        r"Pz8_Pj4-fn5\u002B",
        r"Pz8\u002FPj4+fn5%2b",
        r"\/Pz8%2FPj4%2bfn5%2B%3D",
    ],
)
def test_base64_may_be_escaped_in_several_ways_at_once(written: str) -> None:
    masked = Redactor(["???>>>~~~"]).text(f"<{written}>")

    assert masked in {f"<{MASK}>", rf"<\/{MASK}%3D>", rf"<\{MASK}%3D>"}
