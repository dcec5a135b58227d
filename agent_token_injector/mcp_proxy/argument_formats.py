"""Values of JSON Schema's `format` for what people need to say about a tool's arguments, beside JSON Schema's own.

| format | a text is one when it is |
|---|---|
| `path-in-worktree` | a path inside the task's worktree |
| `path-in:/abs/prefix` | an absolute path inside that directory |
| `repository`, `repository-owner`, `repository-name` | the spec's GitHub repository, or that part of it |
| `unprotected-branch` | one of the spec's `push_branches`; where it names none, a plain name of no protected branch |
| `url-host:a.example,*.b.example` | an https URL on one of these hosts; `*.` stands for one label |

A value that is no text fails each of them (argument_schema sees to that). Every rule is closed: a spelling that one reader
could take for something else is refused, although the file system or the server at hand may not. A name is compared as it
is, save where its owner ignores case (hosts; GitHub's owners and repositories).

Paths are looked up in the file system at the moment of the decision: every symbolic link on the way is followed, and of a
file that does not exist yet its directory. What is found can change between the decision and the server's use: an agent
that can write into the worktree can put a symbolic link in a directory's place. So the format stops mistakes and plain
escapes; a server that must not be led outside at all also needs its own roots, or a launcher that confines the
server's process to the worktree. A relative path is taken from the worktree, which is right for a server that
runs there. A lookup can block where the file system does (a network share that hangs).

A URL is judged as it is asked for: where a server follows redirects, or what a name resolves to, is not seen here.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from agent_token_injector.mcp_proxy.argument_schema import SchemaError
from agent_token_injector.mcp_proxy.grants import Places

__all__ = ["FormatCheck", "HelperFormats", "RealPath", "real_path"]

FormatCheck: TypeAlias = Callable[[str], bool]
RealPath: TypeAlias = Callable[[str], str]

_MAX_LINKS: Final = 40
"""Linux's own limit (path_resolution(7))."""
_MAX_PATH: Final = 4096

_SUSPECT: Final = re.compile(
    # What some reader of paths unquotes, trims, expands or decodes, and the kernel does not.
    r"^[\s'\"~-]|[\s'\"]$|^[^/]*:|[\\\x00-\x1f\x7f-\x9f]|\$[A-Z_{(]|%[0-9A-Fa-f]{2}"
)
_REPOSITORY: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,38})/([A-Za-z0-9._-]{1,100})", re.ASCII)
_BRANCH: Final = re.compile(
    # Within git-check-ref-format(1), in lower case, without what git, a shell or a forge's API would read as something
    # else: an option, a refspec, a full ref, a commit's digest.
    r"(?!(?:refs|heads|tags|remotes|origin|pull)(?:/|$))(?!(?:[0-9a-f]{40}|[0-9a-f]{64})$)"
    r"(?!.*\.\.)(?!.*\.lock(?:/|$))(?!.*\.$)[a-z0-9_][a-z0-9._#+=@-]*(?:/[a-z0-9_@#][a-z0-9._#+=@-]*)*",
    re.ASCII,
)
_PSEUDO_REFS: Final = frozenset({"head", "fetch_head", "orig_head", "merge_head", "cherry_pick_head", "revert_head"})
_URL: Final = re.compile(r"https://([A-Za-z0-9.-]+)(?::443)?(?:[/?#][^\\]*)?")
_LABEL: Final = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_HOST: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}|\*(?:\.{_LABEL}){{2,}}")


def real_path(path: str) -> str:
    """The absolute `path` with every `.`, `..` and symbolic link resolved, as the kernel would; what is missing stays.

    Raises OSError when it cannot be told: a directory that may not be searched, too many links, or `..` after something
    that does not exist or is no directory. (`os.path.realpath` guesses in these cases.)
    """
    done, ahead, links = "", path.split("/")[::-1], 0
    while ahead:
        part = ahead.pop()
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        if part in {"", "."}:
            continue
        here = f"{done}/{part}"
        try:
            mode = os.lstat(here).st_mode
        except FileNotFoundError:
            return _without_looking(here, ahead)
        if stat.S_ISLNK(mode):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(f"too many symbolic links: {here}")
            target = os.readlink(here)  # noqa: PTH115 - pathlib would drop a final slash
            ahead.extend(target.split("/")[::-1])
            done = "" if target.startswith("/") else done
        elif ahead and not stat.S_ISDIR(mode):
            raise NotADirectoryError(here)
        else:
            done = here
    return done or "/"


def _without_looking(missing: str, ahead: list[str]) -> str:
    if ".." in ahead:
        raise FileNotFoundError(f"'..' after something that does not exist: {missing}")
    return "/".join([missing, *(part for part in reversed(ahead) if part not in {"", "."})])


@dataclass(frozen=True, slots=True)
class HelperFormats:
    """Finds the check of a helper format, compiled for the places of one task.

    `real_path` resolves an absolute path or raises OSError; the default asks the file system.
    """

    places: Places
    real_path: RealPath = real_path

    def check(self, name: str) -> FormatCheck | None:
        """The check of the format called `name`; None when it is none of ours.

        Raises SchemaError when it is written wrongly, or speaks of a place that the task does not have.
        """
        kind, colon, rest = name.partition(":")
        maker = _MAKERS.get(kind + colon)
        if maker is None:
            return None
        return maker(self, rest)

    def _in_worktree(self, _: str) -> FormatCheck:
        worktree = self.places.worktree
        if worktree is None:
            raise SchemaError("format path-in-worktree is used, and the handoff has no worktree")
        return self._inside(worktree, "the worktree", relative=True)

    def _in_prefix(self, prefix: str) -> FormatCheck:
        if prefix == "/" or not prefix.startswith("/") or _SUSPECT.search(prefix) or prefix != os.path.normpath(prefix):
            raise SchemaError(
                f"format path-in: wants the absolute, plain path of a directory behind it, not {prefix!r}"
            )
        return self._inside(prefix, "the directory", relative=False)

    def _inside(self, directory: str, what: str, *, relative: bool) -> FormatCheck:
        if not directory.startswith("/"):
            raise SchemaError(f"{what} {directory!r} is not an absolute path")
        try:
            root = self.real_path(directory)
        except OSError as error:
            raise SchemaError(f"{what} {directory!r} cannot be resolved: {error.strerror or error}") from None
        if root == "/":
            # It would hold everything, so it holds nothing.
            return lambda _: False

        def inside(value: str) -> bool:
            if not _is_plain_path(value) or (value[0] != "/" and not relative):
                return False
            # Some servers take `..` out of the text before the kernel sees it, so both readings must lie inside.
            readings = {value, os.path.normpath(value)} if ".." in value else {value}
            return all(self._is_below(root, reading) for reading in readings)

        return inside

    def _is_below(self, root: str, path: str) -> bool:
        if path[0] != "/":
            # A server that runs elsewhere must not be led above its own directory either.
            if os.path.normpath(path).split("/", 1)[0] == "..":
                return False
            path = f"{root}/{path}"
        try:
            found = self.real_path(path)
        except (OSError, ValueError):
            return False
        return found == root or found.startswith(f"{root}/")

    def _repository(self, part: int) -> FormatCheck:
        repository = self.places.repository
        if repository is None:
            raise SchemaError("a repository's format is used, and the handoff has no GitHub repository")
        match = _REPOSITORY.fullmatch(repository)
        if match is None:
            raise SchemaError(f"a repository's format is used, and {repository!r} is not owner/name")
        wanted = match[part].lower()
        return lambda value: value.isascii() and value.lower() == wanted

    def _branch(self, _: str) -> FormatCheck:
        named = frozenset(branch.removeprefix("refs/heads/") for branch in self.places.branches)
        unplain = sorted(name for name in named if not _is_branch(name))
        if unplain:
            raise SchemaError(
                f"format unprotected-branch is used, and {unplain[0]!r} of push_branches is no plain branch"
            )
        if named:
            return named.__contains__
        exact = frozenset(name.lower() for name in self.places.protected if not name.endswith("*"))
        prefixes = tuple(name[:-1].lower() for name in self.places.protected if name.endswith("*"))

        def unprotected(value: str) -> bool:
            lower = value.lower()
            return _is_branch(value) and lower not in exact and not lower.startswith(prefixes)

        return unprotected

    def _url_host(self, hosts: str) -> FormatCheck:
        listed = hosts.split(",")
        wrong = [host for host in listed if not _HOST.fullmatch(host)]
        if wrong:
            raise SchemaError(
                f"format url-host: wants lower-case ASCII host names behind it (`*.` before two or more labels), "
                f"not {wrong[0]!r}"
            )
        exact = frozenset(host for host in listed if host[0] != "*")
        parents = frozenset(host[2:] for host in listed if host[0] == "*")

        def on_host(value: str) -> bool:
            match = _URL.fullmatch(value)
            if match is None or " " in value or not value.isprintable():
                return False
            host = match[1].lower()
            if host in exact:
                return True
            label, _, parent = host.partition(".")
            return parent in parents and re.fullmatch(_LABEL, label) is not None

        return on_host


_MAKERS: Final[dict[str, Callable[[HelperFormats, str], FormatCheck]]] = {
    "path-in-worktree": HelperFormats._in_worktree,  # noqa: SLF001 - this module's own class
    "path-in:": HelperFormats._in_prefix,  # noqa: SLF001
    "repository": lambda formats, _: formats._repository(0),  # noqa: SLF001
    "repository-owner": lambda formats, _: formats._repository(1),  # noqa: SLF001
    "repository-name": lambda formats, _: formats._repository(2),  # noqa: SLF001
    "unprotected-branch": HelperFormats._branch,  # noqa: SLF001
    "url-host:": HelperFormats._url_host,  # noqa: SLF001
}


def _is_branch(value: str) -> bool:
    lower = value.lower()
    return value.isascii() and len(value) <= 250 and lower not in _PSEUDO_REFS and _BRANCH.fullmatch(lower) is not None


def _is_plain_path(path: str) -> bool:
    """Whether every reader takes the text for the path that the kernel takes it for."""
    if not 0 < len(path) <= _MAX_PATH or _SUSPECT.search(path):
        return False
    if path.isascii():
        return True
    # A reader that folds compatibility characters must not find path syntax that was not there.
    folded = unicodedata.normalize("NFKC", path)
    return not _SUSPECT.search(folded) and all(folded.count(char) == path.count(char) for char in "/.~:")
