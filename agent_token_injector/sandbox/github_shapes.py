"""The bodies of GitHub's REST API as the emulator answers them, complete by GitHub's own OpenAPI description.

Only what an answer must hold by that description is in it; values that nothing of ours reads are constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from agent_token_injector.clock import iso

API: Final = "https://api.github.com"
DOCS: Final = "https://docs.github.com/rest"
_CREATED: Final = "2026-01-01T00:00:00Z"

_REPOSITORY_URLS: Final = {
    "archive_url": "/{archive_format}{/ref}",
    "assignees_url": "/assignees{/user}",
    "blobs_url": "/git/blobs{/sha}",
    "branches_url": "/branches{/branch}",
    "collaborators_url": "/collaborators{/collaborator}",
    "comments_url": "/comments{/number}",
    "commits_url": "/commits{/sha}",
    "compare_url": "/compare/{base}...{head}",
    "contents_url": "/contents/{+path}",
    "contributors_url": "/contributors",
    "deployments_url": "/deployments",
    "downloads_url": "/downloads",
    "events_url": "/events",
    "forks_url": "/forks",
    "git_commits_url": "/git/commits{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "hooks_url": "/hooks",
    "issue_comment_url": "/issues/comments{/number}",
    "issue_events_url": "/issues/events{/number}",
    "issues_url": "/issues{/number}",
    "keys_url": "/keys{/key_id}",
    "labels_url": "/labels{/name}",
    "languages_url": "/languages",
    "merges_url": "/merges",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "pulls_url": "/pulls{/number}",
    "releases_url": "/releases{/id}",
    "stargazers_url": "/stargazers",
    "statuses_url": "/statuses/{sha}",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "tags_url": "/tags",
    "teams_url": "/teams",
    "trees_url": "/git/trees{/sha}",
}
_COUNTS: Final = (
    "forks",
    "forks_count",
    "open_issues",
    "open_issues_count",
    "size",
    "stargazers_count",
    "watchers",
    "watchers_count",
)


@dataclass(eq=False)
class Ruleset:
    """A branch ruleset: the branches it covers, and whether our App may go around it."""

    id: int
    branches: tuple[str, ...]
    bypass: str = "never"
    """`current_user_can_bypass`: never, always, pull_requests_only or exempt."""
    rules: tuple[str, ...] = ("pull_request", "non_fast_forward", "deletion")
    approvals: int = 1
    """How many approving reviews a pull request needs (`required_approving_review_count`, 0 to 10)."""


@dataclass(eq=False)
class PullRequest:
    """One pull request."""

    number: int
    title: str
    body: str
    head: str
    base: str
    author: str
    state: str = "open"


@dataclass(eq=False)
class Repository:
    """One repository: its branches with their files, its rulesets, pull requests and comments."""

    id: int
    owner: str
    name: str
    default_branch: str = "main"
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    """Branch -> path -> content, base64 as the API carries it."""
    rulesets: list[Ruleset] = field(default_factory=list)
    pulls: list[PullRequest] = field(default_factory=list)
    comments: dict[int, list[str]] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


def node(kind: str, number: int) -> str:
    return f"{kind}_{hashlib.sha256(f'{kind}{number}'.encode()).hexdigest()[:16]}"


def user(login: str, *, kind: str = "Organization") -> dict[str, Any]:
    base = f"{API}/users/{login}"
    return {
        "login": login,
        "id": int(hashlib.sha256(login.encode()).hexdigest()[:7], 16),
        "node_id": node("U", len(login)),
        "avatar_url": f"https://avatars.githubusercontent.com/{login}",
        "gravatar_id": "",
        "url": base,
        "html_url": f"https://github.com/{login}",
        "followers_url": f"{base}/followers",
        "following_url": base + "/following{/other_user}",
        "gists_url": base + "/gists{/gist_id}",
        "starred_url": base + "/starred{/owner}{/repo}",
        "subscriptions_url": f"{base}/subscriptions",
        "organizations_url": f"{base}/orgs",
        "repos_url": f"{base}/repos",
        "events_url": base + "/events{/privacy}",
        "received_events_url": f"{base}/received_events",
        "type": kind,
        "site_admin": False,
    }


def repository(repo: Repository) -> dict[str, Any]:
    base = f"{API}/repos/{repo.full_name}"
    return {
        "id": repo.id,
        "node_id": node("R", repo.id),
        "name": repo.name,
        "full_name": repo.full_name,
        "owner": user(repo.owner),
        "private": True,
        "html_url": f"https://github.com/{repo.full_name}",
        "description": None,
        "fork": False,
        "url": base,
        **{name: base + suffix for name, suffix in _REPOSITORY_URLS.items()},
        "git_url": f"git://github.com/{repo.full_name}.git",
        "ssh_url": f"git@github.com:{repo.full_name}.git",
        "clone_url": f"https://github.com/{repo.full_name}.git",
        "svn_url": f"https://github.com/{repo.full_name}",
        "mirror_url": None,
        "homepage": None,
        "language": None,
        "license": None,
        "default_branch": repo.default_branch,
        **dict.fromkeys(_COUNTS, 0),
        "has_issues": True,
        "has_projects": False,
        "has_wiki": False,
        "has_pages": False,
        "has_downloads": False,
        "archived": False,
        "disabled": False,
        "pushed_at": _CREATED,
        "created_at": _CREATED,
        "updated_at": _CREATED,
    }


def installation(
    number: int,
    *,
    app_id: int,
    client_id: str,
    owner: str,
    permissions: Mapping[str, str],
    selection: str,
    suspended_at: datetime | None,
) -> dict[str, Any]:
    return {
        "id": number,
        "account": user(owner),
        "access_tokens_url": f"{API}/app/installations/{number}/access_tokens",
        "repositories_url": f"{API}/installation/repositories",
        "html_url": f"https://github.com/organizations/{owner}/settings/installations/{number}",
        "app_id": app_id,
        "client_id": client_id,
        "app_slug": "handoff-sandbox",
        "target_id": user(owner)["id"],
        "target_type": "Organization",
        "permissions": dict(permissions),
        "events": [],
        "single_file_name": None,
        "repository_selection": selection,
        "created_at": _CREATED,
        "updated_at": _CREATED,
        "suspended_at": None if suspended_at is None else iso(suspended_at),
        "suspended_by": None if suspended_at is None else user(owner),
    }


def rules(repo: Repository, branch: str) -> list[dict[str, Any]]:
    return [
        {
            "type": kind,
            "ruleset_source_type": "Repository",
            "ruleset_source": repo.full_name,
            "ruleset_id": ruleset.id,
            **_parameters(kind, ruleset),
        }
        for ruleset in repo.rulesets
        if branch in ruleset.branches
        for kind in ruleset.rules
    ]


def ruleset(repo: Repository, found: Ruleset) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": "handoff backstop",
        "target": "branch",
        "source_type": "Repository",
        "source": repo.full_name,
        "enforcement": "active",
        "conditions": {"ref_name": {"include": [f"refs/heads/{name}" for name in found.branches], "exclude": []}},
        "rules": [{"type": kind, **_parameters(kind, found)} for kind in found.rules],
        "current_user_can_bypass": found.bypass,
        "created_at": _CREATED,
        "updated_at": _CREATED,
        "node_id": node("RRS", found.id),
        "_links": {"self": {"href": f"{API}/repos/{repo.full_name}/rulesets/{found.id}"}},
    }


def _parameters(kind: str, ruleset: Ruleset) -> dict[str, Any]:
    if kind != "pull_request":
        return {}
    return {
        "parameters": {
            "dismiss_stale_reviews_on_push": True,
            "require_code_owner_review": False,
            "require_last_push_approval": ruleset.approvals > 0,
            "required_approving_review_count": ruleset.approvals,
            "required_review_thread_resolution": False,
        }
    }


def commit_sha(repo: Repository, branch: str) -> str:
    content = repr((repo.full_name, sorted(repo.branches.get(branch, {}).items())))
    return hashlib.sha256(content.encode()).hexdigest()[:40]


def branch(repo: Repository, name: str) -> dict[str, Any]:
    base = f"{API}/repos/{repo.full_name}"
    sha = commit_sha(repo, name)
    person = {"name": repo.owner, "email": "nobody@example.com", "date": _CREATED}
    return {
        "name": name,
        "commit": {
            "sha": sha,
            "node_id": node("C", int(sha[:8], 16)),
            "commit": {
                "author": person,
                "committer": person,
                "message": "a commit",
                "tree": {"sha": sha, "url": f"{base}/git/trees/{sha}"},
                "url": f"{base}/git/commits/{sha}",
                "comment_count": 0,
            },
            "url": f"{base}/commits/{sha}",
            "html_url": f"https://github.com/{repo.full_name}/commit/{sha}",
            "comments_url": f"{base}/commits/{sha}/comments",
            "author": user(repo.owner),
            "committer": user(repo.owner),
            "parents": [],
        },
        "_links": {"self": f"{base}/branches/{name}", "html": f"https://github.com/{repo.full_name}/tree/{name}"},
        "protected": any(name in found.branches for found in repo.rulesets),
        "protection": {"enabled": False},
        "protection_url": f"{base}/branches/{name}/protection",
    }


def pull_request(repo: Repository, pull: PullRequest) -> dict[str, Any]:
    base = f"{API}/repos/{repo.full_name}"

    def side(name: str) -> dict[str, Any]:
        return {
            "label": f"{repo.owner}:{name}",
            "ref": name,
            "sha": commit_sha(repo, name),
            "repo": {"full_name": repo.full_name},
        }

    return {
        "id": repo.id * 1000 + pull.number,
        "number": pull.number,
        "state": pull.state,
        "title": pull.title,
        "body": pull.body,
        "user": user(pull.author, kind="Bot"),
        "head": side(pull.head),
        "base": side(pull.base),
        "url": f"{base}/pulls/{pull.number}",
        "html_url": f"https://github.com/{repo.full_name}/pull/{pull.number}",
        "draft": False,
        "merged": pull.state == "merged",
    }


def comment(repo: Repository, number: int, index: int, text: str, author: str) -> dict[str, Any]:
    return {
        "id": repo.id * 100_000 + number * 100 + index,
        "body": text,
        "user": user(author, kind="Bot"),
        "issue_url": f"{API}/repos/{repo.full_name}/issues/{number}",
        "html_url": f"https://github.com/{repo.full_name}/issues/{number}#issuecomment-{index}",
    }
