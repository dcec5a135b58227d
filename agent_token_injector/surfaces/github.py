"""GitHub: one installation token a handoff, on one repository, for one hour at most (ADR §5; facts/surfaces.md §2.1).

A token has no name and only whoever holds it can revoke it, so a keeper mints it (keeper.py). What a token cannot
express, that `contents: write` must not reach `main`, is a ruleset's to enforce and ours to verify with the token itself.
"""

from __future__ import annotations

import hashlib
import re
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import SecretStr

from agent_token_injector.clock import Clock, iso, parse_iso
from agent_token_injector.errors import MintAmbiguous, MintRefused, RevokeFailed, SurfaceError
from agent_token_injector.lease import Lease, MintKind, Proof, Recovery, SurfaceFacts
from agent_token_injector.masking import Redactor
from agent_token_injector.names import IdentityName
from agent_token_injector.policy import REVOCATION_PATHS
from agent_token_injector.spec import GitHubRequest
from agent_token_injector.surfaces import keeper
from agent_token_injector.surfaces.base import Minted, MintRequest, Search
from agent_token_injector.surfaces.github_scope import (
    DEAD,
    HEADERS,
    LIFETIME,
    NOT_ITS_WORDS,
    SKEW,
    authorised,
    read_back,
    says_dead,
)
from agent_token_injector.surfaces.keeper_record import Record, records_of, wait_settled
from agent_token_injector.transport import Http, Refused, Timeout, TransportError, Unclear, client

SECRET: Final = "GH_HANDOFF_TOKEN"  # noqa: S105  a name
MINT_WINDOW: Final = timedelta(minutes=10)
"""A token asked for under an App JWT made at t is not minted after t + 9 min, when the JWT expires; nor does a
provisioner begin one later than that after its intent (D2)."""
_TOKEN: Final = re.compile(r"ghs_[A-Za-z0-9._-]{36,}")
_CEILING: Final = re.compile(
    # ADR §5.1, §7: "excess permissions (e.g., admin, secrets)". `members` is the organisation's, whatever its name says.
    r"administration|workflows|members|.*secret.*|organization_.*|.*_organizations"
)
_FACTS: Final = SurfaceFacts(
    surface="github",
    kind=MintKind.MINTED,
    recovery=Recovery.BY_HANDLE,
    identity_prefix="gh-token",
    secrets={SECRET: "GH_TOKEN"},
    longest_lifetime=LIFETIME,
    kill_latency="at once by GitHub's documentation, no latency is published; we wait for the 401, else within the hour",
    revoke_by_hand=REVOCATION_PATHS["github"],
)


class GitHubSurface:
    """Installation tokens of one GitHub App. No secret is in its repr.

    Args:
        api_url: `https://api.github.com`, or a GitHub Enterprise Server's API.
        app_client_id: the App's client id (or its app id).
        installation_id: of the App on the account that owns the repositories.
        private_key: the App's key, PEM.
        clock: wall time.
        keeper_dir: where keepers leave their records.
        protected_branches: those that must take changes by pull request only; the default branch is always one.
        patience: how long to wait for a keeper to finish, and for a revoked token to be refused.
    """

    def __init__(
        self,
        *,
        api_url: str,
        app_client_id: str,
        installation_id: int | str,
        private_key: SecretStr,
        clock: Clock,
        keeper_dir: Path,
        protected_branches: Sequence[str] = ("main", "staging"),
        patience: timedelta = timedelta(seconds=10),
    ) -> None:
        self._api_url = api_url
        self._client_id = app_client_id
        self._installation = f"/app/installations/{quote(str(installation_id), safe='')}"
        self._private_key = private_key
        self._clock = clock
        self._keeper_dir = keeper_dir
        self._protected = tuple(protected_branches)
        self._patience = patience
        self._kept: weakref.WeakValueDictionary[str, keeper.Kept] = weakref.WeakValueDictionary()

    @property
    def facts(self) -> SurfaceFacts:
        return _FACTS

    def supply_hint(self, identity: IdentityName, request: GitHubRequest) -> str:  # noqa: ARG002  the protocol's
        return ""

    # -- mint -----------------------------------------------------------------------------------------------------

    def mint(self, order: MintRequest) -> Minted:
        request: GitHubRequest = order.request
        owner, _, name = request.repository.partition("/")
        if request.method != "app-installation":
            raise self._refused(
                "a fine-grained PAT cannot be provisioned",
                cause="no API creates one, and this version mints installation tokens only",
                hint='leave "method" out of the spec: an installation token is narrower and shorter',
            )
        if not owner or not name or "/" in name:
            raise self._refused("the repository is not <owner>/<name>")
        now = self._clock.now()
        bearer = {**HEADERS, "Authorization": f"Bearer {self._app_jwt(now)}"}
        self._check_installation(bearer, owner)
        order.begin()
        kept = keeper.start(self._job(order, bearer, name, now), self._keeper_dir)
        if isinstance(kept, Refused):
            raise self._refused(f"GitHub minted no token for {order.identity}", cause=kept.why, hint=_hint(kept.status))
        if isinstance(kept, Unclear):
            raise MintAmbiguous(
                f"GitHub may have minted a token for {order.identity}",
                surface="github",
                live_until=now + MINT_WINDOW + LIFETIME,
                cause=kept.why,
                hint="nobody holds it; it dies within its hour",
            )
        try:
            return self._minted(order, kept, now)
        except MintRefused as error:
            if kept.undo():
                raise
            raise MintAmbiguous(
                error.what,
                surface="github",
                live_until=now + MINT_WINDOW + LIFETIME,
                cause="its revocation is not confirmed yet; its keeper goes on trying",
            ) from None
        except BaseException:
            # A KeyboardInterrupt, for one: what nobody will record must not outlive this call.
            kept.undo()
            raise

    def _minted(self, order: MintRequest, kept: keeper.Kept, now: datetime) -> Minted:
        body = kept.body
        token, granted, repositories = body.get("token"), body.get("permissions"), body.get("repositories")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._refused(
                "GitHub minted something that is not an installation token",
                cause="it does not have the form ghs_...",
            )
        try:
            expires_at = parse_iso(body["expires_at"])
            names = sorted(str(repository["full_name"]) for repository in repositories or ())
            permissions = {str(key): str(level) for key, level in (granted or {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._refused("GitHub's answer does not say what it minted") from None
        if not now < expires_at <= now + LIFETIME + SKEW:
            # What was just minted lives, and an hour at most: such an end bounds nothing, so nothing may rest on it.
            raise self._refused(
                "GitHub's answer does not say when the token ends",
                cause=f"it names {iso(expires_at)}; a token minted at {iso(now)} ends within the hour",
                hint="check this machine's clock",
            )
        handle = _handle(token)
        lease = Lease(
            surface="github",
            identity=str(order.identity),
            kind=_FACTS.kind,
            recovery=_FACTS.recovery,
            handle=handle,
            minted_at=now,
            expires_at=expires_at,
            scope={"repositories": names, "permissions": permissions},
            secrets=(SECRET,),
            kill_latency=_FACTS.kill_latency,
            revoke_by_hand=_FACTS.revoke_by_hand,
        )
        self._kept[handle] = kept
        return Minted(lease, {SECRET: SecretStr(token)}, kept.recorded)

    def _app_jwt(self, now: datetime) -> str:
        import jwt

        claims = {
            "iss": self._client_id,
            "iat": int((now - timedelta(seconds=60)).timestamp()),
            "exp": int((now + timedelta(minutes=9)).timestamp()),
        }
        try:
            return jwt.encode(claims, self._private_key.get_secret_value(), algorithm="RS256")
        except (jwt.PyJWTError, ValueError, TypeError):
            raise self._refused(
                "the GitHub App's private key is not usable",
                cause="it is not an RSA key in PEM form",
                hint="check HANDOFF_GITHUB_PRIVATE_KEY_FILE",
            ) from None

    def _check_installation(self, bearer: Mapping[str, str], owner: str) -> None:
        """Refuse an App that is installed with more than any handoff may hold (ADR §7), before anything is minted."""
        with self._http() as http:
            try:
                answer = http.request("GET", self._installation, headers=bearer, idempotent=True)
            except TransportError as error:
                raise self._refused("GitHub cannot be asked about the App's installation", cause=str(error)) from None
            found = answer.document()
            if answer.status != 200 or found is None:
                cause = http.describe("GET", self._installation, answer)
                raise self._refused("the App's installation is not readable", cause=cause, hint=_hint(answer.status))
        if found.get("suspended_at"):
            raise self._refused("the App's installation is suspended", hint="unsuspend it on GitHub, or use another")
        if found.get("repository_selection") != "selected":
            raise self._refused(
                "the App is installed on all repositories",
                cause="ADR §7: installed per repository, never organisation-wide",
                hint="on GitHub, set its repository access to selected repositories",
            )
        excess = sorted(name for name in found.get("permissions") or {} if _CEILING.fullmatch(str(name)))
        if excess:
            raise self._refused(
                f"the App's installation holds {', '.join(excess)}",
                cause="an App that can do that is never used for a handoff (ADR §7, HANDOFF-INVARIANT-1)",
                hint="take the permission off the App, and accept the change on the installation",
            )
        account = found.get("account") or {}
        if str(account.get("login", "")).lower() != owner.lower():
            raise self._refused(
                f"the App's installation is not on {owner}", hint="check HANDOFF_GITHUB_INSTALLATION_ID"
            )

    def _job(self, order: MintRequest, bearer: Mapping[str, str], name: str, now: datetime) -> keeper.Job:
        token = {**HEADERS, "Authorization": "Bearer {token}"}
        return keeper.Job(
            identity=str(order.identity),
            base_url=self._api_url,
            mint=keeper.Call(
                "POST",
                f"{self._installation}/access_tokens",
                frozenset({201}),
                headers=bearer,
                # Leaving a field out means everything the installation has.
                json={"repositories": [name], "permissions": dict(order.request.permissions)},
            ),
            undo=keeper.Call("DELETE", "/installation/token", frozenset({204, 401}), headers=token, words={401: DEAD}),
            proof=keeper.Call("GET", "/installation/repositories", frozenset({401}), headers=token, words={401: DEAD}),
            secret="token",  # noqa: S106  a field's name
            expiry="expires_at",
            started=now,
            live_until=now + MINT_WINDOW + LIFETIME,
        )

    # -- find -----------------------------------------------------------------------------------------------------

    def find(self, identity: IdentityName, minted_after: datetime) -> Search:
        """What the keepers of this host wrote down. No record here proves nothing: another host may have minted."""
        records, complete = wait_settled(self._keeper_dir, str(identity), minted_after, self._patience)
        now = self._clock.now()
        bound = minted_after + MINT_WINDOW + LIFETIME
        open_until, why, leases = now, "", []
        for record in records:
            if record.state in {"refused", "undone", "dead"} or now >= record.live_until:
                continue
            if record.state == "recorded":
                leases.append(self._lease_of(record))
            elif record.live_until > open_until:
                open_until, why = record.live_until, _why(record)
        if (not records or not complete) and now < bound:
            open_until = max(open_until, bound)
            why = why or "no readable record of its keeper is on this host"
        if open_until > now:
            return Search(tuple(leases), certain=False, why=why, live_until=open_until)
        return Search(tuple(leases))

    def _lease_of(self, record: Record) -> Lease:
        return Lease(
            surface="github",
            identity=record.identity,
            kind=_FACTS.kind,
            recovery=_FACTS.recovery,
            handle=record.handle,
            minted_at=record.started,
            expires_at=record.live_until,
            secrets=(SECRET,),
            kill_latency=_FACTS.kill_latency,
            revoke_by_hand=_FACTS.revoke_by_hand,
        )

    # -- verify ---------------------------------------------------------------------------------------------------

    def verify(self, lease: Lease, secrets: Mapping[str, SecretStr], order: MintRequest) -> Lease:
        token = self._own(lease, secrets)
        with self._http(token) as http:
            scope = read_back(http, authorised(token), lease, order.request, self._protected)
        return lease.model_copy(update={"scope": scope})

    # -- revoke ---------------------------------------------------------------------------------------------------

    def revoke(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> None:
        token = self._own(lease, secrets, error=RevokeFailed)
        with self._http(token) as http:
            try:
                answer = http.request("DELETE", "/installation/token", headers=authorised(token), idempotent=True)
            except TransportError as error:
                raise RevokeFailed(
                    f"{lease.identity} was not revoked", surface="github", cause=str(error), hint="try again"
                ) from None
            if answer.status != 204 and not says_dead(answer):
                cause = http.describe("DELETE", "/installation/token", answer)
                if answer.status == 401:
                    cause = f"DELETE /installation/token {NOT_ITS_WORDS}"
                raise RevokeFailed(f"{lease.identity} was not revoked", surface="github", cause=cause)
        kept = self._kept.pop(_handle(token.get_secret_value()), None)
        if kept is not None:
            kept.undo()  # it finds the token dead, writes that down and goes

    def prove_dead(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> Proof:
        token = self._own(lease, secrets, error=RevokeFailed)
        deadline = time.monotonic() + self._patience.total_seconds()
        pause, said = 0.05, ""
        with self._http(token) as http:
            while True:
                try:
                    answer = http.request(
                        "GET", "/installation/repositories", headers=authorised(token), idempotent=True
                    )
                    if says_dead(answer):
                        return self._proof(lease, token)
                    said = f"GET /installation/repositories still answers {answer.status}"
                    if answer.status == 401:
                        said = f"GET /installation/repositories {NOT_ITS_WORDS}"
                except TransportError as error:
                    said = str(error)
                if time.monotonic() >= deadline:
                    raise RevokeFailed(
                        f"{lease.identity} was not seen dead",
                        surface="github",
                        cause=said,
                        hint=f"it is alive {lease.describe_lifetime()} at most; try again",
                    )
                time.sleep(pause)
                pause = min(pause * 2, 1.0)

    def _proof(self, lease: Lease, token: SecretStr) -> Proof:
        now, handle = self._clock.now(), _handle(token.get_secret_value())
        records, _ = records_of(self._keeper_dir, lease.identity, lease.minted_at - SKEW)
        for record in records:
            if record.handle == handle and record.state == "recorded":
                try:
                    record.changed("dead", now).write(self._keeper_dir)
                except OSError:
                    continue  # It stays "recorded": a later search finds it, asks again, and is told 401 again.
        return Proof(
            surface="github",
            identity=lease.identity,
            how="GET /installation/repositories answered 401",
            at=now,
        )

    # -- helpers --------------------------------------------------------------------------------------------------

    def _http(self, token: SecretStr | None = None) -> Http:
        redact = Redactor([token]).text if token is not None else None
        return client(self._api_url, timeout=Timeout(connect=4, read=10, total=20), redact=redact)

    def _own(
        self, lease: Lease, secrets: Mapping[str, SecretStr], error: type[SurfaceError] = SurfaceError
    ) -> SecretStr:
        """The lease's token. Another token in its place is refused: its death would prove nothing."""
        token = secrets.get(SECRET)
        if token is None:
            raise error(
                f"the value of {lease.identity} is lost",
                surface="github",
                cause="only whoever holds an installation token can revoke it",
                hint=f"it is alive {lease.describe_lifetime()}; an owner can suspend the App, for all handoffs at once",
            )
        if lease.handle is not None and _handle(token.get_secret_value()) != lease.handle:
            raise error(f"{SECRET} in the vault is not the token of {lease.identity}", surface="github")
        return token

    def _refused(self, what: str, *, cause: str | None = None, hint: str | None = None) -> MintRefused:
        return MintRefused(what, surface="github", cause=cause, hint=hint)


def _handle(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def _why(record: Record) -> str:
    if record.state in {"minting", "held"} and record.keeper_lives():
        return f"its keeper (pid {record.pid}) is still at work ({record.state})"
    known = {
        "minting": "its keeper was killed while GitHub was asked for it",
        "held": "its keeper was killed while it held it",
        "ambiguous": "GitHub gave no usable answer when it was minted",
        "unknown": "its keeper could not revoke it",
    }
    return f"{known.get(record.state, 'its keeper left an unknown state')} ({iso(record.at)})"


def _hint(status: int) -> str | None:
    return {
        401: "check the App's client id and private key, and this machine's clock",
        403: "check that the App's installation is active",
        404: "check HANDOFF_GITHUB_INSTALLATION_ID: the App is not installed there",
        422: "ask for a repository and permissions that the App's installation has",
    }.get(status)
