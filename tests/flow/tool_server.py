"""An MCP server for tests whose tools are whatever a file says: `python tool_server.py`, over stdio, standard library only.

`TOOLS_FILE` holds its definitions, read anew for each `tools/list`. `DIARY` is a directory in which it writes down, under
its process id, its environment and each method that it was asked. `MOOD` is how it behaves: `silent` answers nothing,
`dies` ends at once, saying the secret it was given. With `WAIT_FOR` it answers nothing until that file is there.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MOOD = os.environ.get("MOOD", "")
DIARY = Path(os.environ["DIARY"]) / str(os.getpid())
VERSIONS = ("2025-06-18", "2025-11-25")


def note(entry: object) -> None:
    with DIARY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def answer(message: dict[str, Any]) -> dict[str, Any]:
    method = message["method"]
    if method == "initialize":
        asked = message["params"]["protocolVersion"]
        version = asked if asked in VERSIONS else VERSIONS[-1]
        info = {"name": "tool_server", "version": "1"}
        return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}}
    if method == "tools/list":
        return {"result": {"tools": json.loads(Path(os.environ["TOOLS_FILE"]).read_text(encoding="utf-8"))}}
    if method == "tools/call":
        return {"result": {"content": [{"type": "text", "text": "done"}]}}
    if method == "ping":
        return {"result": {}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    note(dict(os.environ))
    if MOOD == "dies":
        sys.exit(f"cannot work with {os.environ.get('GRANTED')}")
    for line in sys.stdin:
        message = json.loads(line)
        note(message["method"])
        while "WAIT_FOR" in os.environ and not Path(os.environ["WAIT_FOR"]).exists():
            time.sleep(0.01)
        if "id" in message and MOOD != "silent":
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer(message)}) + "\n")
            sys.stdout.flush()


main()
