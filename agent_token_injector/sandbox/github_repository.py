"""What one installation token does in one repository of the emulated GitHub, within its permissions and the rulesets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from agent_token_injector.sandbox import github_shapes as shapes
from agent_token_injector.sandbox.github_shapes import PullRequest, Repository, Ruleset
from agent_token_injector.sandbox.http_server import Reply, Request

LEVELS: Final = ("read", "write", "admin")
HIDDEN: Final = "Not Found"
NOT_ALLOWED: Final = "Resource not accessible by integration"


@dataclass(frozen=True, slots=True)
class Token:
    """A minted installation token, without its value."""

    digest: str
    repositories: frozenset[str]
    """Full names."""
    permissions: Mapping[str, str]
    expires_at: datetime


class Problem(Exception):
    """An answer that ends a request wherever it is raised."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class RepositoryAccess:
    """What one token does in one repository it reaches."""

    def __init__(self, request: Request, repo: Repository, token: Token) -> None:
        self.request = request
        self.repo = repo
        self.token = token
        self.author = "handoff-sandbox[bot]"

    def answer(self, rest: list[str]) -> Reply:  # noqa: C901, PLR0911  one return a route
        match self.request.method, rest:
            case "GET", []:
                return Reply(200, shapes.repository(self.repo))
            case "GET", ["rules", "branches", *branch]:
                return Reply(200, shapes.rules(self.repo, "/".join(branch)))
            case "GET", ["rulesets", number]:
                return self.ruleset(number)
            case "GET", ["branches", *branch] if branch:
                return self.branch("/".join(branch))
            case "POST", ["git", "refs"]:
                return self.create_branch()
            case "GET" | "PUT", ["contents", *path] if path:
                return self.contents("/".join(path))
            case "GET", ["pulls"]:
                return self.list_pulls()
            case "POST", ["pulls"]:
                return self.create_pull()
            case "GET", ["pulls", number]:
                return self.one_pull(number)
            case "PUT", ["pulls", number, "merge"]:
                return self.merge(number)
            case "GET" | "POST", ["issues", number, "comments"]:
                return self.comments(number)
            case _:
                # Everything else of a repository (settings, secrets, workflows, ...) is beyond any handoff's token.
                return error(403, NOT_ALLOWED)

    def need(self, level: str, *permissions: str) -> None:
        if not any(rank(self.token.permissions.get(name)) >= rank(level) for name in permissions):
            raise Problem(error(403, NOT_ALLOWED))

    def ruleset(self, number: str) -> Reply:
        for found in self.repo.rulesets:
            if str(found.id) == number:
                return Reply(200, shapes.ruleset(self.repo, found))
        return error(404, HIDDEN)

    def branch(self, name: str) -> Reply:
        self.need("read", "contents")
        if name not in self.repo.branches:
            return error(404, "Branch not found")
        return Reply(200, shapes.branch(self.repo, name))

    def create_branch(self) -> Reply:
        self.need("write", "contents")
        body = json_body(self.request)
        name = str(body.get("ref", "")).removeprefix("refs/heads/")
        if not name or name in self.repo.branches:
            return invalid("Reference already exists" if name else "Reference name is required")
        source = next((b for b in self.repo.branches if shapes.commit_sha(self.repo, b) == body.get("sha")), None)
        if source is None:
            return invalid("Object does not exist")
        self.repo.branches[name] = dict(self.repo.branches[source])
        sha = shapes.commit_sha(self.repo, name)
        return Reply(201, {"ref": f"refs/heads/{name}", "object": {"type": "commit", "sha": sha}})

    def contents(self, path: str) -> Reply:
        if self.request.method == "GET":
            self.need("read", "contents")
            branch = self.request.query.get("ref", self.repo.default_branch)
            content = self.repo.branches.get(branch, {}).get(path)
            if content is None:
                return error(404, HIDDEN)
            return Reply(200, {"path": path, "type": "file", "encoding": "base64", "content": content})
        self.need("write", "contents")
        if path.startswith(".github/workflows/"):
            self.need("write", "workflows")
        body = json_body(self.request)
        branch = str(body.get("branch") or self.repo.default_branch)
        if branch not in self.repo.branches:
            return error(404, f"Branch {branch} not found")
        self._not_protected(branch)
        if not isinstance(body.get("content"), str) or not body.get("message"):
            return invalid("Invalid request: message and content are required")
        new = path not in self.repo.branches[branch]
        self.repo.branches[branch][path] = body["content"]
        sha = shapes.commit_sha(self.repo, branch)
        return Reply(201 if new else 200, {"content": {"path": path}, "commit": {"sha": sha}})

    def list_pulls(self) -> Reply:
        self.need("read", "pull_requests")
        state = self.request.query.get("state", "open")
        found = [pull for pull in self.repo.pulls if state in ("all", pull.state)]
        return Reply(200, [shapes.pull_request(self.repo, pull) for pull in found])

    def create_pull(self) -> Reply:
        self.need("write", "pull_requests")
        body = json_body(self.request)
        head, base = str(body.get("head", "")), str(body.get("base", ""))
        for name, what in ((head, "head"), (base, "base")):
            if name.removeprefix(f"{self.repo.owner}:") not in self.repo.branches:
                return invalid("Validation Failed", {"resource": "PullRequest", "field": what, "code": "invalid"})
        if not body.get("title"):
            return invalid("Validation Failed", {"resource": "PullRequest", "field": "title", "code": "missing_field"})
        number = len(self.repo.pulls) + 1
        head = head.removeprefix(f"{self.repo.owner}:")
        pull = PullRequest(number, str(body["title"]), str(body.get("body") or ""), head, base, self.author)
        self.repo.pulls.append(pull)
        return Reply(201, shapes.pull_request(self.repo, pull))

    def one_pull(self, number: str) -> Reply:
        self.need("read", "pull_requests")
        return self._with_pull(number, lambda pull: Reply(200, shapes.pull_request(self.repo, pull)))

    def merge(self, number: str) -> Reply:
        self.need("write", "contents")

        def done(pull: PullRequest) -> Reply:
            # Nobody reviews here, and nobody approves their own: a pull request never has an approval.
            for found in self._rulesets_of(pull.base):
                if found.approvals > 0:
                    why = f"At least {found.approvals} approving review is required by reviewers with write access."
                    raise Problem(error(405, why))
            self.repo.branches[pull.base].update(self.repo.branches[pull.head])
            pull.state = "merged"
            sha = shapes.commit_sha(self.repo, pull.base)
            return Reply(200, {"merged": True, "sha": sha, "message": "Pull Request successfully merged"})

        return self._with_pull(number, done)

    def comments(self, number: str) -> Reply:
        # GitHub takes either permission for the comments of an issue and of a pull request.
        level = "write" if self.request.method == "POST" else "read"
        self.need(level, "issues", "pull_requests")
        if not number.isdigit() or int(number) > max(len(self.repo.pulls), 1):
            return error(404, HIDDEN)
        found = self.repo.comments.setdefault(int(number), [])
        if level == "read":
            shown = [
                shapes.comment(self.repo, int(number), at, text, self.author) for at, text in enumerate(found, start=1)
            ]
            return Reply(200, shown)
        text = json_body(self.request).get("body")
        if not isinstance(text, str) or not text:
            return invalid("Validation Failed", {"resource": "IssueComment", "field": "body", "code": "missing_field"})
        found.append(text)
        return Reply(201, shapes.comment(self.repo, int(number), len(found), text, self.author))

    def _with_pull(self, number: str, then: Callable[[PullRequest], Reply]) -> Reply:
        for pull in self.repo.pulls:
            if str(pull.number) == number:
                return then(pull)
        return error(404, HIDDEN)

    def _not_protected(self, branch: str) -> None:
        if self._rulesets_of(branch):
            raise Problem(error(409, "Repository rule violations found"))

    def _rulesets_of(self, branch: str) -> list[Ruleset]:
        """Those that demand a pull request there, and that our App cannot go around."""
        return [
            found
            for found in self.repo.rulesets
            if branch in found.branches and "pull_request" in found.rules and found.bypass == "never"
        ]


def rank(level: str | None) -> int:
    return LEVELS.index(level) + 1 if level in LEVELS else 0


def json_body(request: Request) -> dict[str, Any]:
    try:
        found = request.json()
    except ValueError:
        raise Problem(error(400, "Problems parsing JSON")) from None
    if found is not None and not isinstance(found, dict):
        raise Problem(error(400, "Body should be a JSON object"))
    return found or {}


def error(status: int, message: str) -> Reply:
    return Reply(status, {"message": message, "documentation_url": shapes.DOCS, "status": str(status)})


def invalid(message: str, *errors: Mapping[str, str]) -> Reply:
    body: dict[str, Any] = {"message": message, "documentation_url": shapes.DOCS}
    if errors:
        body["errors"] = [dict(error) for error in errors]
    return Reply(422, body)
