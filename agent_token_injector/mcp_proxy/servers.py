"""What may stand behind the proxy: servers it starts, servers it calls, and servers that are built in. Data only.

Secrets are SecretStr here. `to_plain` reveals them, for the one document that goes to the engine over the channel.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.grants import PROTECTED_BRANCHES, Places

if TYPE_CHECKING:
    from agent_token_injector.context import HandoffContext
    from agent_token_injector.names import HandoffId
    from agent_token_injector.spec import HandoffSpec, McpServer

AUTO: Final = "auto"
"""The protocol is what the server speaks; else the one revision to speak with it, `2025-11-25` or `2026-07-28`."""


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
    protocol: str = AUTO

    def to_plain(self) -> dict[str, Any]:
        """The server as the engine's configuration has it, secrets in the clear."""
        return {
            "kind": "stdio",
            "name": self.name,
            "argv": list(self.argv),
            "env": _revealed(self.env),
            "cwd": None if self.cwd is None else str(self.cwd),
            "protocol": self.protocol,
        }


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """Client credentials for one server (OAuth 2.1 §4.2): where a token is asked for, and as whom."""

    token_url: str
    client_id: SecretStr = field(repr=False)
    client_secret: SecretStr = field(repr=False)
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpServer:
    """An MCP server elsewhere, over streamable HTTP. `headers` are sent with every request; the agent's never are.

    With `oauth`, each request carries a bearer token of that client as well.
    """

    name: str
    url: str
    headers: Mapping[str, str | SecretStr] = field(default_factory=dict, repr=False)
    oauth: OAuthClient | None = None
    protocol: str = AUTO

    def to_plain(self) -> dict[str, Any]:
        """The server as the engine's configuration has it, secrets in the clear; the engine asks for tokens."""
        return {
            "kind": "http",
            "name": self.name,
            "url": self.url,
            "headers": _revealed(self.headers),
            "oauth": self.oauth is not None,
            "protocol": self.protocol,
        }


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
    """An MCP server without a process. Its tools run on the control side, which the engine asks."""

    name: str
    tools: tuple[BuiltinTool, ...]

    def to_plain(self) -> dict[str, Any]:
        """The server as the engine's configuration has it: its definitions."""
        return {"kind": "builtin", "name": self.name, "definitions": [dict(tool.definition) for tool in self.tools]}


Server: TypeAlias = StdioServer | HttpServer | BuiltinServer


def servers_of(
    spec: HandoffSpec, secrets: Mapping[str, SecretStr], ctx: HandoffContext, handoff: HandoffId
) -> list[Server]:
    """The servers that a spec names, each with the secrets granted to it and no others.

    Args:
        spec: its `mcp_servers`.
        secrets: the handoff's, by the variable under which its agent gets them (`GH_TOKEN`).
        ctx: whose vault the built-in server reads, as the handoff's own identity.
        handoff: whose folder it reads by default.

    Raises SpawnRefused for a command that is not there, or a variable that the handoff does not have.
    """
    return [_server(name, server, secrets, ctx, handoff) for name, server in spec.mcp_servers.items()]


def allow_of(spec: HandoffSpec) -> dict[str, dict[str, Any]]:
    """What each server of a spec may beyond its granted tools, as plain JSON by the server's name."""
    return {name: server.allow.model_dump(mode="json") for name, server in spec.mcp_servers.items()}


def places_of(spec: HandoffSpec, worktree: Path | None = None, *, protected: Iterable[str] = ()) -> Places:
    """What the argument formats of a grant refer to: the worktree, the spec's repository, the branches it may push to.

    `protected` are the policy's branches, beside those that are protected always. A worktree that is the whole file system
    is none: nothing could lie outside of it, and a grant that needs one is refused.
    """
    if worktree is not None and worktree.resolve() == Path("/"):
        worktree = None
    github = spec.surfaces.github
    return Places(
        worktree=None if worktree is None else str(worktree.absolute()),
        repository=None if github is None else github.repository,
        branches=() if github is None else tuple(github.push_branches),
        protected=tuple(sorted({*PROTECTED_BRANCHES, *protected})),
    )


def resolve_command(command: str) -> str:
    """The absolute path of an MCP server's command, by the operator's own PATH and beside this interpreter.

    Raises SpawnRefused when there is none.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    found = shutil.which(command, path=path)
    if found is None:
        raise SpawnRefused(
            f"the MCP server command {command!r} is not found",
            cause="it is neither on PATH nor beside this Python",
            hint="install it, or write its full path in the spec; nothing was launched",
        )
    return str(Path(found).absolute())


def _server(
    name: str, server: McpServer, secrets: Mapping[str, SecretStr], ctx: HandoffContext, handoff: HandoffId
) -> Server:
    def granted(variable: str) -> SecretStr:
        if variable not in secrets:
            raise SpawnRefused(
                f"MCP server {name!r} needs {variable}, which the handoff does not have",
                hint="ask for the surface that gives it, or take it out of the server",
            )
        return secrets[variable]

    if server.builtin == "vault":
        from agent_token_injector.mcp_proxy.vault_server import vault_server

        client_id = granted("INFISICAL_CLIENT_ID").get_secret_value()
        client_secret = granted("INFISICAL_CLIENT_SECRET")
        return vault_server(name, lambda: ctx.vault.login(client_id, client_secret), ctx.path_of(handoff), ctx.clock)
    if server.command:
        env = {inner: granted(outer) for inner, outer in server.env.items()}
        return StdioServer(
            name=name,
            argv=(resolve_command(server.command[0]), *server.command[1:]),
            env={**server.plain_env, **env},
            protocol=server.protocol,
            # No cwd: a server starts in an empty folder of its own. In one that an agent can write to, a file of the
            # right name would be loaded into a process that holds secrets.
        )
    if server.url is None:
        raise SpawnRefused(f"MCP server {name!r} is of no kind that is known here", hint="give a command or a url")
    return HttpServer(
        name=name,
        url=server.url,
        headers={
            header: SecretStr(value.prefix + granted(value.variable).get_secret_value())
            for header, value in server.headers.items()
        },
        oauth=None
        if server.oauth is None
        else OAuthClient(
            token_url=server.oauth.token_url,
            client_id=granted(server.oauth.client_id),
            client_secret=granted(server.oauth.client_secret),
            scopes=server.oauth.scopes,
        ),
        protocol=server.protocol,
    )


def _revealed(values: Mapping[str, str | SecretStr]) -> dict[str, str]:
    return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()}
