"""Removing a folder that a hostile process could write to; standard library only, for the supervisor uses it too."""

from __future__ import annotations

import errno
import os


def remove_tree(path: str, identity: tuple[int, int]) -> str | None:
    """Remove a folder that a hostile process could write to. Returns why it is not all gone, or None.

    `identity` is its (st_dev, st_ino) when it was made: another folder, or a symlink, in its place is not touched.
    """
    try:
        top = _open_folder(path, None, identity)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    try:
        problem = _Removal(top).run()
    finally:
        os.close(top)
    try:
        os.rmdir(path)  # noqa: PTH106 - pathlib would double the start-up time
    except OSError as error:
        return problem or error.strerror
    return None


class _Removal:
    """Empties the folder open at `top`, whatever an agent made of it.

    Every folder inside is first moved to the top and emptied there, so that depth costs neither recursion nor
    descriptors nor path length. A mount point cannot be moved: nothing that is mounted from elsewhere is removed.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._token = os.urandom(8).hex()
        self._count = 0
        self._pending: list[str] = []
        self._problem: str | None = None

    def run(self) -> str | None:
        self._clear(self._top)
        while self._pending:
            name = self._pending.pop()
            try:
                folder = _open_folder(name, self._top, None)
                try:
                    self._clear(folder)
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=self._top)
            except OSError as error:
                self._problem = error.strerror
        return self._problem

    def _clear(self, folder: int) -> None:
        with os.scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    self._move_up(entry.name, folder)
                else:
                    os.unlink(entry.name, dir_fd=folder)
            except OSError as error:
                self._problem = error.strerror

    def _move_up(self, name: str, folder: int) -> None:
        self._count += 1
        target = f"{self._token}-{self._count}"
        try:
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=self._top)
        except PermissionError:
            # A folder is written to when it moves (its ".." changes), and this one may be read-only.
            os.close(_open_folder(name, folder, None))
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=self._top)
        self._pending.append(target)


def _open_folder(name: str, parent: int | None, identity: tuple[int, int] | None) -> int:
    """Open a folder for reading and make it ours to change, following no symlink; `identity` as in remove_tree."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(handle)
        if identity is not None and (status.st_dev, status.st_ino) != identity:
            raise OSError(errno.ESTALE, "another folder is in its place")
        if status.st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101 - the one way to a folder that cannot be opened
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
    finally:
        os.close(handle)
