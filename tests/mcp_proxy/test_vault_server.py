"""The built-in vault server, on the embedded vault, behind the proxy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.errors import VaultUnreachable
from agent_token_injector.masking import MASK, Redactor
from agent_token_injector.mcp_proxy.vault_server import vault_server
from agent_token_injector.names import PROVISION_MANIFEST, Layout, SecretGlob, VaultPath
from agent_token_injector.vaults.base import VaultSession
from agent_token_injector.vaults.embedded import EmbeddedVault
from tests.mcp_proxy.harness import HANDOFF, START, RawClient, Rig
from tests.requirements import requirement

OWN = Layout().of(HANDOFF)
OTHERS = VaultPath("/MooseQuest/production")
QUEUE = VaultPath("/MooseQuest/queue/staging")
VALUE = SecretStr("rk_test_OfTheHandoffItself")


class Vaulted:
    """A vault with the handoff's folder and others, and the identity that reads the one."""

    def __init__(self, rig: Rig) -> None:
        self.vault = EmbeddedVault(rig.path / "vault", clock=rig.clock)
        self.logins = 0
        self.down = False
        for folder in (OWN, OTHERS, QUEUE):
            self.vault.create_folder(folder)
        self.vault.create_secret(OWN, "STRIPE_RESTRICTED_KEY", VALUE)
        self.vault.create_secret(OWN, PROVISION_MANIFEST, SecretStr("a record"))
        self.vault.create_secret(OTHERS, "STRIPE_LIVE", SecretStr("sk_live_of_others"))
        self.vault.create_secret(QUEUE, "STRIPE_WEBHOOK", SecretStr("whsec_of_the_queue"))
        self.identity = self.vault.create_identity(
            "infisical-handoff-founders-checkout-20260620",
            read=[SecretGlob(OWN, "*"), SecretGlob(QUEUE, "STRIPE_*")],
            token_ttl=timedelta(minutes=10),
            expires_at=START + timedelta(hours=1),
        )
        rig.start(
            ["infisical_get_secret"],
            servers=[vault_server("infisical", self.login, OWN, rig.clock)],
            secrets=[VALUE],
        )
        self.client = RawClient(rig.proxies[-1].url)
        self.client.initialize()

    def login(self) -> VaultSession:
        if self.down:
            raise VaultUnreachable("the vault is away")
        self.logins += 1
        return self.vault.login(self.identity.client_id, self.identity.client_secret)

    def get(self, name: Any, path: Any = None) -> tuple[str, bool]:
        answer = self.client.call("infisical_get_secret", {"name": name} | ({} if path is None else {"path": path}))
        return answer.text, answer.json["result"]["isError"]


@pytest.fixture
def vaulted(rig: Rig) -> Iterator[Vaulted]:
    made = Vaulted(rig)
    yield made
    made.vault.close()


@requirement("mcp.vault-get-secret", "H5.one-event-per-access")
def test_a_secret_of_the_handoff_is_handed_over_unmasked_and_the_access_is_on_record_without_its_value(
    rig: Rig, vaulted: Vaulted
) -> None:
    assert vaulted.get("STRIPE_RESTRICTED_KEY") == (VALUE.get_secret_value(), False)
    assert vaulted.get("STRIPE_RESTRICTED_KEY", f"{OWN}/") == (VALUE.get_secret_value(), False)
    assert vaulted.get("STRIPE_WEBHOOK", str(QUEUE)) == ("whsec_of_the_queue", False)
    reads = rig.events("vault.read")
    assert [(read.decision, read.target) for read in reads] == [
        ("allowed", f"{OWN}/STRIPE_RESTRICTED_KEY"),
        ("allowed", f"{OWN}/STRIPE_RESTRICTED_KEY"),
        ("allowed", f"{QUEUE}/STRIPE_WEBHOOK"),
    ]
    assert VALUE.get_secret_value() not in rig.written()
    assert "whsec_of_the_queue" not in rig.written()


@requirement("mcp.vault-scope")
@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("STRIPE_LIVE", str(OTHERS), "forbidden"),
        ("NOT_THERE", str(OTHERS), "forbidden"),
        ("STRIPE_LIVE", "/MooseQuest/nowhere", "forbidden"),
        (PROVISION_MANIFEST, None, "record"),
    ],
)
def test_outside_the_scope_what_exists_and_what_does_not_are_the_same(
    rig: Rig, vaulted: Vaulted, name: str, path: str | None, reason: str
) -> None:
    assert vaulted.get(name, path) == ("not within this handoff's scope", True)
    assert [(event.decision, event.reason) for event in rig.events("vault.read")] == [("refused", reason)]


@requirement("mcp.vault-scope")
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("STRIPE_LIVE", f"{OWN}/../../production"),
        ("STRIPE_LIVE", "/MooseQuest//production"),
        ("STRIPE_LIVE", "/MooseQuest/%70roduction"),
        ("STRIPE_LIVE", "MooseQuest/production"),
        ("STRIPE_LIVE", f"{OWN}//"),
        ("STRIPE_LIVE", ""),
        ("../production/STRIPE_LIVE", None),
        ("STRIPE_*", None),
        ("stripe_live", None),
        ("STRIPE_LIVE\n", None),
    ],
)
def test_a_path_or_name_with_a_second_reading_never_reaches_the_vault(
    rig: Rig, vaulted: Vaulted, name: str, path: str | None
) -> None:
    text, is_error = vaulted.get(name, path)
    assert is_error
    assert text.startswith("path or name is not one of the vault's")
    assert vaulted.logins == 0
    assert rig.events("vault.read")[-1].reason == "malformed"


@requirement("mcp.vault-get-secret")
def test_a_missing_secret_and_an_absent_vault_are_errors_the_agent_can_read(rig: Rig, vaulted: Vaulted) -> None:
    assert vaulted.get("NOT_THERE") == ("no such secret", True)
    rig.advance(timedelta(minutes=11))
    vaulted.down = True
    assert vaulted.get("STRIPE_RESTRICTED_KEY") == ("the vault gave no answer; try again later", True)
    assert [event.reason for event in rig.events("vault.read")] == ["not-found", "unreachable"]


@requirement("mcp.vault-get-secret")
def test_a_token_about_to_end_is_replaced_and_a_fresh_one_is_kept(rig: Rig, vaulted: Vaulted) -> None:
    for _ in range(3):
        vaulted.get("STRIPE_RESTRICTED_KEY")
    assert vaulted.logins == 1
    rig.advance(timedelta(minutes=10) - LOCAL_EARLY)
    assert vaulted.get("STRIPE_RESTRICTED_KEY")[1] is False
    assert vaulted.logins == 2


@requirement("mcp.vault-scope")
def test_an_identity_that_was_deleted_reads_nothing_more(rig: Rig, vaulted: Vaulted) -> None:
    assert vaulted.get("STRIPE_RESTRICTED_KEY")[1] is False
    vaulted.vault.delete_identity(vaulted.identity.identity_id)
    assert vaulted.get("STRIPE_RESTRICTED_KEY") == ("not within this handoff's scope", True)


@requirement("mcp.argument-schema")
@pytest.mark.parametrize(
    "arguments", [{}, {"name": 1}, {"name": "A", "path": None}, {"name": "A", "environment": "prod"}]
)
def test_arguments_that_do_not_fit_the_tool_never_reach_it(rig: Rig, vaulted: Vaulted, arguments: Any) -> None:
    answer = vaulted.client.call("infisical_get_secret", arguments)
    assert answer.error["code"] == -32602
    assert rig.events("vault.read") == []


@requirement("D8.audit-before-forward")
def test_a_secret_whose_reading_cannot_be_put_on_record_is_not_disclosed(rig: Rig, vaulted: Vaulted) -> None:
    with rig.audit_held():
        answer = vaulted.client.call("infisical_get_secret", {"name": "STRIPE_RESTRICTED_KEY"})
    assert answer.error["message"] == "Audit unavailable: nothing was done"
    assert vaulted.logins == 0


STAGING = "whsec_of_the_queue"


@requirement("mcp.read-values-masked")
def test_a_value_the_agent_has_read_stands_in_no_audit_event_whatever_it_calls_with_it(
    rig: Rig, vaulted: Vaulted
) -> None:
    client = vaulted.client
    assert vaulted.get("STRIPE_WEBHOOK", str(QUEUE)) == (STAGING, False)
    far = "x" * (128 - len(STAGING) // 2) + STAGING
    for name in (STAGING, f"x{STAGING}y", far):
        assert client.call(name).error["code"] == -32602
        assert client.call_stateless(name, headers={"Mcp-Name": name}).status == 400
        vaulted.get(name)
        vaulted.get("STRIPE_WEBHOOK", f"{OWN}/{name}")
    assert client.ask(STAGING).error["code"] == -32601
    assert client.ask("tools/call", {"name": f"\u00e9\n{STAGING}"}).error["code"] == -32602
    assert STAGING[: len(STAGING) // 2] not in rig.written()
    assert f"tools/call {MASK}" in [event.target for event in rig.events("tool.denied")]


@requirement("mcp.read-values-masked")
def test_a_value_the_agent_has_read_is_masked_in_what_other_servers_answer_and_still_handed_out(
    rig: Rig, vaulted: Vaulted
) -> None:
    servers = [vault_server("infisical", vaulted.login, QUEUE, rig.clock), rig.scripted(GRANTED=SecretStr(STAGING))]
    client = RawClient(rig.start(["get_secret", "echo", "fail"], servers=servers, secrets=[]).url)
    client.initialize()
    assert STAGING in client.call("echo", {"text": STAGING}).text
    for _ in range(2):
        assert client.call("get_secret", {"name": "STRIPE_WEBHOOK"}).text == STAGING
    assert client.call("echo", {"text": STAGING}).text == f'{{"text": "{MASK}"}}'
    assert client.call("fail").error == {"code": -32050, "message": f"no: {MASK}", "data": {"token": MASK}}
    assert rig.events("tool.result")[-2].detail["masked"] == 1
    assert STAGING not in rig.written()


class Full(Redactor):
    """A redactor that can learn nothing more."""

    __slots__ = ()

    def with_secrets(self, more: Iterable[SecretStr]) -> Redactor:
        raise MemoryError(f"no room for {len(tuple(more))} more")


@requirement("mcp.read-values-masked")
def test_a_value_that_cannot_be_masked_from_now_on_is_not_disclosed(rig: Rig, vaulted: Vaulted) -> None:
    server = vault_server("infisical", vaulted.login, OWN, rig.clock)
    client = RawClient(rig.start(["get_secret"], servers=[server], redactor=Full()).url)
    client.initialize()
    answer = client.call("get_secret", {"name": "STRIPE_RESTRICTED_KEY"})
    assert answer.error["message"].endswith("the value could not be kept out of the records; it was not disclosed")
    assert VALUE.get_secret_value().encode() not in answer.body
    assert rig.events("tool.result")[-1].reason == "upstream-failed"
