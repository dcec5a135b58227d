"""The emulated Stripe enforces a key's permissions, mode and deletion, and gives a key's holder nothing to abuse."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from agent_token_injector.clock import ManualClock
from agent_token_injector.sandbox.http_server import digest
from agent_token_injector.sandbox.stripe import ACCOUNT, SandboxStripe
from agent_token_injector.transport import Response, client
from tests.requirements import requirement

SESSION = {"mode": "payment", "success_url": "https://example.com"}


@pytest.fixture
def stripe() -> Iterator[SandboxStripe]:
    with SandboxStripe(ManualClock(datetime(2026, 6, 20, 12, 0, tzinfo=UTC))) as emulator:
        yield emulator
        assert not emulator.failures


def ask(
    stripe: SandboxStripe, verb: str, path: str, authorization: str | None, data: dict[str, str] | None = None
) -> Response:
    headers = {"Authorization": authorization} if authorization else {}
    with client(stripe.url) as http:
        return http.request(verb, path, headers=headers, data=data, idempotent=False)


def key_of(stripe: SandboxStripe, *permissions: str, live: bool = False) -> str:
    return "Bearer " + stripe.dashboard_create_key(permissions, live=live).get_secret_value()


@requirement("sandbox.stripe.permissions")
def test_a_key_does_what_its_permissions_allow_and_writing_includes_reading(stripe: SandboxStripe) -> None:
    key = key_of(stripe, "rak_checkout_session_write", "subscription_read")
    assert ask(stripe, "GET", "/v1/checkout/sessions?limit=1", key).json()["data"] == []
    assert ask(stripe, "POST", "/v1/checkout/sessions", key, SESSION).json()["livemode"] is False
    assert len(ask(stripe, "GET", "/v1/checkout/sessions", key).json()["data"]) == 1
    assert ask(stripe, "GET", "/v1/subscriptions", key).status == 200
    for verb, path in (
        ("POST", "/v1/subscriptions"),
        ("GET", "/v1/balance"),
        ("GET", "/v1/customers"),
        ("POST", "/v1/refunds"),
        ("GET", "/v1/apps/secrets"),
        ("POST", "/v1/customers/cus_x"),
    ):
        assert ask(stripe, verb, path, key, {} if verb == "POST" else None).status == 403


@requirement("sandbox.stripe.errors")
def test_a_request_that_may_be_made_and_is_wrong_is_told_so(stripe: SandboxStripe) -> None:
    key = key_of(stripe, "checkout_session_write", "customer_write", "secret_write")
    unknown = ask(stripe, "POST", "/v1/checkout/sessions", key, {**SESSION, "handoff_probe": "1"})
    assert (unknown.status, unknown.json()["error"]["code"]) == (400, "parameter_unknown")
    missing = ask(stripe, "POST", "/v1/checkout/sessions", key, {"mode": "payment"})
    assert (missing.status, missing.json()["error"]["code"]) == (400, "parameter_missing")
    assert (
        ask(stripe, "POST", "/v1/customers/cus_none", key, {"name": "x"}).json()["error"]["code"] == "resource_missing"
    )
    assert ask(stripe, "GET", "/v1/apps/secrets", key).status == 400
    assert ask(stripe, "GET", "/v1/nowhere", key).status == 404


@requirement("sandbox.stripe.errors", "sandbox.stripe.permissions")
def test_endpoints_without_a_list_demands_of_lists_and_actions_are_as_at_stripe(stripe: SandboxStripe) -> None:
    key = key_of(stripe, "token_write", "issuing_token_read", "review_write", "outbound_payment_read")
    assert ask(stripe, "GET", "/v1/tokens", key).status == 404
    assert ask(stripe, "GET", "/v1/tokens/tok_none", key).json()["error"]["code"] == "resource_missing"
    assert ask(stripe, "GET", "/v1/issuing/tokens", key).json()["error"]["param"] == "card"
    assert ask(stripe, "GET", "/v1/issuing/tokens?card=ic_x", key).status == 200
    assert ask(stripe, "GET", "/v1/treasury/outbound_payments", key).status == 400
    assert ask(stripe, "POST", "/v1/reviews/prv_none/approve", key, {}).json()["error"]["code"] == "resource_missing"
    assert ask(stripe, "POST", "/v1/reviews/prv_none/approve", key_of(stripe), {}).status == 403
    assert ask(stripe, "POST", "/v1/reviews/prv_none/decline", key, {}).json()["error"].get("code") is None


@requirement("sandbox.stripe.errors")
def test_an_object_can_be_read_and_changed_by_who_may(stripe: SandboxStripe) -> None:
    key = key_of(stripe, "customer_write")
    made = ask(stripe, "POST", "/v1/customers", key, {"name": "a"}).json()
    path = f"/v1/customers/{made['id']}"
    assert ask(stripe, "POST", path, key, {"name": "b"}).json()["name"] == "b"
    assert ask(stripe, "POST", path, key, {"nonsense": "b"}).status == 400
    assert ask(stripe, "GET", path, key_of(stripe, "customer_read")).json()["name"] == "b"


@requirement("sandbox.stripe.mode")
def test_live_and_test_do_not_see_each_other(stripe: SandboxStripe) -> None:
    test, live = (
        key_of(stripe, "customer_write", "balance_read"),
        key_of(stripe, "customer_read", "balance_read", live=True),
    )
    made = ask(stripe, "POST", "/v1/customers", test, {}).json()
    assert ask(stripe, "GET", "/v1/customers", live).json()["data"] == []
    assert ask(stripe, "GET", f"/v1/customers/{made['id']}", live).status == 404
    assert ask(stripe, "GET", "/v1/balance", test).json()["livemode"] is False
    assert ask(stripe, "GET", "/v1/balance", live).json()["livemode"] is True


@requirement("sandbox.stripe.deletion")
def test_a_deleted_key_and_an_unknown_one_are_refused(stripe: SandboxStripe) -> None:
    key = stripe.dashboard_create_key(["balance_read"])
    basic = base64.b64encode(f"{key.get_secret_value()}:".encode()).decode()
    assert stripe.live_credentials() == (digest(key.get_secret_value()),)
    assert ask(stripe, "GET", "/v1/balance", f"Basic {basic}").status == 200
    assert stripe.dashboard_delete_key(key)
    assert not stripe.dashboard_delete_key(key)
    for authorization in (f"Bearer {key.get_secret_value()}", f"Basic {basic}", "Basic !", "Bearer rk_test_x", None):
        assert ask(stripe, "GET", "/v1/balance", authorization).status == 401
    assert stripe.live_credentials() == ()


@requirement("sandbox.stripe.no-keys-over-http")
def test_no_key_can_be_made_or_listed_over_http(stripe: SandboxStripe) -> None:
    strong = key_of(stripe, "api_key_write", "secret_write")
    assert ask(stripe, "POST", "/v2/iam/api_keys", strong, {"type": "secret_key"}).status == 400
    assert ask(stripe, "POST", "/v2/iam/api_keys", key_of(stripe), {}).status == 403
    assert ask(stripe, "GET", "/v2/iam/api_keys", strong).status == 404
    assert len(stripe.dashboard_keys()) == 2
    assert "rk_test_51" not in repr(stripe.dashboard_keys())


@requirement("sandbox.stripe.errors")
def test_a_refusal_quotes_account_and_key_as_stripes_does(stripe: SandboxStripe) -> None:
    key = key_of(stripe)
    error = ask(stripe, "GET", "/v1/charges", key).json()["error"]
    assert error["code"] == "more_permissions_required"
    assert ACCOUNT in error["message"]
    assert key[-4:] in error["message"]
    assert "'rak_charge_read'" in error["message"]
