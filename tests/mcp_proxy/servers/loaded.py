"""An MCP server over stdio that answers fast, and misbehaves on request: plain standard library, raw descriptors."""

import json
import os
import threading
from typing import Any

TOOLS = ("echo", "large", "tool_error", "wait", "pid", "exit", "flood", "shout", "garbage", "progress")
NOTE = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "z" * 200}})
writing = threading.Lock()


def put(data: bytes, fd: int = 1) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(document: object) -> None:
    with writing:
        put(json.dumps(document).encode() + b"\n")


def answer(message_id: object, text: str, **more: object) -> None:
    send({"jsonrpc": "2.0", "id": message_id, "result": {"content": [{"type": "text", "text": text}], **more}})


def repeat(data: bytes, fd: int) -> None:
    """Write it for ever, whole lines at a time, from a thread of its own."""

    def run() -> None:
        while True:
            if fd == 1:
                with writing:
                    put(data)
            else:
                put(data, fd)

    threading.Thread(target=run, daemon=True).start()


def call(message_id: object, name: str, params: dict[str, Any]) -> None:
    arguments = params.get("arguments", {})
    if name == "echo":
        answer(message_id, str(arguments.get("text", "")))
    elif name == "large":
        answer(message_id, "x" * int(arguments["size"]))
    elif name == "tool_error":
        answer(message_id, "it did not work", isError=True)
    elif name == "pid":
        answer(message_id, str(os.getpid()))
    elif name == "exit":
        os._exit(3)
    elif name == "flood":
        repeat((NOTE + "\n").encode() * 100, 1)
        answer(message_id, "flooding")
    elif name == "shout":
        repeat(b"!" * 8192, 2)
        answer(message_id, "shouting")
    elif name == "garbage":
        repeat(b"y" * 65536, 1)
    elif name == "progress":
        progress = {"progressToken": params["_meta"]["progressToken"], "progress": 1}
        send({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})


def main() -> None:
    rest = b""
    while chunk := os.read(0, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            method = message.get("method")
            if "id" not in message or method is None:
                continue
            if method == "initialize":
                info = {"name": "loaded", "version": "1"}
                says = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
                send({"jsonrpc": "2.0", "id": message["id"], "result": says})
            elif method == "tools/list":
                tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
                send({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": tools}})
            elif method == "tools/call":
                call(message["id"], message["params"]["name"], message["params"])
            else:
                send({"jsonrpc": "2.0", "id": message["id"], "result": {}})


if __name__ == "__main__":
    main()
