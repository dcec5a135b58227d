"""What a handoff's spec grants at the MCP proxy, as plain data: tools, what else each server may, and the task's places.

The control side hands these over as JSON (a spec part's `model_dump(mode="json")`); `from_plain` reads them back and
refuses what it does not know, so that a field one side lacks never reads as "no limit".

Pure: no I/O.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

__all__ = ["PROTECTED_BRANCHES", "Grant", "Limits", "Places", "ServerAllow"]

PROTECTED_BRANCHES: Final = (
    *("main", "master", "staging", "production", "prod", "trunk", "develop", "development", "stable"),
    *("release*", "hotfix*", "gh-pages", "live"),
)
"""Branches that are taken to be protected unless `Places.protected` says otherwise; a `*` at the end is any ending."""

_CLIMBS: Final = re.compile(
    r"\.\.|(?:^|/)\.(?:[/?#;]|$)|%(?:2[5ef]|5c|7f|[01][0-9a-f])|[\\\x00-\x20\x7f]", re.IGNORECASE
)
"""What could lead out of a URI's prefix, or would after one more decoding."""


class _Plain:
    """Reads itself from a JSON object with exactly its own fields; one that is left out has its default."""

    __slots__ = ()

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> Self:
        """The document as this class. Raises ValueError for a field that it does not have, or a value that cannot be one."""
        known = {one.name: str(one.type) for one in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(map(repr, document.keys() - known.keys()))
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
        return cls(**{name: cls._read(name, known[name], value) for name, value in document.items()})

    @classmethod
    def _read(cls, name: str, kind: str, value: Any) -> Any:
        if kind == "Limits":
            return Limits.from_plain(value or {})
        if _FITS[kind](value):
            return tuple(value) if isinstance(value, list) else value
        raise ValueError(f"{cls.__name__}.{name} is not a {kind}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


_FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "bool": lambda value: isinstance(value, bool),
    "int | None": lambda value: value is None or type(value) is int,
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "tuple[str, ...]": _is_texts,
    "Mapping[str, Any] | None": lambda value: value is None or isinstance(value, Mapping),
}


@dataclass(frozen=True, slots=True)
class Limits(_Plain):
    """How often one tool may be called: `calls` in all, `per_minute` in any 60 seconds. None is no limit."""

    calls: int | None = None
    per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Grant(_Plain):
    """One tool that the agent may call: the spec's `ToolGrant` without pydantic."""

    name: str
    server: str | None = None
    tool: str | None = None
    arguments: Mapping[str, Any] | None = field(default=None, repr=False)
    limits: Limits = Limits()
    log_arguments: tuple[str, ...] = ()
    tasks: bool = False
    input_required: bool = False


@dataclass(frozen=True, slots=True)
class ServerAllow(_Plain):
    """What one server may beyond its granted tools. Everything is off by default.

    Attributes:
        resources: URIs that may be read; one that ends in `*` is a prefix. See `may_read`.
        subscribe: whether those resources may be subscribed to.
        prompts: names of prompts.
        completion: whether arguments of granted prompts and resource templates may be completed.
        logging: whether the server's log messages reach the agent.
        sampling, elicitation, roots: whether the server may ask the agent's side for these.
        methods: custom requests of the client that are passed on.
        notifications: custom notifications of the server that are passed on.
    """

    resources: tuple[str, ...] = ()
    subscribe: bool = False
    prompts: tuple[str, ...] = ()
    completion: bool = False
    logging: bool = False
    sampling: bool = False
    elicitation: bool = False
    roots: bool = False
    methods: tuple[str, ...] = ()
    notifications: tuple[str, ...] = ()

    def may_read(self, uri: str) -> bool:
        """Whether a resource is granted: spelled exactly so, or below a granted prefix.

        Below a prefix, a URI that could lead out of it again (dot segments, a backslash, an encoded dot, slash, percent
        or control character, a blank) is not granted, whatever the server would make of it.
        """
        for granted in self.resources:
            if granted[-1:] != "*":
                if uri == granted:
                    return True
            # From the prefix's last slash on: below `x://a/.*` stands `x://a/../b`, whose first dot the prefix has.
            elif uri.startswith(granted[:-1]) and not _climbs(uri[granted.rfind("/") + 1 :]):
                return True
        return False

    def shows_template(self, uri_template: str) -> bool:
        """Whether a resource template (RFC 6570) may be listed: its fixed beginning lies below a granted prefix."""
        fixed = uri_template.partition("{")[0]
        return any(
            granted[-1:] == "*" and fixed.startswith(granted[:-1]) and not _climbs(fixed[granted.rfind("/") + 1 :])
            for granted in self.resources
        )


def _climbs(rest: str) -> bool:
    """Whether the part of a URI below a prefix could mean something that is not below it."""
    if rest.isascii():
        return _CLIMBS.search(rest) is not None
    return any(_CLIMBS.search(one) is not None for one in (rest, unicodedata.normalize("NFKC", rest)))


@dataclass(frozen=True, slots=True)
class Places(_Plain):
    """Where the task is at home: what the helper formats of a grant's `arguments` are judged against (argument_formats).

    Attributes:
        worktree: absolute path of the task's worktree; None when the task has none.
        repository: `owner/name`, the spec's `surfaces.github.repository`.
        branches: the spec's `push_branches`; when there are any, no other branch is unprotected.
        protected: names of branches that nothing may be written to; a `*` at the end is any ending.
    """

    worktree: str | None = None
    repository: str | None = None
    branches: tuple[str, ...] = ()
    protected: tuple[str, ...] = PROTECTED_BRANCHES
