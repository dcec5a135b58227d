"""Rules on the task as a whole: who answers for it, how long it lives, what ends it, what its environment holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from agent_token_injector.clock import human_duration
from agent_token_injector.gate_rules.case import Case, Finding, says_something
from agent_token_injector.policy import (
    ADMIN_NAMES,
    CREDENTIAL_NAMES,
    CREDENTIAL_SHAPES,
    GRANTED_NAMES,
    LOADER_NAMES,
    REVOCATION_PATHS,
    VENDOR_NAMES,
    name_matches,
)
from agent_token_injector.spec import HandoffSpec


def task(case: Case) -> Iterator[Finding]:
    """Who answers for the handoff, and for what card (H5)."""
    if not says_something(case.spec.operator):
        yield Finding(
            code="H5.operator",
            surface="task",
            what="no operator is named",
            mend='name who answers for this handoff: "operator": "you@example.com"',
        )
    if not says_something(case.spec.card):
        yield Finding(
            code="H5.card",
            surface="task",
            what="no card is linked",
            mend='link the card that this task comes from: "card": "#3206"',
        )


# The names of minted credentials are taken: a plain value under one would stand in for the minted one.
_MINTED: Final = tuple(name for granted in GRANTED_NAMES.values() for name in granted)


def ceilings(case: Case) -> Iterator[Finding]:
    """A policy is never looser than the ADR, however it was made (H1)."""
    for name in case.policy.loosened():
        yield Finding(
            code="H5.audit" if name == "audit_retention_days" else "H1.policy-loosened",
            surface="policy",
            what=f"the policy's {name} is looser than the ADR allows",
            mend="start from Policy() and tighten it",
        )


def lifetime(case: Case) -> Iterator[Finding]:
    """How long the handoff lives, and what ends it (H3)."""
    spec, policy = case.spec, case.policy
    if spec.expires_in <= timedelta(0) or spec.expected_runtime <= timedelta(0):
        yield Finding(
            code="H3.lifetime-positive",
            surface="task",
            what="expires_in and expected_runtime must be longer than nothing",
            mend='write durations such as "PT45M"',
        )
    if spec.expires_in > policy.max_lifetime:
        yield Finding(
            code="H3.lifetime",
            surface="task",
            what=f"it asks to live {human_duration(spec.expires_in)}, more than {human_duration(policy.max_lifetime)}",
            mend=f"ask for {human_duration(policy.max_lifetime)} at most and hand off again after that",
        )
    if spec.expected_runtime > spec.expires_in:
        yield Finding(
            code="H3.runtime",
            surface="task",
            what="the expected runtime is longer than the handoff would live",
            mend="raise expires_in or split the task",
        )
    long = spec.expires_in > policy.max_lifetime_without_enrolment
    limit = human_duration(policy.max_lifetime_without_enrolment)
    if spec.revocation.velvet and not policy.velvet_enrolment:
        yield Finding(
            code="H3.velvet-unavailable",
            surface="velvet",
            what="it relies on Velvet to end it, and this installation cannot enrol a handoff yet",
            mend='name who revokes instead: "revocation": {"by_hand": {"who": "...", "how": "..."}}',
        )
    elif long and not spec.revocation.velvet and case.by_hand is None:
        yield Finding(
            code="H3.end-unattended",
            surface="velvet",
            what=f"it lives longer than {limit}, and neither Velvet nor a named person is there to end it",
            mend=f'ask for {limit} at most, or "revocation": {{"by_hand": {{"who": "...", "how": "..."}}}}',
        )
    for surface, asked in _asked_lifetimes(spec):
        ceiling = policy.ceiling(surface)
        if asked <= timedelta(0) or asked > ceiling:
            yield Finding(
                code="H3.surface-lifetime",
                surface=surface.partition(":")[0],
                what=f"a credential of {human_duration(asked)} is asked for; {surface} allows {human_duration(ceiling)}",
                mend=f"ask for {human_duration(ceiling)} at most, or leave it out",
            )
    if spec.surfaces.aws is not None and timedelta(0) < spec.surfaces.aws.duration < timedelta(minutes=15):
        yield Finding(
            code="H3.surface-lifetime",
            surface="aws",
            what="AWS gives no session of less than 15 min",
            mend='ask for "duration": "PT15M" or more',
        )


def _asked_lifetimes(spec: HandoffSpec) -> Iterator[tuple[str, timedelta]]:
    for name, request in spec.surfaces.requested().items():
        key = f"github:{spec.surfaces.github.method}" if name == "github" and spec.surfaces.github else name
        asked = getattr(request, "duration", getattr(request, "expires_in", None))
        if asked is not None:
            yield key, asked


def surfaces(case: Case) -> Iterator[Finding]:
    """Each surface is one that the policy allows and that can be ended on its own (H2, H8)."""
    for name in case.spec.surfaces.requested():
        if name not in case.policy.surfaces:
            yield Finding(
                code="H1.surface",
                surface=name,
                what="the operator's policy does not allow this surface",
                mend="leave it out of the spec, or have the operator allow it",
            )
        if name not in REVOCATION_PATHS:
            yield Finding(
                code="H8.kill-switch",
                surface=name,
                what="nobody has written down who can revoke it, and where",
                mend="a surface without a kill-switch is not handed over",
            )
    for name in ("stripe", "alpaca"):
        if name not in case.spec.surfaces.requested():
            continue
        yield Finding(
            code="H2.revoked-by-a-person",
            severity="warn",
            surface=name,
            what="no API of the vendor ends this credential; only a person does, in the dashboard",
            mend="use a key made for this handoff alone, and delete it when `handoff revoke` asks for it",
        )


def environment(case: Case) -> Iterator[Finding]:
    """Only scoped credentials reach the agent; nothing that changes how programs start (H6, D7)."""
    spec = case.spec
    named = [("env", name) for name in spec.env]
    for server, definition in spec.mcp_servers.items():
        where = f"mcp_servers.{server}"
        named += [(f"{where}.plain_env", name) for name in definition.plain_env]
        for name in definition.env:
            if name_matches(name, LOADER_NAMES):
                yield _loader(f"{where}.env", name)
    for where, name in named:
        if name_matches(name, LOADER_NAMES):
            yield _loader(where, name)
        elif name_matches(name, ADMIN_NAMES + _MINTED) or (where == "env" and name_matches(name, VENDOR_NAMES)):
            yield Finding(
                code="H1.env-admin",
                surface=where,
                what=f"{name} is a name under which admin identities or minted credentials travel",
                mend="ask for the surface instead; its scoped credential arrives under its own name",
            )
        elif name_matches(name, CREDENTIAL_NAMES):
            yield Finding(
                code="H6.env-credential",
                surface=where,
                what=f"{name} names a secret, and a spec holds none",
                mend="store the secret in the vault under a staging path and let the handoff read it",
            )
    yield from _secrets(spec)


def _secrets(spec: HandoffSpec) -> Iterator[Finding]:
    """No text of a spec looks like a credential, wherever it stands (H6)."""
    for path, text in _texts(spec.to_dict(), ()):
        if CREDENTIAL_SHAPES.search(text):
            server = path[:1] == ("mcp_servers",) and len(path) > 2
            yield Finding(
                code="H6.secret-in-spec",
                surface=".".join(path[:3]) if server else "env",
                what=f"the text at {'.'.join(path)} looks like a credential",
                mend="revoke it (it has been in a file), and ask for the surface that mints one",
            )


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield path, key
            yield from _texts(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, str(index)))


def _loader(where: str, name: str) -> Finding:
    return Finding(
        code="D7.env-loader",
        surface=where,
        what=f"{name} changes how programs start, what they load or whom they trust",
        mend="leave it out: the environment is built from nothing, with a base of its own",
    )
