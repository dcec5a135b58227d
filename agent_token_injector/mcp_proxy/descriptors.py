"""Streams that somebody else has open too, read and written without ever blocking.

Whether a descriptor blocks is a flag of the open file, which everybody shares who has it from the same `open`. So a client
that passes us its own stdin could take the flag away again, and one read would hold up the proxy for as long as it likes.
A pipe is therefore opened anew, and a socket is told with each call.
"""

from __future__ import annotations

import os
import socket
import stat


class Descriptor:
    """One end of a pipe or a socket. Takes `fd` over: it is closed when this fails, and by `close`.

    Raises OSError when it is neither, or cannot be opened.
    """

    __slots__ = ("_socket", "fd")

    def __init__(self, fd: int, *, writing: bool) -> None:
        self._socket: socket.socket | None = None
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISFIFO(mode):
                how = os.O_WRONLY if writing else os.O_RDONLY
                self.fd = os.open(f"/proc/self/fd/{fd}", how | os.O_NONBLOCK | os.O_CLOEXEC)
            elif stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(fd))
                self.fd = self._socket.fileno()
            else:
                raise OSError("it is neither a pipe nor a socket")
        finally:
            os.close(fd)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end. Raises BlockingIOError when there are none now, OSError."""
        if self._socket is None:
            return os.read(self.fd, size)
        return self._socket.recv(size, socket.MSG_DONTWAIT)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write some of it; returns how much. Raises BlockingIOError when nothing can be written now, OSError."""
        if self._socket is None:
            return os.write(self.fd, data)
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Let go of it."""
        if self._socket is None:
            os.close(self.fd)
        else:
            self._socket.close()
