"""The official SDK's client in front, published servers behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS
from mcp_types import HEADER_MISMATCH, SERVER_INFO_META_KEY, UNSUPPORTED_PROTOCOL_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from agent_token_injector.mcp_proxy import McpProxy, StdioServer, eras
from tests.mcp_proxy.harness import HANDOFF, TOKEN, Rig, wait_until
from tests.peers import needs
from tests.requirements import requirement

R = TypeVar("R")
MODES = pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])


def talk(proxy: McpProxy, mode: str, say: Callable[[Client], Awaitable[R]]) -> R:
    """Run `say` with the SDK's client connected to the proxy."""

    async def main() -> R:
        headers = {"Authorization": f"Bearer {TOKEN.get_secret_value()}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=20) as http,
            Client(streamable_http_client(proxy.url, http_client=http), mode=mode) as client,
        ):
            return await say(client)

    return asyncio.run(main())


def text(result: Any) -> str:
    return str(result.content[0].text)


@requirement("mcp.sdk-client", "mcp.published-servers")
@MODES
def test_the_sdks_client_uses_the_published_time_server_as_far_as_it_was_granted(rig: Rig, mode: str) -> None:
    server = StdioServer("time", (sys.executable, "-m", "mcp_server_time", "--local-timezone", "UTC"))
    utc_only = {"properties": {"timezone": {"const": "UTC"}}}
    proxy = rig.start(
        [{"name": "now", "server": "time", "tool": "get_current_time", "arguments": utc_only}], servers=[server]
    )

    async def say(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["now"]
        assert "UTC" in text(await client.call_tool("now", {"timezone": "UTC"}))
        for name, arguments in (("now", {"timezone": "Asia/Tokyo"}), ("convert_time", {}), ("get_current_time", {})):
            with pytest.raises(MCPError) as refused:
                await client.call_tool(name, arguments)
            assert refused.value.code == -32602
        expected = "2025-11-25" if mode == "legacy" else "2026-07-28"
        assert client.protocol_version == expected

    talk(proxy, mode, say)
    assert [(event.action, event.reason) for event in rig.events() if event.action != "tool.listed"] == [
        ("tool.call", ""),
        ("tool.result", ""),
        ("tool.denied", "arguments"),
        ("tool.denied", "not-listed"),
        ("tool.denied", "not-listed"),
    ]


@requirement("mcp.sdk-client", "mcp.published-servers", "mcp.several-servers")
@MODES
def test_the_published_git_server_stands_beside_the_time_server_behind_one_address(
    rig: Rig, tmp_path: Path, mode: str
) -> None:
    repository = tmp_path / "repository"
    needs("git", "install it with the system's package manager, for mcp-server-git calls it")
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    (repository / "new.txt").write_text("new")
    git = StdioServer("git", (sys.executable, "-m", "mcp_server_git", "--repository", str(repository)))
    clock = StdioServer("time", (sys.executable, "-m", "mcp_server_time"))
    proxy = rig.start(["git_status", "time_get_current_time"], excluded=["git_commit"], servers=[git, clock])

    async def say(client: Client) -> None:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["git_status", "time_get_current_time"]
        assert "new.txt" in text(await client.call_tool("git_status", {"repo_path": str(repository)}))
        with pytest.raises(MCPError, match="Unknown tool: git_commit"):
            await client.call_tool("git_commit", {"repo_path": str(repository), "message": "x"})
        assert "datetime" in text(await client.call_tool("time_get_current_time", {"timezone": "UTC"}))

    talk(proxy, mode, say)
    refused = rig.events("tool.denied")
    assert [event.reason for event in refused] == ["excluded"]


@requirement("mcp.sdk-client")
@MODES
def test_the_sdks_client_gives_up_a_call_and_the_server_is_told(rig: Rig, mode: str) -> None:
    proxy = rig.start(["wait", "echo"])

    async def say(client: Client) -> None:
        call = asyncio.create_task(client.call_tool("wait", {}))
        await asyncio.to_thread(wait_until, lambda: rig.calls_received() == ["wait"], "the call arrives")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(wait_until, cancelled, "the server is told")
        assert text(await client.call_tool("echo", {"text": "on"})) == '{"text": "on"}'

    def cancelled() -> bool:
        return any(one.get("method") == "notifications/cancelled" for one in rig.received())

    talk(proxy, mode, say)
    assert rig.events("tool.result")[0].reason in ("cancelled", "disconnected")


@requirement("mcp.sdk-client")
@MODES
def test_many_calls_at_once_are_each_answered_with_their_own_answer(rig: Rig, mode: str) -> None:
    proxy = rig.start(["echo"])

    async def say(client: Client) -> list[str]:
        return [
            text(one) for one in await asyncio.gather(*(client.call_tool("echo", {"text": str(n)}) for n in range(40)))
        ]

    assert [json.loads(one)["text"] for one in talk(proxy, mode, say)] == [str(n) for n in range(40)]
    assert rig.audit.verify(HANDOFF).ok


@requirement("mcp.protocol-tables")
def test_our_tables_are_those_of_the_official_sdk() -> None:
    assert eras.HANDSHAKE_VERSIONS == HANDSHAKE_PROTOCOL_VERSIONS
    assert eras.STATELESS_VERSIONS == MODERN_PROTOCOL_VERSIONS
    assert (eras.HEADER_MISMATCH, eras.UNSUPPORTED_VERSION) == (HEADER_MISMATCH, UNSUPPORTED_PROTOCOL_VERSION)
    assert eras.META_SERVER_INFO == SERVER_INFO_META_KEY
    for code, status in ERROR_CODE_HTTP_STATUS.items():
        refused = eras.Refused(code, "", reason="")
        assert refused.http_status(eras.Era.STATELESS) in (status, 200)


@requirement("mcp.light-imports")
def test_the_proxy_does_not_import_the_sdk() -> None:
    code = "import sys, agent_token_injector.mcp_proxy; print([m for m in sys.modules if m.split('.')[0] in ('mcp', 'uvicorn', 'httpx')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
