"""`handoff proxy`: serve a provisioned handoff's MCP tools, without starting an agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_token_injector.cli.common import json_option, open_context, parse_handoff
from agent_token_injector.cli.terminal import emit, say, write
from agent_token_injector.errors import ExitCode

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.spawn import Handoff, SpawnReceipt

ENDED_BY_THE_HANDOFF = frozenset({"expired", "revoked", "vault-unreachable", "mcp-proxy-failed"})


@click.command("proxy")
@click.argument("handoff_id")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the bearer token into this new file, 0600; it is removed at the end.",
)
@click.option(
    "--worktree",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the agent works, for grants that keep a tool's paths inside it.",
)
@click.option("--stdio", is_flag=True, help="Our own stdin and stdout are the client; nothing else is served.")
@json_option
def command(handoff_id: str, token_file: Path | None, worktree: Path | None, stdio: bool, as_json: bool) -> int:
    """Serve the MCP tools of HANDOFF_ID on this machine until it is told to end, expires or is revoked.

    For an agent that something else starts: it gets the tools and none of the credentials. The bearer token is never
    printed: it is written to --token-file, or it is yours, in HANDOFF_MCP_TOKEN (32 characters at least). With --stdio
    there is none to know; name this command as the server's command in the client's configuration.
    """
    from agent_token_injector.spawn import serve_handoff

    handoff_id = str(parse_handoff(handoff_id, "nothing is served"))
    given = os.environ.get("HANDOFF_MCP_TOKEN") or None
    if stdio and (token_file is not None or as_json):
        raise click.UsageError("--stdio takes neither --token-file nor --json: stdout is the client's")
    if not stdio and (token_file is None) == (given is None):
        raise click.UsageError("give --token-file, or the token in HANDOFF_MCP_TOKEN, and not both")
    with open_context() as ctx:
        with serve_handoff(handoff_id, ctx=ctx, worktree=worktree, token=None if stdio else _secret(given)) as handoff:
            if stdio:
                _be_the_client(handoff)
            else:
                with _written(token_file, handoff.result.endpoint.token):
                    _tell(handoff, token_file, as_json=as_json)
                    _until_told(handoff)
        receipt = handoff.stop()
    return _finish(receipt)


def _be_the_client(handoff: Handoff) -> None:
    """Join our own streams to the proxy until either side ends."""
    from agent_token_injector.errors import HandoffError
    from agent_token_injector.mcp_proxy.handoff_mcp import NoConversation, join

    endpoint = handoff.result.endpoint
    try:
        join(str(endpoint.socket), endpoint.token.get_secret_value(), 0, 1)
    except NoConversation as error:
        raise HandoffError("the conversation with the MCP proxy broke off", cause=str(error)) from None


def _until_told(handoff: Handoff) -> None:
    """Wait for the handoff's end or a signal, which is how this command is meant to end."""
    from agent_token_injector.cli.interruption import Interrupted

    with suppress(Interrupted):
        handoff.wait()


@contextmanager
def _written(path: Path | None, token: SecretStr) -> Iterator[None]:
    """The token in a file of its own while the block runs. Raises SettingsError when it cannot be made."""
    from agent_token_injector.errors import SettingsError

    if path is None:
        yield
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be made", cause=error.strerror, hint="name a file that is not there yet"
        ) from None
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            os.fchmod(handle, 0o600)
            file.write(token.get_secret_value() + "\n")
        yield
    finally:
        path.unlink(missing_ok=True)


def _tell(handoff: Handoff, token_file: Path | None, *, as_json: bool) -> None:
    from agent_token_injector.clock import iso

    served = handoff.result
    document: dict[str, Any] = {
        "handoff_id": handoff.id,
        "url": served.endpoint.url,
        "socket": str(served.endpoint.socket),
        "tools": list(served.tools),
        "expires_at": iso(handoff.expires_at),
        "token_file": None if token_file is None else str(token_file),
        "mcp_config": served.endpoint.client_config(),
    }
    if as_json:
        emit(document)
        return
    write(served.endpoint.url)
    where = "HANDOFF_MCP_TOKEN" if token_file is None else f"in {token_file}"
    say(f"{handoff.id}: {len(served.tools)} tools until {document['expires_at']}; end it with Ctrl-C")
    say(f"  HTTP clients: {served.endpoint.url} with `Authorization: Bearer TOKEN`; the token is {where}")
    say(f"  stdio clients: HANDOFF_MCP_SOCKET={served.endpoint.socket}, HANDOFF_MCP_TOKEN=TOKEN, command `handoff-mcp`")


def _finish(receipt: SpawnReceipt) -> int:
    from agent_token_injector.spawn import describe_end

    say(describe_end(receipt))
    for problem in receipt.problems:
        say(f"  {problem}")
    return ExitCode.FAILED_CLEAN if receipt.reason in ENDED_BY_THE_HANDOFF else ExitCode.OK


def _secret(value: str | None) -> SecretStr | None:
    from pydantic import SecretStr

    return None if value is None else SecretStr(value)
