"""`handoff proxy`: a provisioned handoff's tools for somebody else's agent, and nothing else of it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.mcp_proxy import handoff_mcp
from tests.cli.support import HANDOFF, MINIMAL, audit_file, provisioned, run, start
from tests.mcp_proxy.harness import RawClient
from tests.requirements import requirement
from tests.world import World, eventually

TOOLS: dict[str, Any] = {
    **MINIMAL,
    "mcp_servers": {"infisical": {"builtin": "vault"}},
    "mcp_tools": ["infisical_get_secret"],
}
OURS = "bearer-that-an-operator-chose-0123456789"
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
CALL = {
    "jsonrpc": "2.0",
    "id": 2,
    "method": "tools/call",
    "params": {"name": "infisical_get_secret", "arguments": {"name": "INFISICAL_CLIENT_ID"}},
}


@pytest.fixture
def handoff(world: World) -> str:
    return provisioned(world, TOOLS)


@contextmanager
def served(world: World, *argv: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command while it serves, and what it printed."""
    command = [*HANDOFF, "proxy", *argv, "--json"]
    with subprocess.Popen(
        command,
        env={**world.environment, **env},
        cwd=world.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.endswith("\n}\n"):
                text += process.stdout.readline() or pytest.fail(
                    f"it ended: {process.stderr and process.stderr.read()}"
                )
            yield process, json.loads(text)
        finally:
            process.kill()


@requirement("mcp.proxy-command")
def test_the_token_goes_into_a_file_of_its_own_that_is_gone_at_the_end(world: World, handoff: str) -> None:
    file = world.home / "token"
    with served(world, handoff, "--token-file", str(file)) as (process, document):
        assert file.stat().st_mode & 0o777 == 0o600
        token = file.read_text().strip()
        assert len(token) >= 43
        assert token not in json.dumps(document)
        assert document["tools"] == ["infisical_get_secret"]
        assert document["token_file"] == str(file)
        assert "${HANDOFF_MCP_TOKEN}" in json.dumps(document["mcp_config"])
        client = RawClient(document["url"], SecretStr(token))
        assert client.initialize().status == 200
        assert client.call("infisical_get_secret", {"name": "INFISICAL_CLIENT_ID"}).status == 200
        folder = Path(document["socket"]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        prose = process.stderr.read()
    assert token not in prose
    assert f"{handoff} ended: left" in prose
    assert not file.exists()
    assert not folder.exists()
    trail = [json.loads(line)["action"] for line in audit_file(world, handoff).read_text().splitlines()]
    assert [action for action in trail if action.startswith("spawn.")] == [
        "spawn.requested",
        "spawn.started",
        "spawn.ended",
    ]
    assert "vault.read" in trail


@requirement("mcp.proxy-command")
def test_a_token_of_the_operators_own_is_taken_from_the_environment_and_serves_stdio_clients_too(
    world: World, handoff: str
) -> None:
    with served(world, handoff, HANDOFF_MCP_TOKEN=OURS) as (process, document):
        assert RawClient(document["url"], SecretStr(OURS)).initialize().status == 200
        assert RawClient(document["url"], SecretStr("x" * 40)).initialize().status == 401
        relay = subprocess.run(
            [sys.executable, "-I", "-S", str(handoff_mcp.__file__)],
            env={"HANDOFF_MCP_SOCKET": document["socket"], "HANDOFF_MCP_TOKEN": "y" * 40},
            input=b"",
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert relay.returncode == 1
        env = {"HANDOFF_MCP_SOCKET": document["socket"], "HANDOFF_MCP_TOKEN": OURS}
        relay_command = [sys.executable, "-I", "-S", str(handoff_mcp.__file__)]
        with subprocess.Popen(relay_command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as joined:
            assert talk(joined)["result"]["isError"] is False
            assert joined.wait(20) == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert OURS not in audit_file(world, handoff).read_text()


def talk(process: subprocess.Popen[Any]) -> Any:
    """Shake hands, call the tool, hang up; the answer to the call."""
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    for document in (HELLO, CALL):
        os.write(process.stdin.fileno(), json.dumps(document).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([process.stdout], [], [], 20)[0], "no answer"
            line += os.read(process.stdout.fileno(), 65536) or pytest.fail("the stream ended")
        answers.append(json.loads(line))
    process.stdin.close()
    assert os.read(process.stdout.fileno(), 100) == b""
    return answers[1]


@requirement("mcp.proxy-command")
def test_with_stdio_the_commands_own_streams_are_the_client_and_it_ends_when_they_do(
    world: World, handoff: str
) -> None:
    with start(world, "proxy", handoff, "--stdio", stdin=subprocess.PIPE) as process:
        answer = talk(process)
        assert process.wait(20) == 0
    assert answer["id"] == 2
    assert answer["result"]["isError"] is False
    assert OURS not in audit_file(world, handoff).read_text()


@requirement("mcp.proxy-command", "H8.kill-switch")
def test_a_revocation_ends_it(world: World, handoff: str) -> None:
    with served(world, handoff, HANDOFF_MCP_TOKEN=OURS) as (process, document):
        assert run(world, ["revoke", handoff]).returncode == 0
        assert process.wait(20) == 4
        assert process.stderr is not None
        assert "ended: revoked" in process.stderr.read()
        assert eventually(lambda: not Path(document["socket"]).exists())


@requirement("mcp.proxy-command")
@pytest.mark.parametrize(
    ("argv", "env", "says"),
    [
        ([], {}, "give --token-file, or the token in HANDOFF_MCP_TOKEN"),
        (["--token-file", "t"], {"HANDOFF_MCP_TOKEN": OURS}, "and not both"),
        (["--stdio", "--json"], {}, "stdout is the client's"),
        (["--token-file", "/nowhere/at/all"], {}, "cannot be made"),
        ([], {"HANDOFF_MCP_TOKEN": "too-short-1234567890"}, "32 to 256 characters"),
    ],
)
def test_what_cannot_be_served_so_is_said_without_the_token(
    world: World, handoff: str, argv: list[str], env: dict[str, str], says: str
) -> None:
    done = run(world, ["proxy", handoff, *argv], **env)
    assert done.returncode in {2, 4}
    assert says in done.stderr
    assert not any(value in done.stderr + done.stdout for value in env.values())


@requirement("mcp.proxy-command")
def test_a_handoff_that_was_never_provisioned_is_refused(world: World) -> None:
    done = run(world, ["proxy", "nobody-20260101"], HANDOFF_MCP_TOKEN=OURS)
    assert done.returncode == 6
    assert "there is no handoff" in done.stderr
