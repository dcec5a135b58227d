"""How each of Stripe's permissions is asked for without changing anything (facts/surfaces.md §2.4).

Stripe lets nobody read a restricted key's permissions, so they are probed. One to read is held when a list answers, or an
object that does not exist is looked for in vain; one to write, when a request that cannot succeed is refused for what it
says (400, 404) and not for who says it (403). Every write probe carries a parameter that does not exist, and goes to an
endpoint that demands another or to an object that does not exist: it changes nothing even on a key that may do it.

Which endpoint needs which permission is nowhere published. Stripe's 403 names the permission that it misses; where that is
another one, and where an account lacks the product that a probe asks about, the probe has shown nothing and says so.

Without a probe: previews (billing intents, profiles and settings, rate cards, provisioning, payout intents, imports),
what left the API (orders, SKUs, usage records), what shows in no request of its own (issuing_*, adjustment_read), and what
only answers a publishable key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.errors import ScopeTooWide, SurfaceError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.transport import Http, Response

READ_PROBES: Final[Mapping[str, str]] = MappingProxyType(
    # permission -> a list that needs it, or an object that does not exist
    {
        "apple_pay_domain_read": "/v1/apple_pay/domains",
        "application_fee_read": "/v1/application_fees",
        "balance_transaction_source_read": "/v1/balance_transactions",
        "billing_clock_read": "/v1/test_helpers/test_clocks",
        "billing_meter_read": "/v1/billing/meters",
        "capital_for_platforms_financing_offer_read": "/v1/capital/financing_offers",
        "capital_for_platforms_financing_transaction_read": "/v1/capital/financing_transactions",
        "charge_read": "/v1/charges",
        "checkout_session_read": "/v1/checkout/sessions",
        "confirmation_token_read": "/v1/confirmation_tokens/ctoken_handoff_probe",
        "connected_account_read": "/v1/accounts",
        "coupon_read": "/v1/coupons",
        "credit_note_read": "/v1/credit_notes",
        "customer_portal_read": "/v1/billing_portal/configurations",
        "customer_read": "/v1/customers",
        "dispute_read": "/v1/disputes",
        "entitlement_read": "/v1/entitlements/features",
        "event_read": "/v1/events",
        "file_read": "/v1/files",
        "financial_account_read": "/v1/treasury/financial_accounts",
        "inbound_transfer_read": "/v1/treasury/inbound_transfers",
        "invoice_read": "/v1/invoices",
        "issuing_authorization_read": "/v1/issuing/authorizations",
        "issuing_card_read": "/v1/issuing/cards",
        "issuing_cardholder_read": "/v1/issuing/cardholders",
        "issuing_dispute_read": "/v1/issuing/disputes",
        "issuing_token_read": "/v1/issuing/tokens",
        "issuing_transaction_read": "/v1/issuing/transactions",
        "mandate_read": "/v1/mandates/mandate_handoff_probe",
        "outbound_payment_read": "/v1/treasury/outbound_payments",
        "outbound_transfer_read": "/v1/treasury/outbound_transfers",
        "payment_intent_read": "/v1/payment_intents",
        "payment_links_read": "/v1/payment_links",
        "payment_method_configurations_read": "/v1/payment_method_configurations",
        "payment_method_domain_read": "/v1/payment_method_domains",
        "payment_method_read": "/v1/payment_methods",
        "payment_records_read": "/v1/payment_records/pr_handoff_probe",
        "payout_read": "/v1/payouts",
        "plan_read": "/v1/prices",
        "product_read": "/v1/products",
        "promotion_code_read": "/v1/promotion_codes",
        "quote_read": "/v1/quotes",
        "received_credit_read": "/v1/treasury/received_credits",
        "received_debit_read": "/v1/treasury/received_debits",
        "report_runs_and_report_types_read": "/v1/reporting/report_runs",
        "review_read": "/v1/reviews",
        "secret_read": "/v1/apps/secrets",
        "setup_intent_read": "/v1/setup_intents",
        "shipping_rate_read": "/v1/shipping_rates",
        "source_read": "/v1/sources/src_handoff_probe",
        "subscription_read": "/v1/subscriptions",
        "tax_calculations_and_transactions_read": "/v1/tax/transactions/tax_handoff_probe",
        "tax_rate_read": "/v1/tax_rates",
        "tax_settings_read": "/v1/tax/registrations",
        "terminal_configuration_read": "/v1/terminal/configurations",
        "terminal_location_read": "/v1/terminal/locations",
        "terminal_reader_read": "/v1/terminal/readers",
        "token_read": "/v1/tokens/tok_handoff_probe",
        "top_up_read": "/v1/topups",
        "transfer_read": "/v1/transfers",
        "treasury_transaction_read": "/v1/treasury/transactions",
        "webhook_read": "/v1/webhook_endpoints",
    }
)

WRITE_PROBES: Final[Mapping[str, str]] = MappingProxyType(
    # permission -> an endpoint that demands a parameter we do not send, or an object that does not exist
    {
        "account_link_write": "/v1/account_links",
        "api_key_write": "/v2/iam/api_keys",
        "apple_pay_domain_write": "/v1/apple_pay/domains",
        "application_fee_write": "/v1/application_fees/fee_handoff_probe/refunds",
        "billing_clock_write": "/v1/test_helpers/test_clocks",
        "billing_meter_event_write": "/v1/billing/meter_events",
        "billing_meter_write": "/v1/billing/meters",
        "capital_for_platforms_financing_offer_write": (
            "/v1/capital/financing_offers/financingoffer_handoff_probe/mark_delivered"
        ),
        "charge_write": "/v1/refunds",
        "checkout_session_write": "/v1/checkout/sessions",
        "coupon_write": "/v1/coupons/handoff_probe",
        "credit_note_write": "/v1/credit_notes",
        "customer_portal_write": "/v1/billing_portal/sessions",
        "customer_session_write": "/v1/customer_sessions",
        "customer_write": "/v1/customers/cus_handoff_probe",
        "dispute_write": "/v1/disputes/dp_handoff_probe",
        "file_write": "/v1/file_links",
        "invoice_write": "/v1/invoices/in_handoff_probe",
        "issuing_authorization_write": "/v1/issuing/authorizations/iauth_handoff_probe",
        "issuing_card_write": "/v1/issuing/cards",
        "issuing_cardholder_write": "/v1/issuing/cardholders",
        "issuing_dispute_write": "/v1/issuing/disputes/idp_handoff_probe",
        "issuing_token_write": "/v1/issuing/tokens/intok_handoff_probe",
        "issuing_transaction_write": "/v1/issuing/transactions/ipi_handoff_probe",
        "payment_intent_write": "/v1/payment_intents",
        "payment_links_write": "/v1/payment_links",
        "payment_method_configurations_write": "/v1/payment_method_configurations/pmc_handoff_probe",
        "payment_method_domain_write": "/v1/payment_method_domains",
        "payment_method_write": "/v1/payment_methods/pm_handoff_probe",
        "payment_records_write": "/v1/payment_records/report_payment",
        "payout_write": "/v1/payouts",
        "plan_write": "/v1/prices",
        "product_write": "/v1/products",
        "promotion_code_write": "/v1/promotion_codes",
        "quote_write": "/v1/quotes/qt_handoff_probe",
        "report_runs_and_report_types_write": "/v1/reporting/report_runs",
        "review_write": "/v1/reviews/prv_handoff_probe/approve",
        "secret_write": "/v1/apps/secrets",
        "setup_intent_write": "/v1/setup_intents/seti_handoff_probe",
        "shipping_rate_write": "/v1/shipping_rates",
        "source_write": "/v1/sources/src_handoff_probe",
        "subscription_write": "/v1/subscriptions",
        "tax_calculations_and_transactions_write": "/v1/tax/calculations",
        "tax_rate_write": "/v1/tax_rates",
        "tax_settings_write": "/v1/tax/registrations",
        "terminal_configuration_write": "/v1/terminal/configurations/tmc_handoff_probe",
        "terminal_connection_token_write": "/v1/terminal/connection_tokens",
        "terminal_location_write": "/v1/terminal/locations/tml_handoff_probe",
        "terminal_reader_write": "/v1/terminal/readers/tmr_handoff_probe",
        "token_write": "/v1/tokens",
        "top_up_write": "/v1/topups",
        "transfer_write": "/v1/transfers",
        "webhook_write": "/v1/webhook_endpoints",
    }
)
_NOT_OF_EVERY_ACCOUNT: Final = (
    *("/v1/account_links", "/v1/apple_pay/", "/v1/application_fees", "/v1/capital/", "/v1/entitlements/"),
    *("/v1/issuing/", "/v1/payment_records/", "/v1/sources", "/v1/tax/", "/v1/terminal/", "/v1/test_helpers/"),
    "/v1/treasury/",
)
"""Products an account may lack: then Stripe refuses every request for it (400 or 404, naming no parameter and no object)."""
_UNKNOWN: Final = {"handoff_probe": "1"}
_AS_WELL: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    # It demands no parameter, so it is told of a place that does not exist.
    {"/v1/terminal/connection_tokens": {"location": "tml_handoff_probe"}}
)
_PREVIEW: Final = {"Stripe-Version": "2026-10-14.preview"}
_NAMED: Final = re.compile(r"\brak_([a-z0-9_]+)")
_DEAD_CODE: Final = "api_key_expired"
_DEAD_WORDS: Final = "Invalid API Key provided"
NOT_ITS_WORDS: Final = "answered 401, but not in Stripe's words: something in between may have"


def authorised(key: SecretStr) -> dict[str, str]:
    """The headers of a request made with a key."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"}


def says_dead(answer: Response) -> bool:
    """Whether it is Stripe itself that does not take the key. A gateway's own 401 says nothing about it."""
    error = _error_of(answer)
    return (
        answer.status == 401
        and error.get("type") == "invalid_request_error"
        and (error.get("code") == _DEAD_CODE or str(error.get("message")).startswith(_DEAD_WORDS))
    )


class Prober:
    """Asks Stripe what a key may do. `held` are permissions seen, `verified` those of which it is known either way."""

    def __init__(self, http: Http, key: SecretStr, identity: str) -> None:
        self.held: set[str] = set()
        self.verified: set[str] = set()
        self._http = http
        self._headers = authorised(key)
        self._identity = identity

    def probe(self, *, live: bool) -> None:
        """Send every read probe, and on a test key every write probe. Raises ScopeTooWide, SurfaceError.

        On a live key nothing is written, not even a request that cannot succeed.
        """
        self._balance(live=live)
        for name, path in READ_PROBES.items():
            self._note(name, f"GET {path}", self._ask("GET", f"{path}?limit=1"))
        if live:
            return
        for name, path in WRITE_PROBES.items():
            if path.startswith("/v2/"):
                self._note(name, f"POST {path}", self._ask("POST", path, json=_UNKNOWN))
            else:
                data = {**_UNKNOWN, **_AS_WELL.get(path, {})}
                self._note(name, f"POST {path}", self._ask("POST", path, data=data))

    def _balance(self, *, live: bool) -> None:
        """`balance_read`; whether or not, the key has authenticated, and in the right mode where that is said."""
        answer = self._ask("GET", "/v1/balance")
        found = answer.document()
        if answer.status == 200 and found is not None and found.get("livemode") is not live:
            raise ScopeTooWide(
                f"{self._identity} is of the wrong mode",
                surface="stripe",
                cause=f"asked for {'live' if live else 'test'}; Stripe says livemode: {found.get('livemode')}",
            )
        if answer.status not in {200, 403} or found is None:
            raise self._unexpected("GET /v1/balance", answer)
        self._note("balance_read", "GET /v1/balance", answer)

    def _note(self, name: str, what: str, answer: Response) -> None:
        held = self._verdict(name, what, answer)
        if held is not None:
            self.verified.add(name)
        if held:
            self.held.add(name)

    def _verdict(self, name: str, what: str, answer: Response) -> bool | None:
        """Whether a permission is held; None where the answer does not tell. Raises SurfaceError."""
        method, _, path = what.partition(" ")
        error = _error_of(answer)
        if answer.status == 200 and method == "GET":
            return True
        if not error:
            raise self._unexpected(what, answer)
        if answer.status == 403:
            named = _NAMED.findall(str(error.get("message")))
            return None if named and name not in named else False
        if path.startswith("/v2/") and answer.status == 404:
            return False  # This account has no key API, so no key of it can make another.
        if answer.status in {400, 404}:
            if error.get("code") or error.get("param"):
                return True
            if path.startswith(_NOT_OF_EVERY_ACCOUNT):
                return None
            if answer.status == 400:
                return True
        raise self._unexpected(what, answer)

    def _ask(
        self, method: str, path: str, *, json: Mapping[str, str] | None = None, data: Mapping[str, str] | None = None
    ) -> Response:
        from agent_token_injector.transport import TransportError

        headers = {**self._headers, **(_PREVIEW if path.startswith("/v2/") else {})}
        try:
            # A probe changes nothing however often it is sent.
            answer = self._http.request(method, path, headers=headers, json=json, data=data, idempotent=True)
        except TransportError as error:
            raise SurfaceError(f"{self._identity} cannot be read back", surface="stripe", cause=str(error)) from None
        if says_dead(answer):
            raise SurfaceError(
                f"{self._identity} is dead",
                surface="stripe",
                cause="Stripe does not accept the key (401): it was deleted, has expired, or was never one",
                hint="supply a new one",
            )
        return answer

    def _unexpected(self, what: str, answer: Response) -> SurfaceError:
        cause = f"{what} answered {answer.status}" if answer.status != 401 else f"{what} {NOT_ITS_WORDS}"
        return SurfaceError(f"{self._identity} cannot be read back", surface="stripe", cause=cause)


def _error_of(answer: Response) -> Mapping[str, Any]:
    """The `error` of Stripe's answer; empty when it has none. Its texts quote account and key: for us only."""
    found = (answer.document() or {}).get("error")
    return found if isinstance(found, dict) else {}
