"""What a GitHub token can really do: read back from GitHub, with the token itself, and held against the order (D5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from pydantic import SecretStr

from agent_token_injector.errors import ScopeTooWide, SurfaceError
from agent_token_injector.lease import Lease
from agent_token_injector.spec import GitHubRequest
from agent_token_injector.transport import Http, Response, TransportError

HEADERS: Final = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
LIFETIME: Final = timedelta(hours=1)
SKEW: Final = timedelta(minutes=5)
"""How far GitHub's clock and ours may be apart."""
DEAD: Final = {"message": "Bad credentials"}
"""What GitHub's own 401 says of a token that is revoked, expired or was never one."""
NOT_ITS_WORDS: Final = "answered 401, but not in GitHub's words: something in between may have"


def authorised(token: SecretStr) -> dict[str, str]:
    """The headers of a request made with a token."""
    return {**HEADERS, "Authorization": f"Bearer {token.get_secret_value()}"}


def says_dead(answer: Response) -> bool:
    """Whether it is GitHub itself that does not take the token. A gateway's own 401 says nothing about it."""
    return answer.status == 401 and (answer.document() or {}).get("message") == DEAD["message"]


def read_back(
    http: Http, headers: Mapping[str, str], lease: Lease, request: GitHubRequest, protected: Sequence[str]
) -> dict[str, Any]:
    """The token's scope, when it is what was asked. Raises ScopeTooWide, and SurfaceError when it cannot be read.

    GitHub tells a token's permissions only in the answer to its minting, so these come from the lease; its repositories
    and the branch backstop are asked for with the token.
    """
    granted, asked = _plain(lease.scope["permissions"]), _plain(request.permissions)
    if granted != asked:
        raise _too_wide(lease, f"asked for {_listed(asked)}; GitHub granted {_listed(granted)}")
    if lease.expires_at is None or not lease.minted_at < lease.expires_at <= lease.minted_at + LIFETIME + SKEW:
        raise _too_wide(lease, f"it is not known to end within an hour: {lease.describe_lifetime()}")
    reader = _Reader(http, headers)
    found = reader.get("/installation/repositories?per_page=2")
    repositories = [item for item in found.get("repositories") or () if isinstance(item, dict)]
    names = [str(item.get("full_name")) for item in repositories]
    wanted = [request.repository.lower()]
    if found.get("total_count") != 1 or [name.lower() for name in names] != wanted:
        raise _too_wide(lease, f"asked for {request.repository}; the token reaches {', '.join(names) or 'others'}")
    if [str(name).lower() for name in lease.scope["repositories"]] != wanted:
        raise _too_wide(lease, f"asked for {request.repository}; GitHub minted it for others as well")
    backstop: dict[str, str] = {}
    # Without contents: write a token can neither push nor merge, whatever the branch.
    if granted.get("contents") in {"write", "admin"}:
        branches = (*protected, str(repositories[0].get("default_branch") or "main"))
        for branch in dict.fromkeys(branches):
            backstop.update(_backstop(reader, lease, names[0], branch))
    return {"repository": names[0], "permissions": granted, "protected_branches": backstop}


def _backstop(reader: _Reader, lease: Lease, repository: str, branch: str) -> dict[str, str]:
    """See that a branch takes reviewed pull requests only, and from this token too (ADR §5.1, §5.3).

    Nobody can approve a pull request of their own at GitHub, so one approval that is demanded keeps the agent from
    merging; a rule that demands none lets it merge what it opened itself.
    """
    base, quoted = f"/repos/{quote(repository)}", quote(branch, safe="")
    if not reader.exists(f"{base}/branches/{quoted}"):
        return {}
    rules = reader.get_list(f"{base}/rules/branches/{quoted}?per_page=100")
    demands = [rule for rule in rules if rule.get("type") == "pull_request"]
    if not demands:
        raise _too_wide(
            lease,
            f"{repository} lets it push to {branch}: no ruleset there demands a pull request",
            hint=f"add a ruleset for {branch} that requires a pull request, with no bypass for the App",
        )
    if not any(_approvals(rule) >= 1 for rule in demands):
        raise _too_wide(
            lease,
            f"{repository} lets it merge its own pull request into {branch}: no ruleset there demands an approval",
            hint=f"set the required approvals of the ruleset for {branch} to 1 or more",
        )
    for number in sorted({str(rule.get("ruleset_id")) for rule in rules}):
        bypass = reader.get(f"{base}/rulesets/{quote(number)}").get("current_user_can_bypass")
        if bypass != "never":
            raise _too_wide(
                lease,
                f"it can go around ruleset {number} on {repository}'s {branch} (bypass: {bypass or 'not said'})",
                hint="take the App off the ruleset's bypass list",
            )
    return {branch: "approved pull requests only, no bypass"}


def _approvals(rule: Mapping[str, Any]) -> int:
    """How many approvals a pull_request rule demands; none where it does not say."""
    parameters = rule.get("parameters")
    count = parameters.get("required_approving_review_count") if isinstance(parameters, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


class _Reader:
    """Reads GitHub with a token; an answer that is not the expected one is a SurfaceError."""

    def __init__(self, http: Http, headers: Mapping[str, str]) -> None:
        self._http = http
        self._headers = headers

    def exists(self, path: str) -> bool:
        answer = self._ask(path)
        if answer.status not in {200, 404}:
            raise self._unexpected(path, answer)
        return answer.status == 200

    def get(self, path: str) -> dict[str, Any]:
        answer = self._ask(path)
        found = answer.document()
        if answer.status != 200 or found is None:
            raise self._unexpected(path, answer)
        return found

    def get_list(self, path: str) -> list[dict[str, Any]]:
        answer = self._ask(path)
        try:
            found = answer.json() if answer.status == 200 else None
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._unexpected(path, answer)
        return found

    def _ask(self, path: str) -> Response:
        try:
            return self._http.request("GET", path, headers=self._headers, idempotent=True)
        except TransportError as error:
            raise SurfaceError("GitHub cannot be read back", surface="github", cause=str(error)) from None

    def _unexpected(self, path: str, answer: Response) -> SurfaceError:
        return SurfaceError(
            "GitHub cannot be read back", surface="github", cause=self._http.describe("GET", path, answer)
        )


def _plain(permissions: Mapping[str, str]) -> dict[str, str]:
    # GitHub adds metadata: read to every token, asked for or not.
    return {name: level for name, level in permissions.items() if (name, level) != ("metadata", "read")}


def _listed(permissions: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {level}" for name, level in sorted(permissions.items())) or "nothing"


def _too_wide(lease: Lease, cause: str, *, hint: str | None = None) -> ScopeTooWide:
    return ScopeTooWide(f"{lease.identity} can do more than was asked", surface="github", cause=cause, hint=hint)
