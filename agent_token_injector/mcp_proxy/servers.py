"""What may stand behind the proxy: servers it starts, and servers that are built in. Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from pydantic import SecretStr

from agent_token_injector.audit import Decision


@dataclass(frozen=True, slots=True)
class StdioServer:
    """An MCP server that the proxy starts as its own child and speaks to over stdin and stdout.

    `argv[0]` is a path, or a name found on the child's PATH. `env` is added to PATH, HOME, TMPDIR and LANG; there is
    nothing else in the child's environment (D7). `cwd` defaults to the child's own empty HOME.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str | SecretStr] = field(default_factory=dict, repr=False)
    cwd: Path | None = None


class Recorder(Protocol):
    """Writes one audit event of the handoff. Raises AuditUnavailable: then nothing may be disclosed.

    `target` may quote the agent: it is masked, made printable and cut to 300 characters.
    """

    def __call__(self, event: str, *, decision: Decision, target: str, reason: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class BuiltinAnswer:
    """What a built-in tool answers. A SecretStr is what the agent asked for and was granted: it alone is not masked."""

    text: str | SecretStr
    is_error: bool = False


BuiltinRun: TypeAlias = Callable[[Mapping[str, Any], Recorder], BuiltinAnswer]


@dataclass(frozen=True, slots=True)
class BuiltinTool:
    """A tool of ours: its MCP definition, and what runs it, in a worker thread, one call at a time."""

    definition: Mapping[str, Any]
    run: BuiltinRun


@dataclass(frozen=True, slots=True)
class BuiltinServer:
    """An MCP server without a process."""

    name: str
    tools: tuple[BuiltinTool, ...]


Server: TypeAlias = StdioServer | BuiltinServer
