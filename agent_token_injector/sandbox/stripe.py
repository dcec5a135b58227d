"""Stripe, emulated: one account with restricted keys, and the endpoints on which a key's permissions show.

It enforces each key's permissions, mode and deletion, answers in Stripe's words and shapes (its refusals quote the
account and the key's tail, as the real ones do), and refuses an unknown key. Keys are made and deleted in process only,
by the `dashboard_*` methods, as a person does at Stripe: nothing that a key's holder could send makes or shows a key.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from pydantic import SecretStr

from agent_token_injector.clock import Clock
from agent_token_injector.sandbox.http_server import Emulator, Reply, Request, digest

ACCOUNT: Final = "acct_1HandoffSandbox00"
_ALPHABET: Final = string.ascii_letters + string.digits
_SHARED: Final = ("metadata", "expand")

_MONEY: Final = ("amount", "currency", "financial_account")
_COLLECTIONS: Final = MappingProxyType(
    # path -> the permission's resource, the object's name and id prefix, the parameters a new one demands and may have
    {
        "/v1/account_links": ("account_link", "account_link", "al", ("account", "type"), ()),
        "/v1/apple_pay/domains": ("apple_pay_domain", "apple_pay_domain", "apwc", ("domain_name",), ()),
        "/v1/application_fees": ("application_fee", "application_fee", "fee", ("charge",), ()),
        "/v1/billing/meter_events": (
            *("billing_meter_event", "billing.meter_event", "mev", ("event_name", "payload")),
            ("identifier", "timestamp"),
        ),
        "/v1/billing/meters": (
            *("billing_meter", "billing.meter", "mtr", ("default_aggregation", "display_name", "event_name")),
            ("customer_mapping", "value_settings"),
        ),
        "/v1/capital/financing_offers": (
            *("capital_for_platforms_financing_offer", "capital.financing_offer", "financingoffer", ("account",), ()),
        ),
        "/v1/capital/financing_transactions": (
            "capital_for_platforms_financing_transaction",
            *("capital.financing_transaction", "cptxn", ("account",), ()),
        ),
        "/v1/confirmation_tokens": ("confirmation_token", "confirmation_token", "ctoken", ("payment_method",), ()),
        "/v1/customer_sessions": ("customer_session", "customer_session", "cuss", ("components", "customer"), ()),
        "/v1/entitlements/features": ("entitlement", "entitlements.feature", "feat", ("lookup_key", "name"), ()),
        "/v1/file_links": ("file", "file_link", "link", ("file",), ("expires_at",)),
        "/v1/issuing/authorizations": ("issuing_authorization", "issuing.authorization", "iauth", ("card",), ()),
        "/v1/issuing/cardholders": ("issuing_cardholder", "issuing.cardholder", "ich", ("billing", "name"), ("type",)),
        "/v1/issuing/cards": ("issuing_card", "issuing.card", "ic", ("currency", "type"), ("cardholder", "status")),
        "/v1/issuing/disputes": ("issuing_dispute", "issuing.dispute", "idp", ("transaction",), ("amount",)),
        "/v1/issuing/tokens": ("issuing_token", "issuing.token", "intok", ("card",), ("status",)),
        "/v1/issuing/transactions": ("issuing_transaction", "issuing.transaction", "ipi", ("card",), ()),
        "/v1/mandates": ("mandate", "mandate", "mandate", ("payment_method",), ()),
        "/v1/payment_method_configurations": (
            *("payment_method_configurations", "payment_method_configuration", "pmc", (), ("name", "parent")),
        ),
        "/v1/payment_method_domains": (
            *("payment_method_domain", "payment_method_domain", "pmd", ("domain_name",), ("enabled",)),
        ),
        "/v1/payment_methods": ("payment_method", "payment_method", "pm", ("type",), ("billing_details", "customer")),
        "/v1/payment_records": ("payment_records", "payment_record", "pr", ("amount_requested",), ()),
        "/v1/payment_records/report_payment": (
            "payment_records",
            *("payment_record", "pr", ("amount_requested", "initiated_at", "payment_method_details"), ()),
        ),
        "/v1/reporting/report_runs": (
            *("report_runs_and_report_types", "reporting.report_run", "frr", ("report_type",), ("parameters",)),
        ),
        "/v1/reviews": ("review", "review", "prv", ("charge",), ()),
        "/v1/sources": ("source", "source", "src", ("type",), ("amount", "currency", "owner")),
        "/v1/tax/calculations": (
            *("tax_calculations_and_transactions", "tax.calculation", "taxcalc", ("currency", "line_items")),
            ("customer", "customer_details"),
        ),
        "/v1/tax/registrations": (
            *("tax_settings", "tax.registration", "taxreg", ("active_from", "country", "country_options"), ()),
        ),
        "/v1/tax/transactions": (
            *("tax_calculations_and_transactions", "tax.transaction", "tax", ("calculation", "reference"), ()),
        ),
        "/v1/terminal/configurations": ("terminal_configuration", "terminal.configuration", "tmc", (), ("name",)),
        "/v1/terminal/connection_tokens": (
            *("terminal_connection_token", "terminal.connection_token", "pst", (), ("location",)),
        ),
        "/v1/terminal/locations": ("terminal_location", "terminal.location", "tml", ("address", "display_name"), ()),
        "/v1/terminal/readers": (
            *("terminal_reader", "terminal.reader", "tmr", ("registration_code",), ("label", "location")),
        ),
        "/v1/tokens": ("token", "token", "tok", ("card",), ("customer",)),
        "/v1/treasury/financial_accounts": (
            *("financial_account", "treasury.financial_account", "fa", ("supported_currencies",), ("features",)),
        ),
        "/v1/treasury/inbound_transfers": ("inbound_transfer", "treasury.inbound_transfer", "ibt", _MONEY, ()),
        "/v1/treasury/outbound_payments": ("outbound_payment", "treasury.outbound_payment", "obp", _MONEY, ()),
        "/v1/treasury/outbound_transfers": ("outbound_transfer", "treasury.outbound_transfer", "obt", _MONEY, ()),
        "/v1/treasury/received_credits": ("received_credit", "treasury.received_credit", "rc", _MONEY, ()),
        "/v1/treasury/received_debits": ("received_debit", "treasury.received_debit", "rd", _MONEY, ()),
        "/v1/treasury/transactions": ("treasury_transaction", "treasury.transaction", "trxn", _MONEY, ()),
        "/v1/accounts": ("connected_account", "account", "acct", ("type",), ()),
        "/v1/balance_transactions": ("balance_transaction_source", "balance_transaction", "txn", ("source",), ()),
        "/v1/billing_portal/configurations": ("customer_portal", "configuration", "bpc", ("features",), ()),
        "/v1/billing_portal/sessions": ("customer_portal", "session", "bps", ("customer",), ("return_url",)),
        "/v1/charges": ("charge", "charge", "ch", ("amount", "currency"), ("source", "customer")),
        "/v1/checkout/sessions": (
            *("checkout_session", "checkout.session", "cs", ("mode", "success_url")),
            ("cancel_url", "line_items", "customer_email", "client_reference_id"),
        ),
        "/v1/coupons": ("coupon", "coupon", "co", ("duration",), ("percent_off", "amount_off", "currency")),
        "/v1/credit_notes": ("credit_note", "credit_note", "cn", ("invoice",), ("amount",)),
        "/v1/customers": ("customer", "customer", "cus", (), ("email", "name", "description")),
        "/v1/disputes": ("dispute", "dispute", "dp", ("charge",), ()),
        "/v1/events": ("event", "event", "evt", ("type",), ()),
        "/v1/files": ("file", "file", "file", ("purpose",), ()),
        "/v1/invoices": ("invoice", "invoice", "in", (), ("customer", "description")),
        "/v1/payment_intents": ("payment_intent", "payment_intent", "pi", ("amount", "currency"), ("customer",)),
        "/v1/payment_links": ("payment_links", "payment_link", "plink", ("line_items",), ()),
        "/v1/payouts": ("payout", "payout", "po", ("amount", "currency"), ()),
        "/v1/prices": ("plan", "price", "price", ("currency",), ("unit_amount", "product", "recurring")),
        "/v1/products": ("product", "product", "prod", ("name",), ("description", "active")),
        "/v1/promotion_codes": ("promotion_code", "promotion_code", "promo", ("coupon",), ("code",)),
        "/v1/quotes": ("quote", "quote", "qt", (), ("customer", "line_items")),
        "/v1/refunds": ("charge", "refund", "re", ("charge",), ("amount", "reason")),
        "/v1/setup_intents": ("setup_intent", "setup_intent", "seti", (), ("customer",)),
        "/v1/shipping_rates": ("shipping_rate", "shipping_rate", "shr", ("display_name",), ("fixed_amount", "type")),
        "/v1/subscriptions": ("subscription", "subscription", "sub", ("customer",), ("items",)),
        "/v1/tax_rates": ("tax_rate", "tax_rate", "txr", ("display_name", "inclusive", "percentage"), ()),
        "/v1/test_helpers/test_clocks": ("billing_clock", "test_helpers.test_clock", "clock", ("frozen_time",), ()),
        "/v1/topups": ("top_up", "topup", "tu", ("amount", "currency"), ()),
        "/v1/transfers": ("transfer", "transfer", "tr", ("currency", "destination"), ("amount",)),
        "/v1/webhook_endpoints": ("webhook", "webhook_endpoint", "we", ("enabled_events", "url"), ("description",)),
    }
)
_NO_LIST: Final = frozenset(
    # What can be made, or read one by one, and not be listed.
    [
        *("/v1/account_links", "/v1/billing/meter_events", "/v1/billing_portal/sessions", "/v1/confirmation_tokens"),
        *("/v1/customer_sessions", "/v1/mandates", "/v1/payment_records", "/v1/payment_records/report_payment"),
        *("/v1/sources", "/v1/tax/calculations", "/v1/tax/transactions", "/v1/terminal/connection_tokens"),
        "/v1/tokens",
    ]
)
_LIST_DEMANDS: Final = MappingProxyType(
    {
        "/v1/issuing/tokens": "card",
        **dict.fromkeys(
            (path for path in _COLLECTIONS if path.startswith("/v1/treasury/") and _COLLECTIONS[path][3] == _MONEY),
            "financial_account",
        ),
    }
)
_ACTIONS: Final = frozenset(
    [
        ("/v1/application_fees", "refunds"),
        ("/v1/capital/financing_offers", "mark_delivered"),
        ("/v1/reviews", "approve"),
    ]
)
"""What is done to one object by its path (`POST <collection>/<id>/<action>`)."""


@dataclass(frozen=True, slots=True)
class RestrictedKey:
    """A key as the dashboard lists it, without its value."""

    digest: str
    tail: str
    name: str
    permissions: frozenset[str]
    """Stripe's names, such as `checkout_session_write`."""
    livemode: bool
    created_at: datetime

    def may(self, resource: str, level: str) -> bool:
        """Whether it holds the permission; who may write may read."""
        held = {f"{resource}_{level}", f"{resource}_write"}
        return bool(held & self.permissions)


class SandboxStripe(Emulator):
    """Stripe on the loopback."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._keys: dict[str, RestrictedKey] = {}
        self._objects: dict[str, list[dict[str, Any]]] = {}

    # -- what a person does in the Dashboard ----------------------------------------------------------------------

    def dashboard_create_key(self, permissions: Iterable[str], *, name: str = "", live: bool = False) -> SecretStr:
        """Make a restricted key with Stripe's permission names (`rak_` in front is fine), and show it, once."""
        mode = "live" if live else "test"
        value = f"rk_{mode}_51" + "".join(secrets.choice(_ALPHABET) for _ in range(97))
        held = frozenset(permission.removeprefix("rak_") for permission in permissions)
        key = RestrictedKey(digest(value), value[-4:], name, held, live, self.clock.now())
        with self._lock:
            self._keys[key.digest] = key
        return SecretStr(value)

    def dashboard_delete_key(self, key: SecretStr | str) -> bool:
        """Delete a key, given by value or by digest. Returns whether it was there."""
        text = key.get_secret_value() if isinstance(key, SecretStr) else key
        with self._lock:
            return self._keys.pop(text if text.startswith("sha256:") else digest(text), None) is not None

    def dashboard_keys(self) -> tuple[RestrictedKey, ...]:
        """Every key there is, without its value."""
        with self._lock:
            return tuple(self._keys.values())

    def live_credentials(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(self._keys))

    # -- the API --------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Reply:  # noqa: PLR0911  one return a route
        value = _credential(request)
        key = self._keys.get(digest(value)) if value else None
        if key is None:
            return _unauthorised(value)
        if request.path == "/v1/balance" and request.method == "GET":
            return self._balance(key)
        if request.path == "/v1/apps/secrets":
            return self._app_secrets(request, key)
        if request.path == "/v2/iam/api_keys" and request.method == "POST":
            # Whoever may, is told that the request is wrong: no key is made over HTTP.
            return _missing("type") if key.may("api_key", "write") else _forbidden(key, "api_key_write")
        if request.path in _COLLECTIONS:
            return self._collection(request, key)
        parent, _, name = request.path.rpartition("/")
        if parent in _COLLECTIONS:
            return self._one(request, key, parent, name)
        collection, _, one = parent.rpartition("/")
        if request.method == "POST" and (collection, name) in _ACTIONS:
            return self._one(request, key, collection, one)
        return _unrecognised(request)

    def _balance(self, key: RestrictedKey) -> Reply:
        if not key.may("balance", "read"):
            return _forbidden(key, "balance_read")
        nothing = [{"amount": 0, "currency": "usd", "source_types": {"card": 0}}]
        return Reply(200, {"object": "balance", "available": nothing, "pending": nothing, "livemode": key.livemode})

    def _app_secrets(self, request: Request, key: RestrictedKey) -> Reply:
        level = "read" if request.method == "GET" else "write"
        if not key.may("secret", level):
            return _forbidden(key, f"secret_{level}")
        return _missing("scope[type]")

    def _collection(self, request: Request, key: RestrictedKey) -> Reply:
        resource, kind, prefix, demanded, optional = _COLLECTIONS[request.path]
        level = "read" if request.method == "GET" else "write"
        if level == "read" and request.path in _NO_LIST:
            return _unrecognised(request)
        if not key.may(resource, level):
            return _forbidden(key, f"{resource}_{level}")
        found = self._objects.setdefault(request.path, [])
        demanded_to_list = _LIST_DEMANDS.get(request.path)
        if level == "read" and demanded_to_list is not None and not request.query.get(demanded_to_list):
            return _missing(demanded_to_list)
        if level == "read":
            mine = [item for item in found if item["livemode"] is key.livemode]
            limit = int(request.query.get("limit", "10")) if request.query.get("limit", "10").isdigit() else 10
            return Reply(
                200, {"object": "list", "data": mine[:limit], "has_more": len(mine) > limit, "url": request.path}
            )
        given = {re.sub(r"\[.*", "", name): value for name, value in request.form().items()}
        problem = _parameters(given, demanded, (*demanded, *optional, *_SHARED))
        if problem is not None:
            return problem
        item = {
            "id": f"{prefix}_{'live' if key.livemode else 'test'}_{secrets.token_hex(8)}",
            "object": kind,
            "created": int(self.clock.now().timestamp()),
            "livemode": key.livemode,
            **{name: value for name, value in given.items() if name in (*demanded, *optional)},
        }
        if kind == "checkout.session":
            item["url"] = f"https://checkout.stripe.com/c/pay/{item['id']}"
        found.insert(0, item)
        return Reply(200, item)

    def _one(self, request: Request, key: RestrictedKey, collection: str, name: str) -> Reply:
        resource, kind, _, demanded, optional = _COLLECTIONS[collection]
        level = "read" if request.method == "GET" else "write"
        if not key.may(resource, level):
            return _forbidden(key, f"{resource}_{level}")
        for item in self._objects.get(collection, []):
            if item["id"] == name and item["livemode"] is key.livemode:
                if level == "read":
                    return Reply(200, item)
                problem = _parameters(request.form(), (), (*demanded, *optional, *_SHARED))
                if problem is None:
                    item.update(request.form())
                return problem or Reply(200, item)
        return _error(404, f"No such {kind}: '{name}'", code="resource_missing", param="id")


def _credential(request: Request) -> str | None:
    """The key: a bearer token, or the user of basic authentication."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return request.bearer()
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _parameters(given: dict[str, str], demanded: tuple[str, ...], known: tuple[str, ...]) -> Reply | None:
    for name in given:
        if name not in known:
            return _error(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
    for name in demanded:
        if not given.get(name):
            return _missing(name)
    return None


def _unrecognised(request: Request) -> Reply:
    return _error(404, f"Unrecognized request URL ({request.method}: {request.path}).")


def _missing(name: str) -> Reply:
    return _error(400, f"Missing required param: {name}.", code="parameter_missing", param=name)


def _unauthorised(value: str | None) -> Reply:
    if value is None:
        return _error(
            401, "You did not provide an API key. You need to provide your API key in the Authorization header."
        )
    return _error(401, f"Invalid API Key provided: {value[:8]}{'*' * 20}{value[-4:]}")


def _forbidden(key: RestrictedKey, permission: str) -> Reply:
    shown = f"rk_{'live' if key.livemode else 'test'}_{'*' * 20}{key.tail}"
    return _error(
        403,
        f"The provided key '{shown}' does not have the required permissions for this endpoint on account '{ACCOUNT}'. "
        f"Having the 'rak_{permission}' permission would allow this request to continue.",
        code="more_permissions_required",
    )


def _error(
    status: int, message: str, *, code: str | None = None, param: str | None = None, kind: str = "invalid_request_error"
) -> Reply:
    body: dict[str, Any] = {"type": kind, "message": message}
    if code is not None:
        body["code"] = code
        body["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
    if param is not None:
        body["param"] = param
    return Reply(status, {"error": body})
