"""A reference MCP server on the official SDK: what the official conformance suite wants of a server, and no more.

    python server.py stdio
    python server.py http      (says {"port": N} on its first line of stdout, serves http://127.0.0.1:N/mcp)

What it offers is data, in fixture.json beside it. It speaks both eras. Where REFERENCE_LOG names a file, every message
that reaches it is a line there ({"method", "name"}), written before it is acted on: tests count what got through.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import mcp_types as types
import uvicorn
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter

FIXTURE: Final[Mapping[str, Any]] = json.loads(Path(__file__).with_name("fixture.json").read_text())
NAME: Final = "handoff-reference"
STEP_SECONDS: Final = 0.05
RECONNECT_SECONDS: Final = 0.2
RETRY_MS: Final = 100
RESOURCE_NOT_FOUND: Final = -32002
"""2025-11-25; from 2026-07-28 it is INVALID_PARAMS (SEP-2164)."""

Context = ServerRequestContext[Any, Any]
Asked = types.CallToolRequestParams | types.GetPromptRequestParams
CONTENT: Final[TypeAdapter[list[types.ContentBlock]]] = TypeAdapter(list[types.ContentBlock])
CAPABILITY_OF: Final = {
    "elicitation/create": types.ClientCapabilities(elicitation=types.ElicitationCapability()),
    "sampling/createMessage": types.ClientCapabilities(sampling=types.SamplingCapability()),
    "roots/list": types.ClientCapabilities(roots=types.RootsCapability()),
}

bus = InMemorySubscriptionBus()


def said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


def is_modern(ctx: Context) -> bool:
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


def wants_input(ctx: Context, params: Asked) -> types.InputRequiredResult | None:
    """What a tool or prompt of the stateless era still has to ask for; None where it has everything.

    The state is the number of the round; the SDK's boundary seals it and refuses any that it did not make.
    """
    rounds = FIXTURE["rounds"].get(params.name, [])
    done = int(params.request_state or 0)
    while done < len(rounds):
        wanted = {
            key: request
            for key, request in rounds[done].items()
            if ctx.session.check_client_capability(CAPABILITY_OF[request["method"]])
        }
        given = params.input_responses or {}
        if not wanted or not set(wanted) <= set(given):
            break
        done += 1
        if done < len(rounds):
            return _required(rounds[done], str(done))
    else:
        return None
    if not wanted:
        needed = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
        lacking = {needed[request["method"]]: {} for request in rounds[done].values()}
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY, "The client cannot do this", {"requiredCapabilities": lacking}
        )
    return _required(wanted, str(done) if params.name in FIXTURE["stateful"] else None)


def _required(requests: Mapping[str, Any], state: str | None) -> types.InputRequiredResult:
    document = {"resultType": "input_required", "inputRequests": requests, "requestState": state}
    return types.InputRequiredResult.model_validate(document)


async def list_tools(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult.model_validate({"tools": FIXTURE["tools"]})


async def call_tool(
    ctx: Context, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    name = params.name
    if name not in {tool["name"] for tool in FIXTURE["tools"]}:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {name}")
    if name in FIXTURE["answers"]:
        return types.CallToolResult(content=CONTENT.validate_python(FIXTURE["answers"][name]))
    if name in FIXTURE["elicitations"]:
        return await elicit(ctx, params)
    if name in FIXTURE["rounds"] and is_modern(ctx):
        required = wants_input(ctx, params)
        if required is not None:
            return required
        return said(f"Thank you: {json.dumps(given_back(params))} state-ok")
    run = _RUN.get(name)
    if run is None:
        raise MCPError(types.INVALID_PARAMS, f"{name} needs the stateless era")
    return await run(ctx, params)


def given_back(params: Asked) -> Any:
    responses = params.input_responses or {}
    return {key: one.model_dump(mode="json", by_alias=True, exclude_none=True) for key, one in responses.items()}


async def elicit(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    message = str((params.arguments or {}).get("message", "Please choose"))
    answer = await ctx.session.elicit_form(message, FIXTURE["elicitations"][params.name], ctx.request_id)
    return said(f"User response: action={answer.action}, content={json.dumps(answer.content)}")


async def sample(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    content = types.TextContent(type="text", text=str((params.arguments or {}).get("prompt", "")))
    message = types.SamplingMessage(role="user", content=content)
    answer = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
    return said(f"LLM response: {answer.content.model_dump_json()}")


async def log(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.session.send_log_message("info", line, related_request_id=ctx.request_id)
        await anyio.sleep(STEP_SECONDS)
    return said("It is in the log.")


async def progress(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100, f"Completed {done} of 100")
        await anyio.sleep(STEP_SECONDS)
    return said("Done.")


async def fail(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    content = [types.TextContent(type="text", text="This tool intentionally returns an error for testing")]
    return types.CallToolResult(content=CONTENT.validate_python(content), is_error=True)


async def reconnect(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
        await anyio.sleep(RECONNECT_SECONDS)
    return said("The answer comes on the stream that the client came back with.")


async def need_sampling(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    if not ctx.session.check_client_capability(CAPABILITY_OF["sampling/createMessage"]):
        needed = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "The client must declare sampling", needed)
    return said("The client can sample.")


async def change_tools(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    await bus.publish(ToolsListChanged())
    return said("Told.")


async def change_prompts(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    await bus.publish(PromptsListChanged())
    return said("Told.")


_RUN: Final = {
    "test_sampling": sample,
    "test_tool_with_logging": log,
    "test_logging_tool": log,
    "test_tool_with_progress": progress,
    "test_error_handling": fail,
    "test_reconnection": reconnect,
    "test_missing_capability": need_sampling,
    "test_trigger_tool_change": change_tools,
    "test_trigger_prompt_change": change_prompts,
}


async def list_resources(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
    return types.ListResourcesResult.model_validate({"resources": FIXTURE["resources"]})


async def list_templates(
    ctx: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": FIXTURE["resourceTemplates"]})


async def read_resource(ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = params.uri
    content = FIXTURE["contents"].get(uri)
    if content is None and uri.startswith("test://template/") and uri.endswith("/data"):
        found = uri.removeprefix("test://template/").removesuffix("/data")
        text = json.dumps({"id": found, "templateTest": True, "data": f"Data for ID: {found}"})
        content = {"mimeType": "application/json", "text": text}
    if content is None:
        code = types.INVALID_PARAMS if is_modern(ctx) else RESOURCE_NOT_FOUND
        raise MCPError(code, "Resource not found", {"uri": uri})
    return types.ReadResourceResult.model_validate({"contents": [{"uri": uri, **content}]})


async def subscribe(ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


async def unsubscribe(ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


async def list_prompts(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
    return types.ListPromptsResult.model_validate({"prompts": FIXTURE["prompts"]})


async def get_prompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    contents = FIXTURE["messages"].get(params.name)
    if contents is None:
        raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    if is_modern(ctx):
        required = wants_input(ctx, params)
        if required is not None:
            return required
    messages = [{"role": "user", "content": _filled(content, params.arguments or {})} for content in contents]
    return types.GetPromptResult.model_validate({"messages": messages})


def _filled(value: Any, arguments: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, arguments) for key, one in value.items()}
    if isinstance(value, str):
        for name, given in arguments.items():
            value = value.replace(f"{{{name}}}", given)
    return value


async def complete(ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    return types.CompleteResult(completion=types.Completion(values=["paris", "park"], total=2, has_more=False))


async def set_level(ctx: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


def schema_of(tool: str) -> Mapping[str, Any] | None:
    return next((one["inputSchema"] for one in FIXTURE["tools"] if one["name"] == tool), None)


class Events(EventStore):
    """Every event of every stream, so that a client may come back to any of them."""

    def __init__(self) -> None:
        self._events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        position = int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else 0
        if not 0 < position <= len(self._events):
            return None
        stream = self._events[position - 1][0]
        for number, (of, message) in enumerate(self._events[position:], position + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def write_down(method: str, params: Mapping[str, Any]) -> None:
    path = os.environ.get("REFERENCE_LOG")
    if path:
        line = json.dumps({"method": method, "name": params.get("name", params.get("uri"))})
        with Path(path).open("a", encoding="utf-8") as log_file:
            log_file.write(line + "\n")


async def record(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Write down what reached the server, before it is acted on."""
    write_down(ctx.method, ctx.params or {})
    return await call_next(ctx)


def make() -> Server[Any]:
    cacheable = ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
    with warnings.catch_warnings():
        # It serves 2025-11-25 as well, where logging is not deprecated.
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        server: Server[Any] = Server(
            NAME,
            version="1.0",
            cache_hints={method: CacheHint(ttl_ms=60_000, scope="private") for method in cacheable},
            get_tool_input_schema=schema_of,
            on_list_tools=list_tools,
            on_call_tool=call_tool,
            on_list_resources=list_resources,
            on_list_resource_templates=list_templates,
            on_read_resource=read_resource,
            on_subscribe_resource=subscribe,
            on_unsubscribe_resource=unsubscribe,
            on_subscriptions_listen=ListenHandler(bus),
            on_list_prompts=list_prompts,
            on_get_prompt=get_prompt,
            on_completion=complete,
            on_set_logging_level=set_level,
        )
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    server.middleware.append(record)
    return server


async def serve_stdio() -> None:
    server = make()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_http() -> None:
    app = make().streamable_http_app(event_store=Events(), retry_interval=RETRY_MS)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
        # httptools leaves blanks around a header's value, which RFC 9110 §5.5 excludes from it: h11 takes them off.
        config = uvicorn.Config(app, http="h11", log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    # The deprecated methods are those of the older era, which is under test.
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    if sys.argv[1:] == ["http"]:
        serve_http()
    elif sys.argv[1:] == ["stdio"]:
        anyio.run(serve_stdio)
    else:
        sys.exit("usage: server.py stdio|http")
