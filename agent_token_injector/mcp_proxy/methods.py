"""Every method of both protocol eras, and what the spec must grant before one is passed on. Anything else is refused (D8).

Tools are granted one by one in `mcp_tools`. All else is off unless the spec names it under `mcp_servers.<name>.allow`.

Pure tables; tests hold them to the official SDK's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent_token_injector.mcp_proxy.eras import Era

ALWAYS: Final = ""
"""Needs no grant: it discloses and does nothing that is not granted otherwise."""

CLIENT_REQUESTS: Final[Mapping[Era, Mapping[str, str]]] = {
    Era.HANDSHAKE: {
        "initialize": ALWAYS,
        "ping": ALWAYS,
        "tools/list": ALWAYS,
        "tools/call": ALWAYS,
        "resources/list": "resources",
        "resources/templates/list": "resources",
        "resources/read": "resources",
        "resources/subscribe": "subscribe",
        "resources/unsubscribe": "subscribe",
        "prompts/list": "prompts",
        "prompts/get": "prompts",
        "completion/complete": "completion",
        "logging/setLevel": "logging",
    },
    Era.STATELESS: {
        "server/discover": ALWAYS,
        "tools/list": ALWAYS,
        "tools/call": ALWAYS,
        "resources/list": "resources",
        "resources/templates/list": "resources",
        "resources/read": "resources",
        "prompts/list": "prompts",
        "prompts/get": "prompts",
        "completion/complete": "completion",
        "subscriptions/listen": ALWAYS,
    },
}
"""What a client may ask, and the field of `allow` that at least one server must have for it."""

TASK_METHODS: Final[Mapping[Era, frozenset[str]]] = {
    Era.HANDSHAKE: frozenset({"tasks/get", "tasks/result", "tasks/cancel"}),
    Era.STATELESS: frozenset({"tasks/get", "tasks/update", "tasks/cancel"}),
}
"""Served for tasks that a tool granted with `tasks` has begun, and for no others; there is no list of tasks."""

LISTS: Final[Mapping[str, str]] = {
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
"""Lists that are collected from every server that is granted, and the member that holds them."""

CACHEABLE: Final = frozenset(
    {"prompts/list", "resources/list", "resources/read", "resources/templates/list", "server/discover", "tools/list"}
)
"""Results that carry `ttlMs` and `cacheScope` in the stateless era."""

INPUT_REQUIRED: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests whose result may ask for more input in the stateless era."""

CLIENT_NOTIFICATIONS: Final = frozenset(
    {
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
    }
)

SERVER_REQUESTS: Final[Mapping[str, str]] = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
}
"""What a server may ask of the client, and the field of `allow` that lets it."""

SERVER_CAPABILITIES: Final[Mapping[str, str]] = {
    "sampling": "sampling",
    "elicitation": "elicitation",
    "roots": "roots",
}
"""A client's capabilities that are passed on to a server, and the field of `allow` that lets them."""

PARAMS: Final[Mapping[str, frozenset[str]]] = {
    "tools/call": frozenset({"name", "arguments"}),
    "resources/list": frozenset(),
    "resources/templates/list": frozenset(),
    "prompts/list": frozenset(),
    "tools/list": frozenset(),
    "resources/read": frozenset({"uri"}),
    "resources/subscribe": frozenset({"uri"}),
    "resources/unsubscribe": frozenset({"uri"}),
    "prompts/get": frozenset({"name", "arguments"}),
    "completion/complete": frozenset({"ref", "argument", "context"}),
    "logging/setLevel": frozenset({"level"}),
    "subscriptions/listen": frozenset({"notifications"}),
    "tasks/get": frozenset({"taskId"}),
    "tasks/result": frozenset({"taskId"}),
    "tasks/cancel": frozenset({"taskId"}),
    "tasks/update": frozenset({"taskId", "inputResponses"}),
}
"""The members of `params` beside `_meta`; any other makes the request invalid."""

RETRY_PARAMS: Final = frozenset({"inputResponses", "requestState"})
"""What a request that is asked again with more input brings along, where the grant lets it."""

RESOURCE_NOT_FOUND: Final = -32002
"""The handshake era's code for it; the stateless era has -32602."""
