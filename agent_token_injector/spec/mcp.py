"""What a spec says about MCP: the servers behind the proxy, what each of them may, and the tools that are granted.

The engine reads the same as plain dataclasses (mcp_proxy/grants.py), out of `model_dump(mode="json")`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from agent_token_injector.spec.parts import EnvName, FrozenJson, FrozenMap, Part, ServerName, ToolName

__all__ = [
    "HeaderName",
    "HeaderValue",
    "HttpUrl",
    "McpServer",
    "OAuthClientCredentials",
    "OrItsName",
    "ServerAllow",
    "ToolGrant",
    "ToolLimits",
]

MAX_CALLS: Final = 1_000_000
MAX_PER_MINUTE: Final = 60_000

_URL: Final = (
    r"^https?://(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:[/?][!-\"$-\[\]-~]*)?$"
)
_HEADER: Final = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$"
_OURS: Final = re.compile(
    # What frames a message, says what it is, or speaks for the client: the proxy writes these itself (RFC 9110, MCP).
    r"host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect|origin|last-event-id|accept(?:-.*)?|"
    r"content-.*|mcp-.*|proxy-.*|if-.*|range",
    re.IGNORECASE,
)
_METHOD: Final = r"^[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*$"
_NAMESPACES: Final = frozenset(
    {
        *(
            "initialize",
            "ping",
            "completion",
            "elicitation",
            "logging",
            "notifications",
            "prompts",
            "resources",
            "roots",
        ),
        *("sampling", "server", "subscriptions", "tasks", "tools"),
    }
)
"""What the protocol's own methods begin with, in every revision; tests hold it to the official SDK's tables."""
_NOTIFICATIONS: Final = (_NAMESPACES - {"notifications"}) | {"initialized", "cancelled", "progress", "message"}


def _http_url(text: str) -> str:
    match = re.fullmatch(_URL, text)
    if match is None or len(text) > 2000:
        raise ValueError("give an http or https URL in ASCII, without user, password, fragment and blanks")
    port = re.match(r"https?://[^/?]*?:([0-9]+)(?:[/?]|$)", text)
    if port is not None and not 0 < int(port[1]) < 65536:
        raise ValueError("the URL's port is not one")
    return text


def _header_name(text: str) -> str:
    if re.fullmatch(_HEADER, text) is None:
        raise ValueError("is not the name of an HTTP header")
    if _OURS.fullmatch(text):
        raise ValueError("is a header that the proxy writes itself")
    return text


def _custom_method(text: str) -> str:
    _check_method(text)
    if _namespace(text) in _NAMESPACES or text.lower().startswith("rpc."):
        raise ValueError("is a method of the protocol's own; what of those is passed on has a field of its own")
    return text


def _custom_notification(text: str) -> str:
    _check_method(text)
    space, _, rest = text.partition("/")
    own = _namespace(rest) in _NOTIFICATIONS if space.lower() == "notifications" else _namespace(text) in _NAMESPACES
    if own or text.lower().startswith("rpc."):
        raise ValueError("is a notification of the protocol's own, which goes with what it speaks of")
    return text


def _check_method(text: str) -> None:
    if len(text) > 128 or re.fullmatch(_METHOD, text) is None:
        raise ValueError("is not the name of a method")


def _namespace(method: str) -> str:
    return method.partition("/")[0].lower()


HttpUrl = Annotated[
    str, AfterValidator(_http_url), WithJsonSchema({"type": "string", "pattern": _URL, "maxLength": 2000})
]
HeaderName = Annotated[str, AfterValidator(_header_name), WithJsonSchema({"type": "string", "pattern": _HEADER})]
_MethodSchema = WithJsonSchema({"type": "string", "pattern": _METHOD, "maxLength": 128})
CustomMethod = Annotated[str, AfterValidator(_custom_method), _MethodSchema]
CustomNotification = Annotated[str, AfterValidator(_custom_notification), _MethodSchema]
ResourceUri = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f]{1,2000}$")]
PromptName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
ArgumentName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]


class OrItsName:
    """Annotation of a model that a plain string may stand for: says so in the published schema."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 128}, handler(core)]}


class HeaderValue(Part):
    """A header's value: a secret of the handoff, by the handoff's own name for it, after a plain text."""

    variable: EnvName
    prefix: Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,64}$")] = ""
    """What stands before the secret: `"Bearer "`, with its blank."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"variable": value} if isinstance(value, str) else value


class OAuthClientCredentials(Part):
    """How the proxy gets a token for a server by itself: the client credentials grant (RFC 6749 §4.4, OAuth 2.1)."""

    token_url: HttpUrl
    client_id: EnvName
    """The handoff's variable that holds the client's id."""
    client_secret: EnvName
    """The handoff's variable that holds its secret."""
    scopes: tuple[Annotated[str, StringConstraints(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{1,200}$")], ...] = ()


class ServerAllow(Part):
    """What a server may beyond its granted tools. Everything is off unless it is named here."""

    resources: tuple[ResourceUri, ...] = ()
    """Resources that may be read: URIs, or prefixes of URIs that end in `*`."""
    subscribe: bool = False
    """Those resources may be subscribed to."""
    prompts: tuple[PromptName, ...] = ()
    completion: bool = False
    """Arguments of those prompts, and of resource templates below those prefixes, may be completed by the server."""
    logging: bool = False
    """The server's log messages reach the agent."""
    sampling: bool = False
    """The server may ask the agent's model."""
    elicitation: bool = False
    """The server may ask the agent's user."""
    roots: bool = False
    """The server may ask for the agent's roots."""
    methods: tuple[CustomMethod, ...] = ()
    """Requests beyond the protocol's own that are passed on to the server, by name."""
    notifications: tuple[CustomNotification, ...] = ()
    """Notifications beyond the protocol's own that are passed on to the agent, by name."""


class McpServer(Part):
    """An MCP server behind the proxy: a command it starts over stdio, a URL it speaks streamable HTTP to, or a built-in one."""

    command: tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")], ...] = ()
    url: HttpUrl | None = None
    builtin: Literal["vault"] | None = None
    env: FrozenMap[EnvName, EnvName] = Field(default_factory=dict)
    """The command's variable -> the handoff's variable whose value it gets (`GH_TOKEN`). It gets no others."""
    plain_env: FrozenMap[EnvName, str] = Field(default_factory=dict)
    """Further variables with plain, not secret, values."""
    headers: FrozenMap[HeaderName, Annotated[HeaderValue, OrItsName]] = Field(default_factory=dict)
    """Headers that the URL is asked with; a string is the handoff's variable whose value it is."""
    oauth: OAuthClientCredentials | None = None
    protocol: Literal["auto", "2025-11-25", "2026-07-28"] = "auto"
    """The protocol's era that the server is spoken to in; `auto` finds out."""
    allow: ServerAllow = ServerAllow()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [bool(self.command), self.url is not None, self.builtin is not None].count(True) != 1:
            raise ValueError("give exactly one of a command, a url and a builtin")
        if not self.command and (self.env or self.plain_env):
            if self.builtin is not None:
                raise ValueError("a builtin server takes no env: it reads with the handoff's own identity")
            raise ValueError("env is for a command; a url takes headers or oauth")
        if self.url is None and (self.headers or self.oauth is not None):
            raise ValueError("headers and oauth are for a url")
        if self.builtin is not None and (self.protocol != "auto" or self.allow != ServerAllow()):
            raise ValueError("a builtin server takes no protocol and no allow: it has tools and nothing else")
        return self

    @model_validator(mode="after")
    def _headers_once(self) -> Self:
        spelled = [name.lower() for name in self.headers]
        if len(set(spelled)) != len(spelled):
            raise ValueError("a header is given twice: case does not tell headers apart")
        if self.oauth is not None and "authorization" in spelled:
            raise ValueError("oauth writes the Authorization header: give one of the two")
        return self

    @property
    def variables(self) -> tuple[str, ...]:
        """The handoff's variables whose values the server, or its token endpoint, gets."""
        oauth = () if self.oauth is None else (self.oauth.client_id, self.oauth.client_secret)
        return (*self.env.values(), *(value.variable for value in self.headers.values()), *oauth)


class ToolLimits(Part):
    """How often one tool may be called. A call that the proxy passes on counts, whatever comes of it."""

    calls: Annotated[int, Field(le=MAX_CALLS)] | None = None
    """In the handoff's whole life."""
    per_minute: Annotated[int, Field(le=MAX_PER_MINUTE)] | None = None
    """In any sixty seconds."""


class ToolGrant(Part):
    """One tool the agent may call, with what its arguments must satisfy on top of the tool's own schema."""

    name: ToolName
    """The name under which the agent sees it."""
    server: ServerName | None = None
    tool: ToolName | None = None
    """The server's own name for it; with neither, `name` is `<server>_<tool>` or a tool that exactly one server has."""
    arguments: FrozenJson | None = None
    """JSON Schema (2020-12). Its `format` may be one of the proxy's own: `path-in-worktree`, `path-in:/prefix`,
    `repository`, `repository-owner`, `repository-name`, `unprotected-branch`, `url-host:api.example.com`."""
    limits: ToolLimits = ToolLimits()
    # Not strict: a list of JSON's comes here as Python's, after the validator below has seen it.
    log_arguments: Annotated[tuple[ArgumentName, ...], Field(strict=False)] = ()
    """Top-level arguments whose values the audit holds, masked and cut; of all others it holds a digest."""
    tasks: bool = False
    """It may answer with a task, which the agent then asks after."""
    input_required: bool = False
    """It may answer that it needs more input (2026-07-28)."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.server is None) != (self.tool is None):
            raise ValueError("give server and tool together, or neither")
        return self
