"""Rules on MCP tools: an explicit allowlist that says one thing (ADR §3.1, §4.5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from agent_token_injector.gate_rules.case import Case, Finding, forbidden_name
from agent_token_injector.policy import GRANTED_NAMES
from agent_token_injector.spec import ToolGrant, thaw

SCHEMA_REF: Final = re.compile(r"\$(?:dynamic|recursive)?ref", re.IGNORECASE)
TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


def tools(case: Case) -> Iterator[Finding]:
    """An explicit allowlist that says one thing (H1, ADR §3.1, §4.5)."""
    yield from _lists(case)
    for grant in case.spec.mcp_tools:
        yield from _grant(case, grant)
    yield from _server_env(case)


def _lists(case: Case) -> Iterator[Finding]:
    excluded = case.spec.mcp_tools_excluded
    granted = [grant.name for grant in case.spec.mcp_tools]
    if not granted:
        yield _tool("mcp.empty", "no tool is allowed explicitly", 'list what the task needs in "mcp_tools"')
    if not excluded:
        yield Finding(
            code="mcp.no-exclusions",
            severity="warn",
            surface="mcp",
            what="no tool is excluded by name",
            mend="list the tools that must never be granted, so that a later edit cannot slip one in",
        )
    for name in [*granted, *excluded]:
        if "*" in name or "?" in name:
            yield _tool("mcp.wildcard", f"{name!r} is a wildcard", "name every tool")
        elif not TOOL_NAME.fullmatch(name):
            yield _tool("mcp.tool-name", f"{name!r} is not a tool's name", "use the server's exact, ASCII name")
    for name in sorted(set(granted)):
        if granted.count(name) > 1:
            yield _tool("mcp.duplicate", f"{name} is granted twice", "grant it once")


def _grant(case: Case, grant: ToolGrant) -> Iterator[Finding]:
    readings = _readings(case, grant)
    if readings & set(case.spec.mcp_tools_excluded):
        yield _tool("mcp.contradiction", f"{grant.name} is both granted and excluded", "take it out of one of them")
    if not _is_vault(case, grant):
        for name in sorted(readings):
            verdict = forbidden_name(name)
            if verdict and verdict[0] in {"H1.actions-secrets", "H1.protection-bypass"}:
                yield _tool(verdict[0], f"the tool {name} is not for handoffs: {verdict[1]}", "take it out")
                break
    servers = case.spec.mcp_servers
    if grant.server is not None and grant.server not in servers:
        yield _tool("mcp.server-unknown", f"{grant.name} is on {grant.server!r}, which is not declared", "declare it")
    elif grant.server is None and not servers:
        yield _tool("mcp.server-unknown", f"{grant.name} is granted and no server is declared", 'add "mcp_servers"')
    if grant.arguments is not None and SCHEMA_REF.search(str(thaw(grant.arguments))):
        yield _tool("mcp.schema-ref", f"the arguments of {grant.name} refer to another schema", "write it out in place")


def _readings(case: Case, grant: ToolGrant) -> set[str]:
    """Every name by which an exclusion or a reader could mean the granted tool."""
    if grant.tool is not None:
        return {grant.name, grant.tool, f"{grant.server}_{grant.tool}"}
    # A plain string is `<server>_<tool>` or a tool's own name; which one is only known once the servers run.
    servers = case.spec.mcp_servers
    own = {grant.name.removeprefix(f"{server}_") for server in servers}
    return {grant.name, *own, *(f"{server}_{grant.name}" for server in servers)}


def _is_vault(case: Case, grant: ToolGrant) -> bool:
    builtin = {name for name, server in case.spec.mcp_servers.items() if server.builtin == "vault"}
    if grant.server is not None:
        return grant.server in builtin
    return any(grant.name == f"{name}_get_secret" for name in builtin)


def _server_env(case: Case) -> Iterator[Finding]:
    known = set(GRANTED_NAMES["infisical"])
    for surface in case.spec.surfaces.requested():
        known.update(GRANTED_NAMES.get(surface, ()))
    for server, definition in case.spec.mcp_servers.items():
        for name in definition.env.values():
            if name not in known:
                yield _tool(
                    "mcp.secret-unknown",
                    f"the server {server} wants {name}, which this handoff does not have",
                    "its surfaces give it " + ", ".join(sorted(known)),
                )


def _tool(code: str, what: str, mend: str) -> Finding:
    return Finding(code=code, surface="mcp", what=what, mend=mend)
