"""Writers and readers of every encoding that masking promises, as slow and obvious as they can be.

A writer takes a secret's text and a random source, and chooses freely where it may: case, what is escaped, alignment,
alphabet. The readers give every text that somebody could read from given bytes, from whichever byte they begin.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Callable, Iterator

Writer = Callable[[str, random.Random], bytes]

ESCAPES = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
BASE64_SPELLINGS = {
    "+": ("+", "-", "%2b", "%2B", r"\u002b", r"\u002B"),
    "/": ("/", "_", "%2f", "%2F", r"\/", r"\u002f", r"\u002F"),
    "=": ("=", "%3d", "%3D", r"\u003d", ""),
}


def randomly(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same choices in every run


def any_case(text: str, rng: random.Random) -> str:
    return "".join(rng.choice((letter.lower(), letter.upper())) for letter in text)


def plain(text: str, _: random.Random) -> bytes:
    return text.encode()


def hexadecimal(text: str, rng: random.Random) -> bytes:
    return any_case(text.encode().hex(), rng).encode()


def percent(text: str, rng: random.Random) -> bytes:
    often = rng.choice((0.1, 0.5, 1.0))
    out = b""
    for byte in text.encode():
        if byte == ord("%") or rng.random() < often:
            out += b"%" + any_case(f"{byte:02x}", rng).encode()
        else:
            out += b"+" if byte == ord(" ") and often == 0.5 else bytes([byte])
    return out


def json_string(text: str, rng: random.Random) -> bytes:
    often = rng.choice((0.1, 0.5, 1.0))
    out = ""
    for letter in text:
        escape = letter == "\\" or rng.random() < often
        if escape and letter in ESCAPES and rng.random() < 0.5:
            out += "\\" + ESCAPES[letter]
        elif escape:
            units = letter.encode("utf-16-be")
            out += "".join("\\u" + any_case(units[at : at + 2].hex(), rng) for at in range(0, len(units), 2))
        else:
            out += letter
    return out.encode()


def base64_of_something_longer(text: str, rng: random.Random) -> bytes:
    whole = rng.randbytes(rng.randrange(4)) + text.encode() + rng.randbytes(rng.randrange(4))
    letters = base64.b64encode(whole).decode()
    return "".join(rng.choice(BASE64_SPELLINGS.get(letter, (letter,))) for letter in letters).encode()


WRITERS: dict[str, Writer] = {
    "plain": plain,
    "hex": hexadecimal,
    "percent": percent,
    "JSON": json_string,
    "base64": base64_of_something_longer,
}


def _from_percent(data: bytes) -> bytes:
    return re.sub(rb"%([0-9a-fA-F]{2})", lambda found: bytes([int(found[1], 16)]), data)


def _from_json(data: bytes) -> bytes:
    def unescaped(found: re.Match[bytes]) -> bytes:
        return json.loads(b'"' + found[0] + b'"').encode("utf-8", "surrogatepass")

    escape = rb'\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]'
    return re.sub(escape, unescaped, data)


def _from_base64(data: bytes) -> Iterator[bytes]:
    for letter, spellings in BASE64_SPELLINGS.items():
        for spelling in spellings:
            if spelling:
                data = data.replace(spelling.encode(), letter.encode())
    for run in re.findall(rb"[A-Za-z0-9+/]{8,}", data):
        for shift in range(4):
            padded = run[shift:] + b"AAA"
            yield base64.b64decode(padded[: len(padded) // 4 * 4])


def _from_hex(data: bytes) -> Iterator[bytes]:
    for run in re.findall(rb"[0-9a-fA-F]{8,}", data):
        for shift in range(2):
            yield bytes.fromhex(run[shift : shift + (len(run) - shift) // 2 * 2].decode())


def readings(data: bytes) -> Iterator[bytes]:
    """Everything somebody may read from the data."""
    yield data
    yield from _from_hex(data)
    yield from _from_base64(data)
    for begin in range(len(data)):
        part = data[begin:]
        yield _from_json(part)
        yield _from_percent(part)
        yield _from_percent(part.replace(b"+", b" "))
