"""The Stripe surface: which keys it takes, and what it finds out about them without changing anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import MintRefused, RevokeFailed, ScopeTooWide, SurfaceError
from agent_token_injector.policy import STRIPE_ALIASES, STRIPE_READABLE, STRIPE_WRITABLE
from agent_token_injector.sandbox.http_server import Reply, method
from agent_token_injector.surfaces.stripe import SECRET
from agent_token_injector.surfaces.stripe_permissions import KNOWN, wanted
from agent_token_injector.surfaces.stripe_probes import READ_PROBES, WRITE_PROBES
from tests.requirements import requirement
from tests.surfaces.worlds import STRIPE_HELD, StripeWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[StripeWorld]:
    with ExitStack() as stack:
        yield StripeWorld(tmp_path, stack)


@requirement("surface.stripe.key-shape", "H7.test-by-default")
@pytest.mark.parametrize(
    "value",
    [
        "sk_test_" + "A" * 40,
        "sk_live_" + "A" * 40,
        "sk_org_" + "A" * 40,
        "rk_live_" + "A" * 40,
        "pk_test_" + "A" * 40,
        "rk_test_",
        "rk_test_" + "A" * 20 + "\n",
        " rk_test_" + "A" * 20,
        "ghs_" + "A" * 40,
        "",
    ],
)
def test_only_a_restricted_test_key_is_taken_and_a_refused_one_is_not_quoted(world: StripeWorld, value: str) -> None:
    with pytest.raises(MintRefused) as caught:
        world.surface.mint(world.order_with(SecretStr(value)))
    assert "AAAA" not in caught.value.diagnostics()
    assert world.stripe.log == ()


@requirement("H7.live-approved", "surface.stripe.key-shape")
def test_a_live_key_is_taken_only_where_the_spec_says_live_and_a_test_key_not_there(world: StripeWorld) -> None:
    live = world.stripe.dashboard_create_key(STRIPE_HELD, live=True)
    order = world.order_with(live, mode="live")
    minted = world.surface.mint(order)
    lease = world.surface.verify(minted.lease, minted.secrets, order)
    assert lease.scope["mode"] == "live"
    assert lease.scope["writes_not_verified"] is True
    assert {name for name in KNOWN if name.endswith("_write")} <= set(lease.scope["not_probed"])
    assert set(lease.scope["not_probed"]) == KNOWN - READ_PROBES.keys() - {"balance_read"}
    assert {entry.path for entry in world.stripe.log} == {"/v1/balance", *READ_PROBES.values()}
    assert not any(entry.method == "POST" for entry in world.stripe.log)
    with pytest.raises(MintRefused, match="test key"):
        world.surface.mint(world.order_with(world.stripe.dashboard_create_key(STRIPE_HELD), mode="live"))


@requirement("surface.stripe.operator-supplied")
def test_without_a_key_the_operator_is_told_where_to_make_one(world: StripeWorld) -> None:
    with pytest.raises(MintRefused) as caught:
        world.surface.mint(world.order_with(None))
    hint = caught.value.hint or ""
    assert "https://dashboard.stripe.com/test/apikeys/create?name=stripe-restricted-handoff-founders-checkout-" in hint
    assert "permissions[]=rak_checkout_session_write" in hint
    assert "permissions[]=rak_webhook_read" in hint
    assert "handoff supply SPEC --surface stripe" in hint


@requirement("surface.stripe.vocabulary")
def test_a_permission_that_stripe_does_not_have_is_refused_by_name(world: StripeWorld) -> None:
    key = world.stripe.dashboard_create_key(STRIPE_HELD)
    for permissions in ({"everything": "write"}, {"balance": "write"}, {"checkout_sessions": "admin"}):
        with pytest.raises(MintRefused, match=next(iter(permissions))):
            world.surface.mint(world.order_with(key, permissions=permissions))


@requirement("surface.stripe.vocabulary")
def test_whatever_the_policy_allows_is_in_the_vocabulary() -> None:
    assert all(f"{name}_write" in KNOWN for name in STRIPE_WRITABLE)
    assert all(f"{name}_read" in KNOWN for name in STRIPE_READABLE)
    assert all(f"{name}_read" in KNOWN or f"{name}_write" in KNOWN for name in STRIPE_ALIASES.values())
    assert READ_PROBES.keys() <= KNOWN
    assert WRITE_PROBES.keys() <= KNOWN
    assert wanted({"webhook_endpoints": "write"}).allowed == {"webhook_write", "webhook_read"}


@requirement("D5.wider-refused", "surface.stripe.negative-probes", "H1.least-privilege")
@pytest.mark.parametrize("letters", ["a", "b", "c", "def", "i", "mo", "p", "qr", "s", "t", "uvw"])
def test_any_further_permissions_that_can_be_probed_are_found_and_named_and_no_others(
    world: StripeWorld, letters: str
) -> None:
    probed = {*READ_PROBES, *WRITE_PROBES, "balance_read"}
    further = {name for name in probed if name.startswith(tuple(letters))} - {*STRIPE_HELD, "checkout_session_read"}
    assert further
    order = world.order_with(world.stripe.dashboard_create_key((*STRIPE_HELD, *further)))
    minted = world.surface.mint(order)
    with pytest.raises(ScopeTooWide) as caught:
        world.surface.verify(minted.lease, minted.secrets, order)
    assert set((caught.value.cause or "").removeprefix("it holds ").split(", ")) == further


@requirement("surface.stripe.negative-probes", "D5.wider-refused")
@pytest.mark.parametrize(
    "permission",
    [
        *("account_link_write", "application_fee_write", "billing_meter_write", "customer_session_write"),
        *("file_write", "issuing_card_write", "outbound_payment_read", "payment_method_write", "source_write"),
        *("terminal_connection_token_write", "token_write"),
    ],
)
def test_one_further_permission_is_enough_to_be_refused(world: StripeWorld, permission: str) -> None:
    order = world.order_with(world.stripe.dashboard_create_key((*STRIPE_HELD, permission)))
    minted = world.surface.mint(order)
    with pytest.raises(ScopeTooWide, match=permission):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.stripe.not-probed")
def test_what_no_probe_covers_is_listed_whether_asked_for_or_not(world: StripeWorld) -> None:
    order = world.order_with(world.stripe.dashboard_create_key((*STRIPE_HELD, "sku_write")))
    minted = world.surface.mint(order)
    scope = world.surface.verify(minted.lease, minted.secrets, order).scope
    assert scope["writes_not_verified"] is False
    assert set(scope["not_probed"]) == KNOWN - READ_PROBES.keys() - WRITE_PROBES.keys() - {"balance_read"}
    assert "sku_write" in scope["not_probed"]


@requirement("surface.stripe.not-probed")
@pytest.mark.parametrize("status", [400, 404])
def test_a_product_the_account_lacks_is_listed_as_not_probed(world: StripeWorld, status: int) -> None:
    error = {"type": "invalid_request_error", "message": "Your account is not set up to use Issuing."}
    world.stripe.hook(
        lambda request: request.path.startswith("/v1/issuing/"), before=lambda _request: Reply(status, {"error": error})
    )
    order = world.order()
    minted = world.surface.mint(order)
    scope = world.surface.verify(minted.lease, minted.secrets, order).scope
    assert {"issuing_card_read", "issuing_card_write"} <= set(scope["not_probed"])
    assert "issuing_card_read" not in scope["held"]


@requirement("surface.stripe.not-probed")
def test_a_refusal_that_names_another_permission_shows_nothing_about_the_probed_one(world: StripeWorld) -> None:
    error = {
        "type": "invalid_request_error",
        "message": "Having the 'rak_something_else_read' permission would allow it.",
    }
    world.stripe.hook(method("GET", "/v1/files"), before=lambda _request: Reply(403, {"error": error}))
    order = world.order()
    minted = world.surface.mint(order)
    assert "file_read" in world.surface.verify(minted.lease, minted.secrets, order).scope["not_probed"]


@requirement("surface.stripe.in-its-words", "D5.read-back")
@pytest.mark.parametrize(
    ("status", "body"), [(403, None), (403, {"message": "forbidden"}), (401, {"message": "log in"})]
)
def test_a_gateways_refusal_is_not_taken_for_a_permission_that_is_not_held(
    world: StripeWorld, status: int, body: object
) -> None:
    world.stripe.hook(method("GET", "/v1/charges"), before=lambda _request: Reply(status, body))
    order = world.order()
    minted = world.surface.mint(order)
    with pytest.raises(SurfaceError, match="cannot be read back"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.stripe.in-its-words", "D3.proof")
@pytest.mark.parametrize(
    "body",
    [
        None,
        {"error": "gateway session expired"},
        {"error": {"type": "invalid_request_error", "message": "You did not provide an API key."}},
        {"error": {"type": "authentication_error", "message": "Invalid API Key provided: rk_test_x"}},
    ],
)
def test_a_401_that_is_not_in_stripes_words_proves_nothing(world: StripeWorld, body: object) -> None:
    minted = world.surface.mint(world.order())
    world.stripe.hook(method("GET", "/v1/balance"), before=lambda _request: Reply(401, body))
    with pytest.raises(RevokeFailed, match="not in Stripe's words"):
        world.surface.prove_dead(minted.lease, minted.secrets)
    assert world.live() == 1


@requirement("surface.stripe.in-its-words")
def test_an_expired_key_is_dead(world: StripeWorld) -> None:
    minted = world.surface.mint(world.order())
    expired = {
        "type": "invalid_request_error",
        "code": "api_key_expired",
        "message": "Expired API Key provided: rk_test_x",
    }
    world.stripe.hook(method("GET", "/v1/balance"), before=lambda _request: Reply(401, {"error": expired}))
    assert "401" in world.surface.prove_dead(minted.lease, minted.secrets).how


@requirement("surface.stripe.positive-probes", "D5.read-back")
@pytest.mark.parametrize("missing", STRIPE_HELD)
def test_a_permission_that_was_asked_for_and_is_not_held_is_named(world: StripeWorld, missing: str) -> None:
    held = [name for name in STRIPE_HELD if name != missing]
    order = world.order_with(world.stripe.dashboard_create_key(held))
    minted = world.surface.mint(order)
    with pytest.raises(SurfaceError, match=missing):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.stripe.probes-change-nothing")
def test_probing_a_key_that_may_do_everything_changes_nothing(world: StripeWorld) -> None:
    order = world.order_with(world.stripe.dashboard_create_key(KNOWN))
    minted = world.surface.mint(order)
    with pytest.raises(ScopeTooWide):
        world.surface.verify(minted.lease, minted.secrets, order)
    assert {entry.status for entry in world.stripe.log if entry.method == "POST"} <= {400, 404}
    assert len(world.stripe.dashboard_keys()) == 1


@requirement("H7.test-by-default", "D5.read-back")
def test_a_key_that_turns_out_to_be_live_is_refused(world: StripeWorld) -> None:
    world.stripe.hook(
        method("GET", "/v1/balance"), before=lambda _request: Reply(200, {"object": "balance", "livemode": True})
    )
    order = world.order()
    minted = world.surface.mint(order)
    with pytest.raises(ScopeTooWide, match="wrong mode"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("D5.read-back")
def test_a_dead_key_is_not_verified(world: StripeWorld) -> None:
    order = world.order()
    minted = world.surface.mint(order)
    world.person_ends_it(minted)
    with pytest.raises(SurfaceError, match="is dead"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("H8.kill-switch", "surface.stripe.operator-supplied")
def test_a_key_is_alive_until_a_person_deletes_it_and_the_error_says_where(world: StripeWorld) -> None:
    minted = world.surface.mint(world.order())
    world.surface.revoke(minted.lease, minted.secrets)
    with pytest.raises(RevokeFailed) as caught:
        world.surface.prove_dead(minted.lease, minted.secrets)
    assert "https://dashboard.stripe.com/test/apikeys" in (caught.value.hint or "")
    world.person_ends_it(minted)
    assert "401" in world.surface.prove_dead(minted.lease, minted.secrets).how


@requirement("H6.no-secret-shown", "surface.stripe.no-vendor-text")
def test_what_stripe_says_about_account_and_key_is_never_passed_on(world: StripeWorld) -> None:
    order = world.order_with(world.stripe.dashboard_create_key([]))
    minted = world.surface.mint(order)
    key = minted.secrets[SECRET].get_secret_value()
    world.stripe.hook(
        method("GET", "/v1/charges"),
        after=lambda _request, reply: replace(reply, status=402),
    )
    with pytest.raises(SurfaceError) as caught:
        world.surface.verify(minted.lease, minted.secrets, order)
    said = caught.value.diagnostics()
    assert "402" in said
    assert "acct_" not in said
    assert key[-4:] not in said
