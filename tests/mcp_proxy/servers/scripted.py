"""An MCP server of a few lines, for tests: it writes down every line it is sent, and does what its tools' names say.

Plain standard library, so that nothing between it and the pipe could hide what arrived. `SCRIPTED_LOG` is where it
writes; `SCRIPTED_START` changes how it starts: `silent`, `dies`, `pages`, `twice`, `endless`, `ancient`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LOG = os.environ["SCRIPTED_LOG"]
START = os.environ.get("SCRIPTED_START", "")
OPEN = {"type": "object"}
TOOLS = {
    "echo": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["text"],
    },
    "environ": OPEN,
    "wait": OPEN,
    "reveal": OPEN,
    "fail": OPEN,
    "ask_back": OPEN,
    "exit": OPEN,
    "nan": OPEN,
    "task": OPEN,
    "spawn_child": OPEN,
    "spawn_daemon": OPEN,
    "answer_others": OPEN,
    "forbidden": OPEN,
}


def definition(name: str) -> dict[str, object]:
    return {"name": name, "description": f"does {name}", "inputSchema": TOOLS[name], "x-extra": {"$anchor": "kept"}}


def write_down(line: str) -> None:
    with Path(LOG).open("a", encoding="utf-8") as file:
        file.write(line)


def send(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def answer(message_id: object, text: str) -> None:
    send({"jsonrpc": "2.0", "id": message_id, "result": {"content": [{"type": "text", "text": text}]}})


def listed(message: dict[str, Any]) -> dict[str, object]:
    names = list(TOOLS)
    if START == "twice":
        return {"tools": [definition("echo"), definition("echo")]}
    if START == "endless":
        return {"tools": [], "nextCursor": "again"}
    if START != "pages":
        return {"tools": [definition(name) for name in names]}
    at = int(message["params"].get("cursor", "0"))
    page: dict[str, object] = {"tools": [definition(names[at])]}
    if at + 1 < len(names):
        page["nextCursor"] = str(at + 1)
    return page


def spawn_daemon() -> int:
    """Start a daemon that starts a daemon, each in a session of its own and deaf to SIGTERM. Returns the second's id."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        for generation in range(4):
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            if os.fork() != 0:
                # A double fork each: the first one leaves, the second one stays.
                if generation % 2:
                    time.sleep(600)
                os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.write(writing, str(os.getpid()).encode())
        os.close(writing)
        time.sleep(600)
        os._exit(0)
    os.close(writing)
    return int(os.read(reading, 32))


def spawn_child() -> int:
    return subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).pid


SPAWNING = {"spawn_child": spawn_child, "spawn_daemon": spawn_daemon}


def call(message_id: object, name: str, arguments: dict[str, Any]) -> None:
    if name == "echo":
        answer(message_id, json.dumps(arguments, sort_keys=True))
    elif name == "environ":
        home = [str(path) for path in Path(os.environ["HOME"]).iterdir()]
        answer(message_id, json.dumps({"env": dict(os.environ), "cwd": str(Path.cwd()), "home": home}))
    elif name == "reveal":
        answer(message_id, f"the token is {os.environ['GRANTED']}")
    elif name == "fail":
        problem = {"code": -32050, "message": f"no: {os.environ['GRANTED']}", "data": {"token": os.environ["GRANTED"]}}
        send({"jsonrpc": "2.0", "id": message_id, "error": problem})
    elif name == "ask_back":
        send({"jsonrpc": "2.0", "id": "mine", "method": "sampling/createMessage", "params": {}})
        answer(message_id, sys.stdin.readline())
    elif name == "exit":
        os._exit(3)
    elif name == "nan":
        send({"jsonrpc": "2.0", "id": message_id, "result": {"content": [], "x": float("nan")}})
    elif name == "task":
        send({"jsonrpc": "2.0", "id": message_id, "result": {"task": {"taskId": "1"}, "resultType": "task"}})
    elif name in SPAWNING:
        answer(message_id, str(SPAWNING[name]()))
    elif name == "answer_others":
        for other in (10**6, str(message_id), None):
            send({"jsonrpc": "2.0", "id": other, "result": {"content": [{"type": "text", "text": "stray"}]}})
        send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        print("not JSON at all", flush=True)
        answer(message_id, "mine")
    elif name != "wait":
        answer(message_id, f"{name} ran")


def main() -> None:
    if START == "dies":
        sys.exit(f"no good with {os.environ.get('GRANTED')}")
    for line in sys.stdin:
        write_down(line)
        message = json.loads(line)
        method = message.get("method")
        if START == "silent" or "id" not in message:
            continue
        if method == "initialize":
            version = "1999-01-01" if START == "ancient" else message["params"]["protocolVersion"]
            info = {"name": "scripted", "version": "1"}
            result: dict[str, Any] = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
            send({"jsonrpc": "2.0", "id": message["id"], "result": result})
        elif method == "tools/list":
            send({"jsonrpc": "2.0", "id": message["id"], "result": listed(message)})
        elif method == "tools/call":
            call(message["id"], message["params"]["name"], message["params"]["arguments"])


main()
