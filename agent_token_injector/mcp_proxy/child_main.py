"""The first thing an MCP server's process runs: bind its life to the proxy's, then become the server.

Run as a script by the interpreter, isolated and without site (`python -I -S child_main.py PARENT COMMAND...`), because
code between fork and exec of a process with threads is not safe in Python.

- The kernel kills the process when the thread that started it dies (PR_SET_PDEATHSIG), a SIGKILL of the proxy included.
- It dumps no core: its memory holds granted secrets (D7).
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit("the kernel does not bind this process to its parent's life")
    if os.getppid() != parent:
        sys.exit("the proxy is gone")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(command[0], command)  # noqa: S606 - becoming the command, without a shell, is the purpose
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
