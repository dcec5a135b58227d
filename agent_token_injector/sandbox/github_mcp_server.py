"""A small GitHub MCP server for the demo and for tests: `python -m agent_token_injector.sandbox.github_mcp_server`.

Its tools are named as github-mcp-server names them. It has two that no handoff should be granted, so that there is
something to keep away from the agent. It speaks stdio, calls the REST API at `GITHUB_API_URL`, and holds
`GITHUB_PERSONAL_ACCESS_TOKEN`: the agent holds neither.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import httpx
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Mapping

API_VERSION: Final = "2022-11-28"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")]
"""An owner's or a repository's: it goes into a path, so it holds nothing that a path would read as more."""
Number = Annotated[int, Field(ge=1)]


def make_server(client: httpx.Client) -> MCPServer:
    """The server over a client that has the API's address and the token."""
    server = MCPServer("sandbox-github", instructions="Pull requests and comments of one repository.")

    def ask(method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        try:
            response = client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ToolError(f"GitHub gave no answer: {type(error).__name__}") from None
        if response.is_error:
            raise ToolError(f"GitHub answered {response.status_code}: {_message(response)}")
        return response.text or json.dumps({"status": response.status_code})

    @server.tool()
    def create_pull_request(  # noqa: PLR0917 - MCP passes arguments by name
        owner: Name, repo: Name, title: str, head: str, base: str, body: str = ""
    ) -> str:
        """Open a pull request from branch `head` into branch `base`."""
        wanted = {"title": title, "head": head, "base": base, "body": body}
        return ask("POST", f"/repos/{owner}/{repo}/pulls", wanted)

    @server.tool()
    def add_issue_comment(owner: Name, repo: Name, issue_number: Number, body: str) -> str:
        """Comment on an issue or a pull request."""
        return ask("POST", f"/repos/{owner}/{repo}/issues/{issue_number}/comments", {"body": body})

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def list_pull_requests(owner: Name, repo: Name) -> str:
        """List the pull requests of a repository."""
        return ask("GET", f"/repos/{owner}/{repo}/pulls")

    @server.tool(annotations=ToolAnnotations(destructive_hint=True))
    def merge_pull_request(
        owner: Name, repo: Name, pull_number: Number, merge_method: Literal["merge", "squash", "rebase"] = "merge"
    ) -> str:
        """Merge a pull request."""
        return ask("PUT", f"/repos/{owner}/{repo}/pulls/{pull_number}/merge", {"merge_method": merge_method})

    @server.tool(annotations=ToolAnnotations(destructive_hint=True))
    def delete_repository(owner: Name, repo: Name) -> str:
        """Delete a repository."""
        return ask("DELETE", f"/repos/{owner}/{repo}")

    return server


def _message(response: httpx.Response) -> str:
    try:
        document = response.json()
    except ValueError:
        return "no reason given"
    return str(document.get("message", "no reason given")) if isinstance(document, dict) else "no reason given"


def main() -> None:
    """Serve over stdio until stdin closes."""
    try:
        url, token = os.environ["GITHUB_API_URL"], os.environ["GITHUB_PERSONAL_ACCESS_TOKEN"]
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set")
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": API_VERSION,
    }
    # Proxy settings of a stranger's environment must not carry the token elsewhere.
    with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
        make_server(client).run("stdio")


if __name__ == "__main__":
    main()
