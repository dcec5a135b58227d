"""Rules on MCP tools: an explicit allowlist that says one thing (ADR §3.1, §4.5)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from agent_token_injector.gate_rules.case import Case, Finding, forbidden_name
from agent_token_injector.policy import CREDENTIAL_NAMES, GRANTED_NAMES, name_matches
from agent_token_injector.spec import McpServer, ToolGrant, thaw

SCHEMA_REF: Final = re.compile(r"\$(?:dynamic|recursive)?ref", re.IGNORECASE)
TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
NARROW_PREFIX: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{0,3}[^/*][^*]*\*", re.ASCII)
"""A prefix of resources that says more than a scheme, and is one: its only `*` stands at the end."""


def tools(case: Case) -> Iterator[Finding]:
    """An explicit allowlist that says one thing (H1, ADR §3.1, §4.5)."""
    yield from _lists(case)
    for grant in case.spec.mcp_tools:
        yield from _grant(case, grant)
        yield from _use(case, grant)
    for name, server in case.spec.mcp_servers.items():
        yield from _secrets(case, name, server)
        yield from _addresses(name, server)
        yield from _allowed(name, server)


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


def _use(case: Case, grant: ToolGrant) -> Iterator[Finding]:
    """How often, what is written down of it, and what its arguments are held against."""
    for name, number in (("calls", grant.limits.calls), ("per_minute", grant.limits.per_minute)):
        if number is not None and number < 1:
            yield _tool(
                "mcp.limit",
                f"{grant.name} may be called {number} times ({name}), so that it is granted and cannot be used",
                "write a number from 1, or take the tool out",
            )
    for name in grant.log_arguments:
        if name_matches(name.replace("-", "_"), CREDENTIAL_NAMES):
            yield _tool(
                "mcp.log-credential",
                f"the argument {name!r} of {grant.name} names a secret, and would be written to the audit",
                "leave it out of log_arguments: the audit has a digest of all arguments",
            )
    if case.spec.surfaces.github is None and grant.arguments is not None:
        for used in sorted(_formats(thaw(grant.arguments))):
            if used in {"repository", "repository-owner", "repository-name"}:
                yield _tool(
                    "mcp.format-place",
                    f"the arguments of {grant.name} have the format {used}, and the handoff has no repository",
                    "ask for surfaces.github, or write the repository out",
                )


def _formats(schema: Any) -> set[str]:
    """Every text under a key `format`, wherever it stands."""
    if isinstance(schema, Mapping):
        own = {schema["format"]} if isinstance(schema.get("format"), str) else set()
        return own.union(*map(_formats, schema.values()))
    return set().union(*map(_formats, schema)) if isinstance(schema, list) else set()


def _secrets(case: Case, name: str, server: McpServer) -> Iterator[Finding]:
    known = set(GRANTED_NAMES["infisical"])
    for surface in case.spec.surfaces.requested():
        known.update(GRANTED_NAMES.get(surface, ()))
    for variable in server.variables:
        if variable not in known:
            yield _tool(
                "mcp.secret-unknown",
                f"the server {name} wants {variable}, which this handoff does not have",
                "its surfaces give it " + ", ".join(sorted(known)),
            )


def _addresses(name: str, server: McpServer) -> Iterator[Finding]:
    """Secrets and results go over TLS, or do not leave this machine."""
    token_url = None if server.oauth is None else server.oauth.token_url
    for what, url in (("", server.url), ("'s token_url", token_url)):
        if url is not None and urlsplit(url).scheme != "https" and not _is_loopback(urlsplit(url).hostname or ""):
            yield _tool(
                "mcp.url-plain",
                f"the server {name}{what} is spoken to over plain http, and not on this machine",
                "use https",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allowed(name: str, server: McpServer) -> Iterator[Finding]:
    """What a server may beyond tools is named, thing by thing (ADR §4.5)."""
    allow = server.allow
    for uri in allow.resources:
        if "*" in uri and not NARROW_PREFIX.fullmatch(uri):
            yield _tool(
                "mcp.resources-wide",
                f"the resources {uri!r} of {name} are not a narrow prefix",
                'name each resource, or what they begin with beyond the scheme: "docs://handbook/*"',
            )
    for prompt in allow.prompts:
        if "*" in prompt:
            yield _tool("mcp.wildcard", f"the prompt {prompt!r} of {name} is a wildcard", "name every prompt")
    if allow.subscribe and not allow.resources:
        yield _tool("mcp.allow-empty", f"{name} may be subscribed to, and has no resources", "name its resources")
    if allow.completion and not (allow.resources or allow.prompts):
        yield _tool("mcp.allow-empty", f"{name} may complete, and has no resources or prompts", "name them")
    asks = [what for what in ("sampling", "elicitation", "roots") if getattr(allow, what)]
    if server.url is not None and asks:
        yield Finding(
            code="mcp.remote-asks",
            severity="warn",
            surface="mcp",
            what=f"the remote server {name} may ask the agent's side for {', '.join(asks)}",
            mend="what it asks is text of a stranger's in front of a model that holds this handoff: leave it out if it can be",
        )


def _tool(code: str, what: str, mend: str) -> Finding:
    return Finding(code=code, surface="mcp", what=what, mend=mend)
