"""GitHub, emulated: one App, one installation of it, and the repositories it is installed on.

It enforces what a handoff relies on: the App's signed JWT, the installation's ceiling (a token is never wider), each
token's repository, permissions, one-hour expiry and revocation, and branch rulesets. An unknown token is refused.
Answers use GitHub's words and fit its OpenAPI description.

Attributes of `SandboxGitHub` may be changed while it runs, to play an App that is installed wrongly
(`permissions`, `repository_selection`, `suspended`) or a GitHub that grants more than it was asked (`over_grant`).
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from pydantic import SecretStr

from agent_token_injector.clock import Clock, iso
from agent_token_injector.sandbox import github_shapes as shapes
from agent_token_injector.sandbox.github_repository import (
    HIDDEN,
    LEVELS,
    Problem,
    RepositoryAccess,
    Token,
    error,
    invalid,
    json_body,
    rank,
)
from agent_token_injector.sandbox.github_shapes import Repository, Ruleset
from agent_token_injector.sandbox.http_server import Emulator, Reply, Request, digest

LIFETIME: Final = timedelta(hours=1)


class SandboxGitHub(Emulator):
    """GitHub on the loopback for one App. `private_key` is the App's key, made once a process and kept in memory.

    Args:
        clock: decides expiry.
        owner: the organisation that installed the App.
        repositories: the names the App is installed on, each with `main` protected by a ruleset.
        permissions: what the App was installed with, the ceiling of every token.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        owner: str = "raxx",
        repositories: Iterable[str] = ("TradeMasterAPI",),
        permissions: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(clock)
        self.owner = owner
        self.app_id = 1_234_567
        self.client_id = "Iv23liHandoffSandbox"
        self.installation_id = 87_654_321
        self.permissions: dict[str, str] = dict(
            permissions or {"contents": "write", "pull_requests": "write", "issues": "write", "metadata": "read"}
        )
        self.repository_selection = "selected"
        self.suspended = False
        self.over_grant: dict[str, str] = {}
        """Permissions added to every minted token, asked for or not."""
        self.repositories: dict[str, Repository] = {}
        for name in repositories:
            self.add_repository(name)
        self.private_key, self._public_key = _make_key()
        self._tokens: dict[str, Token] = {}

    def add_repository(self, name: str, *, protected: Iterable[str] = ("main",)) -> Repository:
        """Install the App on one more repository, with the branches `main` and `staging`."""
        repo = Repository(1000 + len(self.repositories), self.owner, name, branches={"main": {}})
        self.repositories[repo.full_name.lower()] = repo
        for branch in protected:
            self.protect(repo.full_name, branch)
        return repo

    def protect(self, repository: str, branch: str, *, bypass: str = "never", approvals: int = 1) -> Ruleset:
        """Put a ruleset on a branch that demands pull requests, with that many approving reviews."""
        repo = self.repositories[repository.lower()]
        repo.branches.setdefault(branch, {})
        found = Ruleset(9000 + len(repo.rulesets) + repo.id, (branch,), bypass, approvals=approvals)
        repo.rulesets.append(found)
        return found

    def unprotect(self, repository: str) -> None:
        """Take every ruleset off a repository."""
        self.repositories[repository.lower()].rulesets.clear()

    def live_tokens(self) -> tuple[Token, ...]:
        with self._lock:
            now = self.clock.now()
            return tuple(token for token in self._tokens.values() if token.expires_at > now and not self.suspended)

    def live_credentials(self) -> tuple[str, ...]:
        return tuple(sorted(token.digest for token in self.live_tokens()))

    def answer(self, request: Request) -> Reply:  # noqa: PLR0911  one return a route
        parts = request.path.strip("/").split("/")
        try:
            match request.method, parts:
                case "GET", ["app", "installations", number]:
                    return self._installation(request, number)
                case "POST", ["app", "installations", number, "access_tokens"]:
                    return self._mint(request, number)
                case "GET", ["installation", "repositories"]:
                    return self._list_repositories(self._token(request))
                case "DELETE", ["installation", "token"]:
                    del self._tokens[self._token(request).digest]
                    return Reply(204)
                case _, ["repos", owner, name, *rest]:
                    return self._repository(request, f"{owner}/{name}", rest)
                case _:
                    return error(404, HIDDEN)
        except Problem as problem:
            return problem.reply

    # -- the App ------------------------------------------------------------------------------------------------

    def _check_app(self, request: Request, number: str) -> None:
        import jwt

        bearer = request.bearer()
        if bearer is None:
            raise Problem(error(401, "A JSON web token could not be decoded"))
        try:
            claims = jwt.decode(
                bearer,
                self._public_key,
                algorithms=["RS256"],
                options={"verify_exp": False, "verify_iat": False, "require": ["exp", "iat", "iss"]},
            )
            issued, expires = int(claims["iat"]), int(claims["exp"])
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise Problem(error(401, "A JSON web token could not be decoded")) from None
        now = self.clock.now().timestamp()
        if expires <= now:
            raise Problem(error(401, "'Expiration time' claim ('exp') must be in the future"))
        if expires > now + 600:
            raise Problem(error(401, "'Expiration time' claim ('exp') is too far in the future"))
        if issued > now:
            raise Problem(error(401, "'Issued at' claim ('iat') must be in the past"))
        if str(claims["iss"]) not in {self.client_id, str(self.app_id)}:
            raise Problem(error(401, "A JSON web token could not be decoded"))
        if number != str(self.installation_id):
            raise Problem(error(404, HIDDEN))

    def _installation(self, request: Request, number: str) -> Reply:
        self._check_app(request, number)
        return Reply(
            200,
            shapes.installation(
                self.installation_id,
                app_id=self.app_id,
                client_id=self.client_id,
                owner=self.owner,
                permissions=self.permissions,
                selection=self.repository_selection,
                suspended_at=self.clock.now() if self.suspended else None,
            ),
        )

    def _mint(self, request: Request, number: str) -> Reply:
        self._check_app(request, number)
        if self.suspended:
            raise Problem(error(403, "This installation has been suspended"))
        asked = json_body(request)
        names = asked.get("repositories")
        repositories = (
            [self._installed(str(name)) for name in names] if names is not None else list(self.repositories.values())
        )
        permissions = dict(asked.get("permissions") or self.permissions)
        for name, level in permissions.items():
            if level not in LEVELS or rank(level) > rank(self.permissions.get(name)):
                raise Problem(invalid("The permissions requested are not granted to this installation."))
        granted = {**permissions, "metadata": "read", **self.over_grant}
        value = self._new_token_value()
        expires_at = (self.clock.now() + LIFETIME).replace(microsecond=0)
        token = Token(digest(value), frozenset(repo.full_name for repo in repositories), granted, expires_at)
        self._tokens[token.digest] = token
        return Reply(
            201,
            {
                "token": value,
                "expires_at": iso(expires_at),
                "permissions": granted,
                "repository_selection": "all" if names is None else "selected",
                "repositories": [shapes.repository(repo) for repo in repositories],
            },
        )

    def _installed(self, name: str) -> Repository:
        found = self.repositories.get(f"{self.owner}/{name}".lower())
        if found is None:
            raise Problem(
                invalid(
                    "There is at least one repository that does not exist or is not accessible to the parent installation."
                )
            )
        return found

    def _new_token_value(self) -> str:
        # The format since 2026-04: ghs_<app id>_<JWT>, about 520 characters with `.`, `_` and `-`.
        header, claims, signature = (secrets.token_urlsafe(size) for size in (27, 85, 256))
        return f"ghs_{self.app_id}_eyJ{header}-.eyJ{claims}.{signature}"

    # -- a token ------------------------------------------------------------------------------------------------

    def _token(self, request: Request) -> Token:
        value = request.bearer()
        if value is None:
            raise Problem(error(401, "Requires authentication"))
        token = self._tokens.get(digest(value))
        if token is None or token.expires_at <= self.clock.now():
            raise Problem(error(401, "Bad credentials"))
        if self.suspended:
            raise Problem(error(403, "This installation has been suspended"))
        return token

    def _list_repositories(self, token: Token) -> Reply:
        found = [repo for repo in self.repositories.values() if repo.full_name in token.repositories]
        return Reply(
            200,
            {
                "total_count": len(found),
                "repository_selection": self.repository_selection,
                "repositories": [shapes.repository(repo) for repo in found],
            },
        )

    def _repository(self, request: Request, full_name: str, rest: list[str]) -> Reply:
        token = self._token(request)
        repo = self.repositories.get(full_name.lower())
        if repo is None or repo.full_name not in token.repositories:
            return error(404, HIDDEN)
        return RepositoryAccess(request, repo, token).answer(rest)


@functools.cache
def _make_key() -> tuple[SecretStr, Any]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return SecretStr(pem.decode("ascii")), key.public_key()
