"""An engine of a few lines, for tests of the control side: it writes down what it is told, and says what it was made to.

Run as `scripted_engine.py LOG SCRIPT FD`. LOG gets one JSON document a line: first what the process finds of itself,
then everything that it is told, and `{"eof": true}` at the end of the channel. SCRIPT is a JSON object:

    say         documents, or texts as they are, said once the configuration has come
    echo_cut    said after a cut
    ack         false: no beat is confirmed
    obey        false: a close is not obeyed
    read        false: nothing after the configuration is read
    stderr      written to stderr at the start
    exit        the status to end with once everything is said
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

LOG = Path(sys.argv[1])
SCRIPT = json.loads(sys.argv[2])
CHANNEL = int(sys.argv[3])


def note(document: dict[str, Any]) -> None:
    with LOG.open("a", encoding="ascii") as file:
        file.write(json.dumps(document) + "\n")


def say(line: socket.socket, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    line.sendall(text.encode() + b"\n")


def descriptors() -> dict[str, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir keeps one open
        with contextlib.suppress(OSError):
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115 - as above
    return {number: what for number, what in found.items() if not what.startswith("/proc/")}


def main() -> None:
    line = socket.socket(fileno=CHANNEL)
    about = {"argv": sys.argv, "env": dict(os.environ), "cwd": str(Path.cwd()), "fds": descriptors()}
    note({**about, "pid": os.getpid(), "session": os.getsid(0), "channel": CHANNEL})
    sys.stderr.write(SCRIPT.get("stderr", ""))
    sys.stderr.flush()
    with line.makefile("rb") as lines:
        for number, raw in enumerate(lines):
            told = json.loads(raw)
            note(told)
            if number == 0:
                for document in SCRIPT.get("say", [{"ready": {"port": 1, "tools": ["echo"]}}]):
                    say(line, document)
                if "exit" in SCRIPT:
                    os._exit(SCRIPT["exit"])
                if not SCRIPT.get("read", True):
                    time.sleep(600)
            if "beat" in told and SCRIPT.get("ack", True):
                say(line, {"ack": told["beat"]["n"]})
            if "cut" in told and "echo_cut" in SCRIPT:
                say(line, SCRIPT["echo_cut"])
            if "close" in told and SCRIPT.get("obey", True):
                say(line, {"closed": True})
                note({"closed": True})
                return
    note({"eof": True})


if __name__ == "__main__":
    main()
