"""The manifest: what is signed stays signed, what is stored is read back, and the records tell the state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from agent_token_injector.errors import ManifestExpired, SecretsMismatch, SignatureInvalid, ToolsNotPinned
from agent_token_injector.lease import Lease, MintKind, Recovery
from agent_token_injector.manifest import (
    MAX_TOOLS_BYTES,
    PROVISION_INTENT,
    PROVISION_MANIFEST,
    REVOCATION_MARK,
    AuditHead,
    Holder,
    ManifestState,
    PinnedTool,
    ProvisionIntent,
    ProvisionManifest,
    RevocationMark,
    SecretRecord,
    read_record,
    state_of,
)
from agent_token_injector.mcp_proxy.pins import MAX_DEFINITION_BYTES, MAX_PINNED_BYTES, ToolPin
from agent_token_injector.names import HandoffId, mint_begun
from agent_token_injector.signing import SigningKey
from agent_token_injector.spec import HandoffSpec
from tests.requirements import requirement
from tests.world import founders

START = datetime(2026, 6, 20, 9, 0, tzinfo=UTC)
ID = HandoffId.parse("founders-checkout-20260620")
KEY = SigningKey.from_seed(bytes(range(32)))
SECRETS = {"GH_HANDOFF_TOKEN": SecretStr("ghs_a-token-of-a-test"), "INFISICAL_CLIENT_SECRET": SecretStr("a-secret")}
SPEC = founders()
LEASE = Lease(
    surface="github",
    identity=f"gh-token-handoff-{ID}",
    kind=MintKind.MINTED,
    recovery=Recovery.BY_HANDLE,
    handle="sha256:" + "1" * 64,
    minted_at=START,
    expires_at=START + timedelta(hours=1),
    scope={"repository": "raxx/TradeMasterAPI", "permissions": {"contents": "write"}},
    secrets=("GH_HANDOFF_TOKEN",),
)


def pinned(server: str, tool: str, **definition: Any) -> PinnedTool:
    made = ToolPin.of(server, tool, {"name": tool, "inputSchema": {"type": "object"}, **definition})
    return PinnedTool(**made.to_plain())


TOOLS = (
    pinned("github", "create_pull_request", description="Open a pull request."),
    pinned("github", "add_issue_comment"),
    pinned("infisical", "get_secret", annotations={"readOnlyHint": True}),
)


def make(**changes: Any) -> ProvisionManifest:
    fields: dict[str, Any] = {
        "handoff_id": str(ID),
        "task_slug": "founders-checkout",
        "spec": SPEC.to_dict(),
        "spec_digest": SPEC.digest,
        "policy_digest": "sha256:" + "2" * 64,
        "provisioned_at": START,
        "expires_at": START + timedelta(hours=1),
        "requested_until": START + timedelta(hours=24),
        "limited_by": "github",
        "leases": (LEASE,),
        "secrets": tuple(SecretRecord.of(name, value, env=name, surface="github") for name, value in SECRETS.items()),
        "tools": TOOLS,
        "audit_head": AuditHead(seq=9, digest="sha256:" + "3" * 64),
        "key_id": KEY.key_id,
    }
    return ProvisionManifest(**{**fields, **changes}).sign(KEY)


MANIFEST = make()
STORED = MANIFEST.to_secret().get_secret_value()


@requirement("D6.signature")
def test_what_was_stored_reads_back_as_it_was_and_verifies() -> None:
    found = ProvisionManifest.from_secret(MANIFEST.to_secret())
    assert found == MANIFEST
    found.verify(ID, [SigningKey.generate().public, KEY.public])
    assert found.read_spec() == SPEC
    assert found.to_secret() == MANIFEST.to_secret()


@requirement("D6.signature")
@given(place=st.integers(0, len(STORED) - 1), byte=st.integers(0x20, 0x7E).map(chr))
@settings(max_examples=600, deadline=None)
def test_with_any_one_byte_changed_it_never_says_anything_else_under_a_valid_signature(place: int, byte: str) -> None:
    assume(STORED[place] != byte)
    changed = STORED[:place] + byte + STORED[place + 1 :]
    try:
        found = ProvisionManifest.from_secret(SecretStr(changed))
        found.verify(ID, [KEY.public])
    except SignatureInvalid:
        return
    # Only what JSON reads as the very same document may pass: `1.0e1` for `10`, or a blank between two tokens.
    assert found == MANIFEST


@requirement("D6.bound")
@pytest.mark.parametrize("field", sorted(set(ProvisionManifest.model_fields) - {"type", "signature"}))
def test_the_signature_is_over_every_field(field: str) -> None:
    other: dict[str, Any] = {
        "handoff_id": "other-20260620",
        "spec": {**SPEC.to_dict(), "card": "#1"},
        "audit_head": AuditHead(seq=10, digest="sha256:" + "3" * 64),
        "leases": (),
        "secrets": (),
        "approvals": None,
        "tools": TOOLS[1:],
        "limited_by": None,
    }
    value = other.get(field, "x")
    if field in {"provisioned_at", "expires_at", "requested_until"}:
        value = START + timedelta(days=9)
    if field == "approvals":
        document = MANIFEST.signed_part() | {"approvals": [{"forged": True}]}
        with pytest.raises(SignatureInvalid):
            KEY.public.verify("agent_token_injector/manifest/v1", document, MANIFEST.signature)
        return
    with pytest.raises(SignatureInvalid):
        MANIFEST.model_copy(update={field: value}).verify(ID, [KEY.public])


@requirement("D6.signature")
def test_a_signature_made_for_another_kind_of_document_is_none() -> None:
    forged = MANIFEST.model_copy(
        update={"signature": KEY.sign("agent_token_injector/approval/v1", MANIFEST.signed_part())}
    )
    with pytest.raises(SignatureInvalid):
        forged.verify(ID, [KEY.public])


@requirement("D6.trust")
def test_nobody_trusted_means_nothing_verifies() -> None:
    with pytest.raises(SignatureInvalid, match="does not trust"):
        MANIFEST.verify(ID, [])


@requirement("D6.bound")
def test_it_is_not_another_handoffs() -> None:
    with pytest.raises(SignatureInvalid, match="copied"):
        MANIFEST.verify(HandoffId.parse("founders-checkout-20260621"), [KEY.public])


@requirement("D6.bound")
def test_a_spec_inside_that_is_not_the_one_whose_digest_was_signed_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="not the one that was signed"):
        make(spec={**SPEC.to_dict(), "card": "#1"}).read_spec()
    with pytest.raises(SignatureInvalid, match="not the one that was signed"):
        make(spec={"not": "a spec"}).read_spec()


def test_it_signs_only_with_the_key_that_it_names() -> None:
    with pytest.raises(ValueError, match="another key"):
        MANIFEST.sign(SigningKey.generate())


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        MANIFEST.expires_at = START  # type: ignore[misc]
    with pytest.raises(TypeError):
        MANIFEST.spec["card"] = "#1"  # type: ignore[index]


@requirement("D6.signature")
@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", '{"type":1}', STORED + "x", STORED[:-1] + ',"x":1}', STORED[:-1] + ',"key_id":"0"}'],
)
def test_what_is_no_manifest_is_never_read_as_one(text: str) -> None:
    with pytest.raises(SignatureInvalid, match="cannot be read"):
        ProvisionManifest.from_secret(SecretStr(text))


@requirement("D6.signature")
def test_an_unreadable_record_is_not_quoted() -> None:
    with pytest.raises(SignatureInvalid) as caught:
        ProvisionManifest.from_secret(SecretStr('{"handoff_id": "a-secret-in-the-wrong-place"}'))
    assert "wrong-place" not in caught.value.diagnostics()
    assert caught.value.__cause__ is None


# -- secrets -----------------------------------------------------------------------------------------------------------


def folder(**changes: SecretStr | None) -> dict[str, SecretStr]:
    records = {
        PROVISION_INTENT: SecretStr("{}"),
        PROVISION_MANIFEST: SecretStr("{}"),
        "MINT_BEGUN_GITHUB": SecretStr(""),
    }
    found: Mapping[str, SecretStr | None] = {**SECRETS, **records, **changes}
    return {name: value for name, value in found.items() if value is not None}


@requirement("D6.secrets")
def test_a_folder_with_exactly_the_secrets_signed_over_passes() -> None:
    MANIFEST.check_secrets(folder())


@requirement("D6.secrets")
def test_every_secret_that_is_wrong_is_named_and_how() -> None:
    wrong = folder(GH_HANDOFF_TOKEN=None, INFISICAL_CLIENT_SECRET=SecretStr("another"), EXTRA=SecretStr("more"))
    with pytest.raises(SecretsMismatch) as caught:
        MANIFEST.check_secrets(wrong)
    assert caught.value.names == ("GH_HANDOFF_TOKEN", "EXTRA", "INFISICAL_CLIENT_SECRET")
    assert caught.value.cause == (
        "missing: GH_HANDOFF_TOKEN; not in the manifest: EXTRA; different: INFISICAL_CLIENT_SECRET"
    )
    assert not any(value in caught.value.diagnostics() for value in ("another", "more", "ghs_a-token"))


@requirement("D6.secrets", "H6.no-values")
def test_a_secrets_record_tells_nothing_of_it_and_two_of_one_value_differ() -> None:
    first, second = (SecretRecord.of("A", SecretStr("one-value"), env="A", surface="x") for _ in range(2))
    assert first.digest != second.digest
    assert first.fits(SecretStr("one-value"))
    assert not first.fits(SecretStr("one-valuf"))
    assert "one-value" not in first.model_dump_json()


@requirement("D6.secrets")
@given(value=st.text(st.characters(exclude_categories=["Cs"])), other=st.text(st.characters(exclude_categories=["Cs"])))
def test_only_the_value_itself_fits(value: str, other: str) -> None:
    record = SecretRecord.of("A", SecretStr(value), env="A", surface="x")
    assert record.fits(SecretStr(value))
    assert record.fits(SecretStr(other)) is (value == other)


# -- pinned tools ------------------------------------------------------------------------------------------------------


@requirement("mcp.pinned")
def test_a_manifest_with_a_pin_for_every_grant_passes() -> None:
    MANIFEST.check_tools()
    make(spec={**SPEC.to_dict(), "mcp_tools": []}, spec_digest=NO_TOOLS.digest, tools=()).check_tools()


@requirement("mcp.pinned")
@pytest.mark.parametrize(
    ("tools", "names"),
    [
        ((), ("github_pr_create", "github_pr_comment", "infisical_get_secret")),
        (TOOLS[1:], ("github_pr_create",)),
        (TOOLS[:2], ("infisical_get_secret",)),
        ((*TOOLS[1:], pinned("infisical", "create_pull_request")), ("github_pr_create",)),
        ((*TOOLS[:2], pinned("infisical", "get_secrets")), ("infisical_get_secret",)),
    ],
)
def test_a_grant_without_a_pin_is_refused_by_name(tools: tuple[PinnedTool, ...], names: tuple[str, ...]) -> None:
    with pytest.raises(ToolsNotPinned) as caught:
        make(tools=tools).check_tools()
    assert caught.value.names == names
    assert all(name in str(caught.value) for name in names)
    assert "provision it again" in caught.value.diagnostics()


NO_TOOLS = HandoffSpec.parse(json.dumps({**SPEC.to_dict(), "mcp_tools": []}))


@requirement("mcp.pinned", "D6.signature")
def test_a_manifest_without_pins_is_spelled_as_before_there_were_any_and_still_verifies() -> None:
    plain = make(tools=())
    assert "tools" not in plain.to_dict()
    assert "tools" not in plain.signed_part()
    ProvisionManifest.from_secret(plain.to_secret()).verify(ID, [KEY.public])


@requirement("mcp.pinned", "D6.tampered")
@pytest.mark.parametrize(
    "tampered",
    [
        [],
        [tool.to_plain() for tool in TOOLS[:2]],
        [*(tool.to_plain() for tool in TOOLS[:2]), {**TOOLS[2].to_plain(), "digest": "sha256:" + "0" * 64}],
        [*(tool.to_plain() for tool in TOOLS[:2]), {**TOOLS[2].to_plain(), "definition": {}}],
        [tool.to_plain() for tool in reversed(TOOLS)],
    ],
)
def test_pins_that_were_changed_after_signing_are_refused(tampered: list[Any]) -> None:
    found = ProvisionManifest.from_secret(SecretStr(json.dumps({**MANIFEST.to_dict(), "tools": tampered})))
    with pytest.raises(SignatureInvalid):
        found.verify(ID, [KEY.public])


@requirement("mcp.pinned", "mcp.pin-bounded")
def test_the_largest_pins_there_may_be_are_read_back() -> None:
    deep: Any = {}
    for _ in range(55):  # a message may have 64 levels, and a definition in it has 60
        deep = {"items": deep}
    many = [
        pinned(
            "github", f"tool_{number}", description="\u2028" * ((MAX_DEFINITION_BYTES - 1000) // 6), inputSchema=deep
        )
        for number in range(MAX_PINNED_BYTES // MAX_DEFINITION_BYTES)
    ]
    assert 0.9 < len(json.dumps([one.to_plain() for one in many])) / MAX_TOOLS_BYTES <= 1
    found = ProvisionManifest.from_secret(make(tools=tuple(many)).to_secret())
    found.verify(ID, [KEY.public])
    assert [ToolPin.from_plain(one.to_plain()).fits(one.to_plain()["definition"]) for one in found.tools] == [True] * 8


@requirement("mcp.pinned")
def test_the_pins_in_a_manifest_are_those_of_the_proxy() -> None:
    assert MAX_TOOLS_BYTES == MAX_PINNED_BYTES
    large = ToolPin.of("files", "read", {"name": "read", "inputSchema": {"maximum": 2**64 - 1, "minimum": -0.5}})
    found = ProvisionManifest.from_secret(make(tools=(PinnedTool(**large.to_plain()),)).to_secret())
    assert ToolPin.from_plain(found.tools[0].to_plain()) == large


# -- time and state ----------------------------------------------------------------------------------------------------


@requirement("H3.expiry")
@pytest.mark.parametrize(("before_the_end", "lives"), [(31, True), (30, False), (0, False), (-1, False)])
def test_it_lives_until_half_a_minute_before_its_end(before_the_end: int, lives: bool) -> None:
    now = MANIFEST.expires_at - timedelta(seconds=before_the_end)
    if lives:
        MANIFEST.check_time(now)
    else:
        with pytest.raises(ManifestExpired, match="limited by its github credential"):
            MANIFEST.check_time(now)


RECORDS = (PROVISION_INTENT, PROVISION_MANIFEST, REVOCATION_MARK, mint_begun("github"), "GH_HANDOFF_TOKEN")


@requirement("D2.states")
@pytest.mark.parametrize("names", list(chain(*(combinations(RECORDS, count) for count in range(len(RECORDS) + 1)))))
def test_the_state_is_told_by_which_records_are_there(names: tuple[str, ...]) -> None:
    expected = ManifestState.PROVISIONING
    if PROVISION_MANIFEST in names:
        expected = ManifestState.PROVISIONED
    if REVOCATION_MARK in names:
        expected = ManifestState.REVOKING
    assert state_of(set(names)) is expected


@requirement("D2.states")
def test_the_other_records_read_back_as_they_were() -> None:
    intent = ProvisionIntent(
        handoff_id=str(ID),
        spec_digest=SPEC.digest,
        identities={"github": LEASE.identity},
        begun_at=START,
        deadline=START + timedelta(minutes=10),
        holder=Holder(boot="b", pid=7, started=9),
    )
    mark = RevocationMark(handoff_id=str(ID), marked_at=START, by="me", reason="asked for")
    stored = {PROVISION_INTENT: intent.to_secret(), REVOCATION_MARK: mark.to_secret()}
    assert read_record(stored, PROVISION_INTENT, ProvisionIntent) == intent
    assert read_record(stored, REVOCATION_MARK, RevocationMark) == mark
    assert read_record(stored, PROVISION_MANIFEST, ProvisionManifest) is None
    with pytest.raises(SignatureInvalid):
        read_record({PROVISION_INTENT: mark.to_secret()}, PROVISION_INTENT, ProvisionIntent)


def test_a_stored_manifest_is_one_line_of_ascii_json() -> None:
    assert STORED.isascii()
    assert "\n" not in STORED
    assert json.loads(STORED)["type"] == "agent_token_injector/manifest/v1"
