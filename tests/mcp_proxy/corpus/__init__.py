"""The hostile corpus: one file a way round that somebody has tried on some proxy, and what ours must answer.

Each `*.json` here has these members. `kind` is what is done:

    "message"   a client sends `body` over `fronts`, in `eras`; then an allowed call, which shows what arrived before it.
    "server"    a server says `says` while it answers the tool `play`; then the same.

    name, item, source, tries, requirement   what it is; `item` is the number in the checklist of 30 ways
    fronts, eras     where it applies: "http", "stdio"; "handshake", "stateless"
    body             text, or a list of texts, {"hex": "..."} and {"repeat": "...", "times": n}. `$META` stands for the
                     era's `_meta` object, `$MEMBERS` for its members with a comma behind
    target           what the routing headers say over stateless HTTP: [method] or [method, name]
    headers          pairs that are sent beside the usual headers over HTTP; a null takes a usual one away, and a usual
                     name replaces it unless `twice` is true
    verb, path       of the HTTP request
    expect.http      by era: [status, error code | "result" | null where the message is not even looked at]
    expect.stdio     the answers in their order: error code | "result"
    reaches          by front: names of the tools that the server is asked for because of it
    heavy            true: tried before one server alone, for its size

    says             lines of the server: `$ID` is the call's id as the server knows it, `$WAIT` that of another call
    expect.ends      how the call ends: "end", which the server says last, or an error code; or that by the server's transport
    expect.seen      methods of what else the client is sent
    expect.answers   what the server's own questions are answered with: error code | "result"
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.mcp_proxy.harness import META, STATELESS

HERE: Final = Path(__file__).parent
HOSTILE: Final = HERE / "hostile.py"
ERAS: Final = ("handshake", "stateless")
FRONTS: Final = ("http", "stdio")

_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "message": frozenset({"fronts", "eras", "body", "expect", "reaches"}),
    "server": frozenset({"says", "expect"}),
}
_COMMON: Final = frozenset({"kind", "name", "item", "source", "tries", "requirement"})
_OPTIONAL: Final[Mapping[str, frozenset[str]]] = {
    "message": frozenset({"target", "headers", "twice", "verb", "path", "heavy"}),
    "server": frozenset(),
}
_PLAIN: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def load() -> list[dict[str, Any]]:
    """Every case, by file name; each has exactly the members that its kind has."""
    cases = []
    for path in sorted(HERE.glob("*.json")):
        case = json.loads(path.read_text(encoding="ascii"))
        fields = _COMMON | _FIELDS[case["kind"]]
        assert fields <= case.keys() <= fields | _OPTIONAL[case["kind"]], path.name
        assert path.stem == f"{case['item']:02}-{case['name']}", path.name
        cases.append(case)
    return cases


def body(case: Mapping[str, Any], era: str) -> bytes:
    """The bytes to send, without the newline that ends a line over stdio."""
    given = case["body"]
    meta = META if era == "stateless" else {}
    shown = json.dumps(meta)
    members = shown[1:-1] + "," if meta else ""
    raw = b""
    for part in given if isinstance(given, list) else [given]:
        if isinstance(part, str):
            raw += part.replace("$META", shown).replace("$MEMBERS", members).encode()
        elif "hex" in part:
            raw += bytes.fromhex(part["hex"])
        else:
            raw += part["repeat"].encode() * part["times"]
    return raw


def headers(case: Mapping[str, Any], era: str) -> tuple[dict[str, str | None], list[tuple[str, str]]]:
    """Over HTTP: what replaces the usual headers, and what is sent beside them."""
    usual: dict[str, str | None] = {}
    if era == "stateless":
        method, *name = case.get("target", ["tools/call", "forbidden"])
        usual = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": method}
        if name:
            usual["Mcp-Name"] = header_value(name[0])
    given = [(key, value) for key, value in case.get("headers", [])]
    if case.get("twice"):
        return usual, given
    return usual | dict(given), []


def header_value(text: str) -> str:
    """`text` as the value of `Mcp-Name`."""
    if _PLAIN.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="
