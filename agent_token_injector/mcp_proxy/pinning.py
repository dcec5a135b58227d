"""Pinning: ask the spec's MCP servers what the granted tools are, at provisioning, before the manifest is signed.

The servers run as they will at dispatch: in an engine process of their own, with the handoff's own secrets and no
others. They run for as long as it takes to list their tools, and nothing of them is left afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy.pins import MAX_DEFINITION_BYTES, MAX_PINNED_BYTES, ToolPin, size

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.context import HandoffContext
    from agent_token_injector.names import HandoffId
    from agent_token_injector.spec import HandoffSpec

MCP: Final = "mcp"
"""What the audit and the progress call the MCP servers, which are no credential surface."""
SERVERS_SECONDS: Final = 30.0
"""How long the MCP servers may take to start and list their tools; less when the provisioning's own time ends sooner."""
_TOOLS_AN_EVENT: Final = 200


def pin_tools(
    spec: HandoffSpec, ctx: HandoffContext, handoff: HandoffId, secrets: Mapping[str, SecretStr], *, seconds: float
) -> tuple[ToolPin, ...]:
    """Start the spec's servers, match its grants with their tools, and return a pin for each granted tool.

    Args:
        spec: its servers, grants and exclusions. Without grants nothing is started.
        ctx: whose vault the built-in server reads.
        handoff: whose servers they are.
        secrets: the handoff's, by the variable under which its agent gets them (`GH_TOKEN`).
        seconds: how long the servers may take to start and list their tools.

    Raises SpawnRefused, with nothing left running: a server that is not there or not usable, a grant that is unknown,
    ambiguous or excluded, a definition that is too large, or that holds a secret of the handoff.
    """
    if not spec.mcp_tools:
        return ()
    from agent_token_injector.mcp_proxy.proxy import list_tools
    from agent_token_injector.mcp_proxy.servers import places_of, servers_of

    listed = list_tools(
        handoff=handoff,
        grants=spec.mcp_tools,
        excluded=spec.mcp_tools_excluded,
        servers=servers_of(spec, secrets, ctx, handoff),
        secrets=tuple(secrets.values()),
        places=places_of(spec, protected=ctx.policy.protected_branches),
        start_seconds=seconds,
    )
    # Two grants of one tool, under two names, are one pin.
    pins = tuple({(one.server, one.tool): one for one in listed}.values())
    check_pins(pins, Redactor(secrets.values()))
    return pins


def check_pins(pins: Sequence[ToolPin], redactor: Redactor) -> None:
    """Return when the pins may stand in a manifest: bounded, consistent, without a secret. Raises SpawnRefused.

    A manifest is read by operators and hosts that may not know the handoff's secrets, so that none may stand there.
    """
    total = 0
    for one in pins:
        named = f"the definition of tool {one.tool!a} of MCP server {one.server!r}"
        length = size(one.definition)
        total += length
        if length > MAX_DEFINITION_BYTES:
            raise SpawnRefused(
                f"{named} is too large to be pinned",
                cause=f"it has {length} bytes, and {MAX_DEFINITION_BYTES} are the limit",
                hint="grant another tool, or have its server describe it in fewer words",
            )
        if redactor.json_counted(one.definition)[1]:
            raise SpawnRefused(
                f"{named} holds a secret of the handoff",
                cause="its server writes what it was given into what everyone may read",
                hint="do not use this server; what it was given is being revoked",
            )
        if not one.fits(one.definition):
            raise SpawnRefused(f"{named} is not what its digest was made of")
    if total > MAX_PINNED_BYTES:
        raise SpawnRefused(
            f"the definitions of the {len(pins)} granted tools are too large to be pinned",
            cause=f"they have {total} bytes together, and {MAX_PINNED_BYTES} are the limit",
            hint="grant fewer tools to one handoff",
        )


def details(pins: Sequence[ToolPin]) -> Iterator[dict[str, list[str]]]:
    """What the audit holds of the pins, `server/tool sha256:...` each: one detail an event, none longer than one may be."""
    lines = [f"{one.server}/{one.tool} {one.digest}" for one in pins]
    for start in range(0, len(lines), _TOOLS_AN_EVENT):
        yield {"tools": lines[start : start + _TOOLS_AN_EVENT]}


__all__ = ["MCP", "SERVERS_SECONDS", "check_pins", "details", "pin_tools"]
