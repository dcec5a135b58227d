"""Servers on each line of the official SDKs behind the proxy: what is granted works, what is not never reaches them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_token_injector.mcp_proxy import HttpServer, StdioServer
from tests.mcp_proxy.harness import RawClient, Rig
from tests.mcp_proxy.reference import LINES, TRANSPORTS, Line, SdkServer, Transport, sdk_server
from tests.requirements import requirement

REFUSED = ("forbidden", "Echo", "echo ", "echo\n", "ech\u043e", "no_such_tool")


def behind(server: SdkServer) -> HttpServer | StdioServer:
    if server.transport == "http":
        return HttpServer("counting", server.url)
    return StdioServer("counting", server.argv, env=server.env)


@requirement("mcp.sdk-lines")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("line", LINES)
def test_a_server_on_every_line_of_the_sdks_is_asked_what_was_granted_and_nothing_else(
    rig: Rig, tmp_path: Path, line: Line, transport: Transport
) -> None:
    with sdk_server(line, transport, tmp_path / "calls") as server:
        proxy = rig.start(["echo"], servers=[behind(server)])
        client = RawClient(proxy.url)
        client.initialize()
        assert [tool["name"] for tool in client.ask("tools/list").json["result"]["tools"]] == ["echo"]
        assert client.call("echo", {"text": "handshake h\u00e9"}).text == "handshake h\u00e9"
        for name in REFUSED:
            assert client.call(name, {"text": "x"}).error["code"] == -32602

        stateless = RawClient(proxy.url)
        listed = stateless.ask_stateless("tools/list").json["result"]["tools"]
        assert [tool["name"] for tool in listed] == ["echo"]
        assert stateless.call_stateless("echo", {"text": "stateless"}).text == "stateless"
        assert stateless.call_stateless("forbidden", {"text": "x"}).error["code"] == -32602

        assert server.received() == [
            {"name": "echo", "arguments": {"text": "handshake h\u00e9"}},
            {"name": "echo", "arguments": {"text": "stateless"}},
        ]
