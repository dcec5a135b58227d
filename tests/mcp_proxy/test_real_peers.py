"""Published servers behind the proxy, and published clients in front of it."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from agent_token_injector.mcp_proxy import McpProxy, StdioServer, handoff_mcp
from agent_token_injector.mcp_proxy.grants import Places
from tests import peers
from tests.mcp_proxy.harness import TOKEN, Rig
from tests.mcp_proxy.reference import sdk_server
from tests.requirements import requirement

MODES = pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])
FRONTS = pytest.mark.parametrize("front", ["http", "stdio"])
ERAS = pytest.mark.parametrize("era", ["legacy", "auto", "modern"])
INSPECTOR_SECONDS = 60.0


def talk(proxy: McpProxy, mode: str, say: Callable[[Client], Awaitable[None]]) -> None:
    """Run `say` with the SDK's client connected to the proxy."""

    async def main() -> None:
        headers = {"Authorization": f"Bearer {TOKEN.get_secret_value()}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http_client,
            Client(streamable_http_client(proxy.url, http_client=http_client), mode=mode) as client,
        ):
            await say(client)

    asyncio.run(main())


def text(result: Any) -> str:
    return str(result.content[0].text)


async def refused(client: Client, tool: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(MCPError) as error:
        await client.call_tool(tool, arguments)
    assert error.value.code == -32602


@requirement("mcp.published-servers")
@MODES
def test_npms_everything_server_does_what_it_was_granted(rig: Rig, mode: str) -> None:
    argv = (*peers.npm_program("@modelcontextprotocol/server-everything"), "stdio")
    grants: list[str | dict[str, Any]] = [
        "echo",
        {"name": "sum", "server": "everything", "tool": "get-sum"},
        "get-tiny-image",
        "get-structured-content",
        {"name": "slow", "server": "everything", "tool": "trigger-long-running-operation"},
    ]
    allow = {"everything": {"resources": ["demo://resource/static/*"], "prompts": ["simple-prompt"]}}
    proxy = rig.start(grants, servers=[StdioServer("everything", argv)], allow=allow)

    async def say(client: Client) -> None:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert tools == ["echo", "sum", "get-tiny-image", "get-structured-content", "slow"]
        assert text(await client.call_tool("echo", {"message": "hi"})) == "Echo: hi"
        assert "5" in text(await client.call_tool("sum", {"a": 2, "b": 3}))
        image = await client.call_tool("get-tiny-image", {})
        assert {one.type for one in image.content} == {"text", "image"}
        weather = await client.call_tool("get-structured-content", {"location": "New York"})
        assert weather.structured_content is not None

        seen: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        await client.call_tool("slow", {"duration": 0.2, "steps": 2}, progress_callback=progress)
        assert seen == sorted(seen)
        assert seen

        resources = [str(one.uri) for one in (await client.list_resources()).resources]
        assert resources
        assert all(uri.startswith("demo://resource/static/") for uri in resources)
        assert (await client.read_resource(resources[0])).contents
        assert [one.name for one in (await client.list_prompts()).prompts] == ["simple-prompt"]
        assert (await client.get_prompt("simple-prompt")).messages

        await refused(client, "get-env", {})
        await refused(client, "get-sum", {"a": 2, "b": 3})
        with pytest.raises(MCPError):
            await client.get_prompt("args-prompt", {"city": "Oslo"})
        with pytest.raises(MCPError):
            await client.read_resource("demo://resource/dynamic/text/1")

    talk(proxy, mode, say)


@requirement("mcp.published-servers")
@MODES
def test_npms_filesystem_server_stays_inside_the_worktree(rig: Rig, tmp_path: Path, mode: str) -> None:
    # The server itself may reach more than the worktree: it is the proxy that keeps the agent inside.
    worktree, outside = tmp_path / "all" / "worktree", tmp_path / "all" / "outside.txt"
    worktree.mkdir(parents=True)
    (worktree / "inside.txt").write_text("inside")
    outside.write_text("outside")
    (worktree / "link.txt").symlink_to(outside)
    (worktree / "up").symlink_to("..", target_is_directory=True)
    argv = (*peers.npm_program("@modelcontextprotocol/server-filesystem"), str(tmp_path / "all"))
    in_worktree = {"properties": {"path": {"type": "string", "format": "path-in-worktree"}}, "required": ["path"]}
    grants: list[str | dict[str, Any]] = [
        {"name": tool, "server": "files", "tool": tool, "arguments": in_worktree}
        for tool in ("read_text_file", "write_file")
    ]
    proxy = rig.start(grants, servers=[StdioServer("files", argv)], places=Places(worktree=str(worktree)))

    async def say(client: Client) -> None:
        assert text(await client.call_tool("read_text_file", {"path": str(worktree / "inside.txt")})) == "inside"
        await client.call_tool("write_file", {"path": str(worktree / "new.txt"), "content": "new"})
        assert (worktree / "new.txt").read_text() == "new"
        for path in (outside, worktree / ".." / "outside.txt", worktree / "link.txt", worktree / "up" / "outside.txt"):
            await refused(client, "read_text_file", {"path": str(path)})
            await refused(client, "write_file", {"path": str(path), "content": "overwritten"})
        await refused(client, "list_allowed_directories", {})
        assert outside.read_text() == "outside"

    talk(proxy, mode, say)


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/page"
        body = b"the page" if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@requirement("mcp.published-servers")
@MODES
def test_the_published_fetch_server_fetches_the_one_page_it_may(rig: Rig, site: str, mode: str) -> None:
    argv = (*peers.python_module("mcp_server_fetch", "mcp-server-fetch"), "--allow-private-ips")
    page = {"properties": {"url": {"const": f"{site}/page"}}, "required": ["url"]}
    grants: list[str | dict[str, Any]] = [{"name": "fetch", "server": "web", "tool": "fetch", "arguments": page}]
    proxy = rig.start(grants, servers=[StdioServer("web", argv)])

    async def say(client: Client) -> None:
        assert "the page" in text(await client.call_tool("fetch", {"url": f"{site}/page", "raw": True}))
        await refused(client, "fetch", {"url": f"{site}/other", "raw": True})

    talk(proxy, mode, say)


def inspect(proxy: McpProxy, home: Path, front: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Inspector's CLI against one of the proxy's fronts.

    It reads the address, or how to start `handoff-mcp`, and the token from a file, as an agent's host does.
    """
    program = peers.npm_program("@modelcontextprotocol/inspector")
    config = home / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"handoff": entry(proxy, front)}}))
    usual = ("--cli", "--config", str(config), "--server", "handoff", "--format", "json", "-q")
    return subprocess.run(
        (*program, *usual, *arguments),
        env={"HOME": str(home), "PATH": str(Path(peers.node()).parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSPECTOR_SECONDS,
        check=False,
    )


def entry(proxy: McpProxy, front: str) -> dict[str, Any]:
    """The proxy as an entry of `mcpServers`."""
    token = TOKEN.get_secret_value()
    if front == "http":
        return {"type": "http", "url": proxy.url, "headers": {"Authorization": f"Bearer {token}"}}
    env = {"HANDOFF_MCP_SOCKET": str(proxy.socket_path), "HANDOFF_MCP_TOKEN": token}
    return {"type": "stdio", "command": sys.executable, "args": ["-I", "-S", handoff_mcp.__file__], "env": env}


@requirement("mcp.inspector")
@FRONTS
@ERAS
def test_the_inspector_sees_and_calls_what_was_granted(rig: Rig, tmp_path: Path, era: str, front: str) -> None:
    proxy = rig.start(["echo"])
    listed = inspect(proxy, tmp_path, front, "--protocol-era", era, "--method", "tools/list")
    assert listed.returncode == 0, listed.stderr
    assert [tool["name"] for tool in json.loads(listed.stdout)["result"]["tools"]] == ["echo"]

    call = ("--protocol-era", era, "--method", "tools/call", "--tool-name")
    called = inspect(proxy, tmp_path, front, *call, "echo", "--tool-arg", "text=hi")
    assert called.returncode == 0, called.stderr
    content = json.loads(called.stdout)["result"]["content"]
    assert json.loads(content[0]["text"]) == {"text": "hi"}

    unknown = inspect(proxy, tmp_path, front, *call, "merge")
    assert unknown.returncode != 0
    assert rig.calls_received() == ["echo"]


@requirement("mcp.inspector")
@FRONTS
@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspectors_load_test_finds_no_error(rig: Rig, tmp_path: Path, era: str, front: str) -> None:
    with sdk_server("py-2.3", "stdio", tmp_path / "calls") as server:
        proxy = rig.start(["echo"], servers=[StdioServer("counting", server.argv, env=server.env)])
        load = ("--load", "--load-requests", "400", "--load-concurrency", "16")
        call = ("--method", "tools/call", "--tool-name", "echo", "--tool-arg", "text=hi")
        done = inspect(proxy, tmp_path, front, "--protocol-era", era, *call, *load)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)["result"]
        assert (result["requests"], result["ok"], result["errors"], result["toolErrors"]) == (400, 400, 0, 0)
        assert server.names() == ["echo"] * 400


CLIENTS = {
    "python 1.30": ("client_py130.py",),
    "typescript 1.32": ("client_ts.mjs",),
    "typescript 2 legacy": ("client_ts2.mjs", "legacy"),
    "typescript 2 auto": ("client_ts2.mjs", "auto"),
}


@requirement("mcp.sdk-client")
@pytest.mark.parametrize("client", CLIENTS)
def test_the_clients_of_the_other_sdks_are_served(rig: Rig, client: str) -> None:
    script, *mode = CLIENTS[client]
    interpreter = peers.python_130() if script.endswith(".py") else peers.node()
    peers.npm_peer("@modelcontextprotocol/client")
    proxy = rig.start(["echo"])
    done = subprocess.run(
        (interpreter, str(Path(__file__).with_name("reference") / script), proxy.url, *mode),
        env={"TOKEN": TOKEN.get_secret_value(), "PEERS": str(peers.peers_dir())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["tools"] == ["echo"]
    assert json.loads(said["echo"]) == {"text": "hi"}
    assert said["refused"] == -32602
    assert rig.calls_received() == ["echo"]
