"""`handoff-mcp`: a client that speaks MCP over stdio, joined to its handoff's proxy.

An agent's client starts it as the command of its one MCP server. It finds the proxy's Unix socket and the handoff's
bearer token in HANDOFF_MCP_SOCKET and HANDOFF_MCP_TOKEN, and introduces itself with one line:

    HANDOFF-MCP/1 <fds|bytes> <token>

The proxy answers `OK`, or `NO` and a reason. With `fds` the client's two streams themselves go over as descriptors
(SCM_RIGHTS), so that no byte passes through here; that needs pipes or sockets. With `bytes`, for a terminal or a file,
the bytes are copied. The exit status is 0 when the conversation ended, 1 with a line on stderr when there was none.

It decides nothing and knows no secret but the agent's own token. It uses the standard library alone and can be started
as a file: `python3 -I -S handoff_mcp.py`, which takes a third of the time.
"""

from __future__ import annotations

import os
import socket
import stat
import sys

GREETING = "HANDOFF-MCP/1"
ANSWER_SECONDS = 10.0
LONGEST_ANSWER = 512
CHUNK = 256 * 1024


class NoConversation(Exception):
    """The proxy is not there, or does not want us. The text is for stderr."""


def main() -> int:
    """Join stdin and stdout to the proxy until either side ends; the exit status."""
    try:
        join(_given("HANDOFF_MCP_SOCKET"), _given("HANDOFF_MCP_TOKEN"), 0, 1)
    except NoConversation as error:
        os.write(2, f"handoff-mcp: {error}\n".encode("ascii", "backslashreplace"))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def join(path: str, token: str, source: int, sink: int) -> None:
    """Join two descriptors of ours, what a client writes and what it reads, to the proxy at `path`, to the end.

    With pipes and sockets both are replaced by /dev/null here: the proxy has them then, and each end shows at once.

    Raises NoConversation.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_SECONDS)
        try:
            line.connect(path)
        except OSError as error:
            raise NoConversation(f"the MCP proxy is not there: {error.strerror or error}") from None
        handed = _can_be_handed(source) and _can_be_handed(sink)
        greeting = f"{GREETING} {'fds' if handed else 'bytes'} {token}\n".encode("utf-8", "surrogateescape")
        try:
            if handed:
                socket.send_fds(line, [greeting], [source, sink])
            else:
                line.sendall(greeting)
            answer, early = _read_line(line)
        except OSError as error:
            raise NoConversation(f"the MCP proxy did not answer: {error.strerror or error}") from None
        if answer != "OK":
            raise NoConversation(f"the MCP proxy says {answer!r}" if answer else "the MCP proxy did not answer")
        line.settimeout(None)
        if handed:
            _let_go(source, sink)
            _wait(line, early)
        else:
            _copy(line, source, sink, early)


def _given(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise NoConversation(f"{name} is not set; it is in the environment of every agent that has MCP tools")
    return value


def _can_be_handed(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _read_line(line: socket.socket) -> tuple[str, bytes]:
    """The proxy's answer, and what came behind it already."""
    data = b""
    while b"\n" not in data:
        if len(data) > LONGEST_ANSWER:
            raise NoConversation("the MCP proxy does not speak this language")
        part = line.recv(4096)
        if not part:
            return "", b""
        data += part
    answer, _, rest = data.partition(b"\n")
    return answer.decode("ascii", "replace"), rest


def _let_go(*descriptors: int) -> None:
    """Hold our copies of the client's streams no longer; the numbers stay taken, by nothing."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _wait(line: socket.socket, early: bytes) -> None:
    """Return when the proxy says that the conversation is over; `early` is what it said right behind its answer."""
    try:
        said = early or line.recv(LONGEST_ANSWER)
    except OSError as error:
        raise NoConversation(f"the MCP proxy is gone: {error.strerror or error}") from None
    if said:
        raise NoConversation(f"the MCP proxy ended it: {said.decode('ascii', 'replace').strip()}")


def _copy(line: socket.socket, source: int, sink: int, early: bytes) -> None:
    """Copy both ways until the proxy ends it, or nobody takes what it says."""
    import threading

    threading.Thread(target=_send_all, args=(line, source), daemon=True).start()
    try:
        while early:
            _write_all(sink, early)
            early = line.recv(CHUNK)
        while part := line.recv(CHUNK):
            _write_all(sink, part)
    except BrokenPipeError:
        return  # the client reads no more
    except OSError as error:
        raise NoConversation(f"the MCP proxy is gone: {error.strerror or error}") from None


def _send_all(line: socket.socket, source: int) -> None:
    """Send what the client says until it ends, and then that it has ended."""
    try:
        while part := os.read(source, CHUNK):
            line.sendall(part)
        line.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # whoever reads from the proxy finds that out as well


def _write_all(sink: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(sink, left) :]


if __name__ == "__main__":
    sys.exit(main())
