"""Stripe: a restricted key that an operator makes and we verify (ADR §3.1, §8.2; facts/surfaces.md §2.4).

No generally available API makes or deletes a key, so `mint` takes the operator's, `revoke` can only ask for a person, and
`prove_dead` says whether that person has been there. Stripe's error texts quote the account and the key's tail: none of
them is ever passed on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from pydantic import SecretStr

from agent_token_injector.clock import Clock
from agent_token_injector.errors import MintRefused, RevokeFailed, ScopeTooWide, SurfaceError
from agent_token_injector.lease import Lease, MintKind, Proof, Recovery, SurfaceFacts
from agent_token_injector.names import IdentityName
from agent_token_injector.policy import REVOCATION_PATHS
from agent_token_injector.spec import StripeRequest
from agent_token_injector.surfaces.base import Minted, MintRequest, Search
from agent_token_injector.surfaces.stripe_permissions import READ_PROBES, WRITE_PROBES, stripe_names, wanted
from agent_token_injector.transport import Http, Response, Timeout, TransportError, client

SECRET: Final = "STRIPE_RESTRICTED_KEY"  # noqa: S105  a name
_KEY: Final = re.compile(r"rk_(test|live)_[A-Za-z0-9_]{10,250}")
_PREFIX: Final = re.compile(r"(?:sk|rk|pk|whsec|mk|ek)_(?:(?:test|live|org)_)?")
_DASHBOARD: Final = "https://dashboard.stripe.com"
_PREVIEW: Final = {"Stripe-Version": "2026-10-14.preview"}
_UNKNOWN: Final = {"handoff_probe": "1"}
_FACTS: Final = SurfaceFacts(
    surface="stripe",
    kind=MintKind.OPERATOR_SUPPLIED,
    recovery=Recovery.BY_HANDLE,
    identity_prefix="stripe-restricted",
    secrets={SECRET: "STRIPE_KEY"},
    longest_lifetime=None,
    kill_latency="as fast as a person deletes the key in the Dashboard, and then seconds (9 s were measured once)",
    revoke_by_hand=REVOCATION_PATHS["stripe"],
)


class StripeSurface:
    """Restricted keys of one Stripe account, made by an operator.

    Args:
        api_url: `https://api.stripe.com`.
        clock: wall time.
    """

    def __init__(self, *, api_url: str, clock: Clock) -> None:
        self._api_url = api_url
        self._clock = clock

    @property
    def facts(self) -> SurfaceFacts:
        return _FACTS

    def supply_hint(self, identity: IdentityName, request: StripeRequest) -> str:
        """Where to make the key, with everything filled in, and how to hand it over."""
        names = sorted(stripe_names(request.permissions))
        query = "&".join((f"name={quote(str(identity))}", *(f"permissions[]=rak_{name}" for name in names)))
        place = "apikeys" if request.mode == "live" else "test/apikeys"
        return (
            f"make a restricted key at {_DASHBOARD}/{place}/create?{query} and give it to "
            "`handoff supply SPEC --surface stripe`"
        )

    def mint(self, order: MintRequest) -> Minted:
        request: StripeRequest = order.request
        try:
            permissions = wanted(request.permissions)
        except ValueError as error:
            raise MintRefused("a Stripe permission is not known", surface="stripe", cause=str(error)) from None
        hint = self.supply_hint(order.identity, request)
        if order.supplied is None:
            raise MintRefused(
                "Stripe needs a restricted key that only an operator can make",
                surface="stripe",
                cause="no key was supplied, and Stripe has no API to make one",
                hint=hint,
            )
        value = order.supplied.get_secret_value()
        problem = _shape_problem(value, request.mode)
        if problem is not None:
            raise MintRefused(
                f"the key supplied for {order.identity} is refused", surface="stripe", cause=problem, hint=hint
            )
        lease = Lease(
            surface="stripe",
            identity=str(order.identity),
            kind=_FACTS.kind,
            recovery=_FACTS.recovery,
            handle=_handle(value),
            minted_at=self._clock.now(),
            expires_at=None,
            scope={"mode": request.mode, "permissions": sorted(permissions.asked)},
            secrets=(SECRET,),
            kill_latency=_FACTS.kill_latency,
            revoke_by_hand=_FACTS.revoke_by_hand.format(identity=order.identity),
        )
        return Minted(lease, {SECRET: SecretStr(value)})

    def find(self, identity: IdentityName, minted_after: object) -> Search:  # noqa: ARG002  the protocol's
        """Nothing: this surface makes no key, so none of its making can be lost."""
        return Search()

    def verify(self, lease: Lease, secrets: Mapping[str, SecretStr], order: MintRequest) -> Lease:
        request: StripeRequest = order.request
        key = self._own(lease, secrets, SurfaceError)
        problem = _shape_problem(key.get_secret_value(), request.mode)
        if problem is not None:
            raise ScopeTooWide(f"{lease.identity} is refused", surface="stripe", cause=problem)
        permissions = wanted(request.permissions)
        with self._http() as http:
            prober = _Prober(http, key, lease.identity)
            held = prober.balance(live=request.mode == "live")
            held |= {name for name, path in READ_PROBES.items() if prober.reads(path)}
            if request.mode == "test":
                held |= {name for name, path in WRITE_PROBES.items() if prober.writes(path)}
        excess = sorted(held - permissions.allowed)
        if excess:
            raise ScopeTooWide(
                f"{lease.identity} can do more than was asked",
                surface="stripe",
                cause=f"it holds {', '.join(excess)}",
                hint="delete it in the Dashboard and " + self.supply_hint(order.identity, request),
            )
        # On a live key nothing is written, not even a request that cannot succeed.
        unprobed = permissions.unprobed | (WRITE_PROBES.keys() if request.mode == "live" else frozenset())
        missing = sorted(permissions.asked - held - unprobed)
        if missing:
            raise SurfaceError(
                f"{lease.identity} lacks what was asked",
                surface="stripe",
                cause=f"it does not hold {', '.join(missing)}",
                hint="delete it in the Dashboard and " + self.supply_hint(order.identity, request),
            )
        scope = {
            "mode": request.mode,
            "permissions": sorted(permissions.asked),
            "held": sorted(held),
            "not_probed": sorted(unprobed),
        }
        return lease.model_copy(update={"scope": scope})

    def revoke(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> None:
        """Nothing: a person must delete the key. `prove_dead` fails until one has."""

    def prove_dead(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> Proof:
        key = self._own(lease, secrets, RevokeFailed)
        with self._http() as http:
            try:
                answer = http.request("GET", "/v1/balance", headers=_as(key), idempotent=True)
            except TransportError as error:
                raise RevokeFailed(
                    f"{lease.identity} was not seen dead", surface="stripe", cause=str(error), hint="try again"
                ) from None
        if answer.status != 401:
            raise RevokeFailed(
                f"{lease.identity} is alive",
                surface="stripe",
                cause=f"GET /v1/balance answers {answer.status}; only a person can delete a key",
                hint=f"delete it at {_DASHBOARD}/{'apikeys' if lease.scope.get('mode') == 'live' else 'test/apikeys'}, "
                "then revoke again",
            )
        return Proof(
            surface="stripe", identity=lease.identity, how="GET /v1/balance answered 401", at=self._clock.now()
        )

    def _http(self) -> Http:
        return client(self._api_url, timeout=Timeout(connect=4, read=10, total=20))

    def _own(self, lease: Lease, secrets: Mapping[str, SecretStr], error: type[SurfaceError]) -> SecretStr:
        """The lease's key. Another key in its place is refused: its death would prove nothing."""
        key = secrets.get(SECRET)
        if key is None:
            raise error(
                f"the value of {lease.identity} is lost",
                surface="stripe",
                cause="without it nobody can see whether the key still works",
                hint=_FACTS.revoke_by_hand.format(identity=lease.identity),
            )
        if lease.handle is not None and _handle(key.get_secret_value()) != lease.handle:
            raise error(f"{SECRET} in the vault is not the key of {lease.identity}", surface="stripe")
        return key


class _Prober:
    """Asks Stripe what a key may do; see stripe_permissions.py for why asking changes nothing."""

    def __init__(self, http: Http, key: SecretStr, identity: str) -> None:
        self._http = http
        self._headers = _as(key)
        self._identity = identity

    def balance(self, *, live: bool) -> set[str]:
        """`balance_read` when held; whether or not, the key has authenticated, and in the right mode where that is said."""
        answer = self._ask("GET", "/v1/balance")
        if answer.status == 403:
            return set()
        found = answer.document()
        if answer.status != 200 or found is None:
            raise self._unexpected("GET /v1/balance", answer)
        if found.get("livemode") is not live:
            raise ScopeTooWide(
                f"{self._identity} is of the wrong mode",
                surface="stripe",
                cause=f"asked for {'live' if live else 'test'}; Stripe says livemode: {found.get('livemode')}",
            )
        return {"balance_read"}

    def reads(self, path: str) -> bool:
        answer = self._ask("GET", f"{path}?limit=1")
        return self._held("GET", path, answer, {200, 400})

    def writes(self, path: str) -> bool:
        if path.startswith("/v2/"):
            answer = self._ask("POST", path, json=_UNKNOWN)
            # 404: this account has no key API, so no key of it can make another.
            return answer.status != 404 and self._held("POST", path, answer, {400})
        return self._held("POST", path, self._ask("POST", path, data=_UNKNOWN), {400, 404})

    def _held(self, method: str, path: str, answer: Response, yes: set[int]) -> bool:
        if answer.status in yes:
            return True
        if answer.status == 403:
            return False
        raise self._unexpected(f"{method} {path}", answer)

    def _ask(
        self, method: str, path: str, *, json: Mapping[str, str] | None = None, data: Mapping[str, str] | None = None
    ) -> Response:
        headers = {**self._headers, **(_PREVIEW if path.startswith("/v2/") else {})}
        try:
            # A probe changes nothing however often it is sent.
            answer = self._http.request(method, path, headers=headers, json=json, data=data, idempotent=True)
        except TransportError as error:
            raise SurfaceError(f"{self._identity} cannot be read back", surface="stripe", cause=str(error)) from None
        if answer.status == 401:
            raise SurfaceError(
                f"{self._identity} is dead",
                surface="stripe",
                cause="Stripe does not accept the key (401): it was deleted, has expired, or was never one",
                hint="supply a new one",
            )
        return answer

    def _unexpected(self, what: str, answer: Response) -> SurfaceError:
        return SurfaceError(
            f"{self._identity} cannot be read back", surface="stripe", cause=f"{what} answered {answer.status}"
        )


def _shape_problem(value: str, mode: str) -> str | None:
    """Why a key is refused by its form alone, naming at most its prefix; None when it is a restricted key of `mode`."""
    match = _KEY.fullmatch(value)
    if match is not None and match[1] == mode:
        return None
    if match is not None:
        return f"it is a {match[1]} key (rk_{match[1]}_); the spec asks for {mode} mode"
    prefix = _PREFIX.match(value)
    if prefix is None:
        return "it does not look like a Stripe key; a restricted key starts with rk_test_"
    if prefix[0].startswith("sk_"):
        return f"it is a secret key ({prefix[0]}...), which can do everything; only a restricted key (rk_) is taken"
    if prefix[0].startswith("rk_"):
        return f"it begins like a restricted key ({prefix[0]}...) and is not a whole one"
    return f"it is not a restricted key ({prefix[0]}...); one starts with rk_{mode}_"


def _as(key: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.get_secret_value()}"}


def _handle(value: str) -> str:
    return "sha256:" + hashlib.sha256(value.encode()).hexdigest()
