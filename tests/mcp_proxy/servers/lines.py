"""An MCP server over stdio for tests of what stands behind the proxy; plain standard library, raw descriptors.

argv[1] is how it behaves: `handshake`, `stateless` (it stays in the era of the first request, and knows no other than
2026-07-28), `mute` (reads and never answers), `dies` (says why on stderr and exits), `deaf` (answers `initialize`, then
reads no more). argv[2], when given, is a file whose lines count the starts.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

HOW = sys.argv[1]
VERSION = "2026-07-28"
TOOLS = [{"name": "echo", "inputSchema": {"type": "object"}}]
seen: list[str] = []
ended = threading.Event()


def put(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def send(document: object, end: bytes = b"\n") -> None:
    put(json.dumps(document).encode() + end)


def result(message: dict[str, Any], value: object, end: bytes = b"\n") -> None:
    send({"jsonrpc": "2.0", "id": message["id"], "result": value}, end)


def text(value: str) -> dict[str, object]:
    return {"content": [{"type": "text", "text": value}]}


def call(message: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:  # noqa: PLR0912 - a table of tools
    if name == "echo":
        result(message, text(json.dumps(arguments)))
    elif name == "seen":
        result(message, text(json.dumps(seen)))
    elif name == "pid":
        result(message, text(str(os.getpid())))
    elif name == "exit":
        os._exit(3)
    elif name == "answer_and_exit":
        result(message, text("the last"))
        os._exit(0)
    elif name == "close_input":
        os.close(0)
        result(message, text("input closed"))
        ended.wait()
    elif name == "large":
        result(message, text("x" * arguments["size"]))
    elif name == "endless":
        while True:
            put(b"y" * 65536)
    elif name == "flood":
        line = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "z" * 100}}).encode()
        put((line + b"\n") * arguments["count"])
        result(message, text("flooded"))
    elif name == "crlf":
        put(b"\r\n\n")
        result(message, text("crlf"), b"\r\n")
    elif name == "noise":
        put(b"not JSON at all\n[1,2]\n\xff\xfe\n")
        for other in (10**6, str(message["id"]), None, True):
            send({"jsonrpc": "2.0", "id": other, "result": {}})
        result(message, text("after the noise"))
    elif name == "nan":
        put(b'{"jsonrpc":"2.0","id":%d,"result":{"x":NaN}}\n' % message["id"])
    elif name == "byte_by_byte":
        for one in json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": text("slow")}).encode() + b"\n":
            put(bytes([one]))
    elif name == "stderr":
        os.write(2, arguments["text"].encode())
        result(message, text("said"))
    elif name == "ask":
        send({"jsonrpc": "2.0", "id": "theirs", "method": "roots/list"})


def handle(message: dict[str, Any]) -> None:
    method = message.get("method")
    seen.append(method if method is not None else f"answer:{message.get('id')}")
    if "id" not in message:
        return
    if method is None:
        send({"jsonrpc": "2.0", "method": "notifications/message", "params": message})
        return
    params = message["params"]
    if HOW == "stateless" and (seen[0] == "initialize" or VERSION not in json.dumps(params.get("_meta"))):
        send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32022, "message": "Unsupported"}})
    elif method == "initialize":
        info = {"name": "lines", "version": "1"}
        says = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
        result(message, {**says, "instructions": "be kind"})
    elif method == "server/discover":
        info = {"io.modelcontextprotocol/serverInfo": {"name": "lines", "version": "2"}}
        result(message, {"supportedVersions": [VERSION], "capabilities": {"tools": {}}, "_meta": info})
    elif method == "tools/list":
        result(message, {"tools": TOOLS})
    elif method == "tools/call":
        call(message, params["name"], params.get("arguments", {}))


def main() -> None:
    if len(sys.argv) > 2:
        with Path(sys.argv[2]).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    if HOW == "dies":
        sys.exit("no such luck")
    rest = b""
    while chunk := os.read(0, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if HOW != "mute":
                handle(json.loads(line))
            if HOW == "deaf" and seen[-1] == "notifications/initialized":
                ended.wait()


if __name__ == "__main__":
    main()
