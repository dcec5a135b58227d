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
from agent_token_injector.surfaces.stripe_permissions import KNOWN, stripe_names, wanted
from agent_token_injector.surfaces.stripe_probes import NOT_ITS_WORDS, Prober, authorised, says_dead
from agent_token_injector.transport import Http, Timeout, TransportError, client

SECRET: Final = "STRIPE_RESTRICTED_KEY"  # noqa: S105  a name
_KEY: Final = re.compile(r"rk_(test|live)_[A-Za-z0-9_]{10,250}")
_PREFIX: Final = re.compile(r"(?:sk|rk|pk|whsec|mk|ek)_(?:(?:test|live|org)_)?")
_DASHBOARD: Final = "https://dashboard.stripe.com"
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

    What a verified lease's scope says: `permissions` were asked for; `held` were seen, whether asked for or implied;
    `not_probed` are all others of Stripe's vocabulary about which nothing is known, asked for or not: the key may hold
    them. A key seen to hold anything further is refused.

    On a live key no write probe runs, so a live key may write what nobody asked for, refunds and payouts included,
    and is accepted all the same: an operator approved it by signature (ADR §8.2). Then `writes_not_verified` is true
    and every permission to write is in `not_probed`. The read probes all run.

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
            prober = Prober(http, key, lease.identity)
            prober.probe(live=request.mode == "live")
        not_probed = KNOWN - prober.verified
        excess = sorted(prober.held - permissions.allowed)
        if excess:
            raise ScopeTooWide(
                f"{lease.identity} can do more than was asked",
                surface="stripe",
                cause=f"it holds {', '.join(excess)}",
                hint="delete it in the Dashboard and " + self.supply_hint(order.identity, request),
            )
        missing = sorted(permissions.asked - prober.held - not_probed)
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
            "held": sorted(prober.held),
            "not_probed": sorted(not_probed),
            "writes_not_verified": request.mode == "live",
        }
        return lease.model_copy(update={"scope": scope})

    def revoke(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> None:
        """Nothing: a person must delete the key. `prove_dead` fails until one has."""

    def prove_dead(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> Proof:
        key = self._own(lease, secrets, RevokeFailed)
        with self._http() as http:
            try:
                answer = http.request("GET", "/v1/balance", headers=authorised(key), idempotent=True)
            except TransportError as error:
                raise RevokeFailed(
                    f"{lease.identity} was not seen dead", surface="stripe", cause=str(error), hint="try again"
                ) from None
        if answer.status == 401 and not says_dead(answer):
            raise RevokeFailed(
                f"{lease.identity} was not seen dead",
                surface="stripe",
                cause=f"GET /v1/balance {NOT_ITS_WORDS}",
                hint="try again from where Stripe itself answers",
            )
        if answer.status != 401:
            raise RevokeFailed(
                f"{lease.identity} is alive",
                surface="stripe",
                cause=f"GET /v1/balance answers {answer.status}; only a person can delete a key",
                hint=f"delete it at {_DASHBOARD}/{'apikeys' if lease.scope.get('mode') == 'live' else 'test/apikeys'}, "
                "then revoke again",
            )
        return Proof(
            surface="stripe",
            identity=lease.identity,
            how="GET /v1/balance answered 401",
            at=self._clock.now(),
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


def _handle(value: str) -> str:
    return "sha256:" + hashlib.sha256(value.encode()).hexdigest()
