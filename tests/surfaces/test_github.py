"""The GitHub surface: what it refuses before a token exists, and what it reads back from one that does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import HandoffError, MintAmbiguous, MintRefused, RevokeFailed, ScopeTooWide
from agent_token_injector.sandbox.http_server import DROP, TRUNCATE, Reply, Request, method
from agent_token_injector.surfaces.base import Minted, MintRequest
from agent_token_injector.surfaces.github import SECRET
from tests.requirements import requirement
from tests.surfaces.worlds import ASKED, MINT, START, GitHubWorld, until

REVOKE = method("DELETE", "/installation/token")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitHubWorld]:
    with ExitStack() as stack:
        yield GitHubWorld(tmp_path, stack)


def mint(world: GitHubWorld, order: MintRequest | None = None) -> Minted:
    minted = world.surface.mint(order or world.order())
    minted.recorded()
    return minted


def with_body(**changes: Any) -> Any:
    """An `after` hook that alters the vendor's answer."""
    return lambda _request, reply: replace(reply, body={**reply.body, **changes})


@requirement("surface.github.app-ceiling", "H1.least-privilege")
@pytest.mark.parametrize(
    "permission",
    ["administration", "secrets", "workflows", "organization_administration", "dependabot_secrets", "members"],
)
def test_an_app_installed_with_more_than_any_handoff_may_hold_is_refused_by_name(
    world: GitHubWorld, permission: str
) -> None:
    world.github.permissions[permission] = "write"
    with pytest.raises(MintRefused, match=permission):
        mint(world)
    assert world.github.count(MINT) == 0


@requirement("surface.github.app-ceiling")
def test_an_app_installed_on_every_repository_is_refused(world: GitHubWorld) -> None:
    world.github.repository_selection = "all"
    with pytest.raises(MintRefused, match="all repositories"):
        mint(world)
    assert world.github.count(MINT) == 0


@requirement("surface.github.app-ceiling")
def test_a_suspended_installation_and_one_of_another_owner_are_refused(world: GitHubWorld) -> None:
    with pytest.raises(MintRefused, match="not on someone-else"):
        mint(world, world.order_for(repository="someone-else/TradeMasterAPI"))
    world.github.suspended = True
    with pytest.raises(MintRefused, match="suspended"):
        mint(world)
    assert world.github.count(MINT) == 0


@requirement("surface.github.pat")
def test_a_fine_grained_pat_is_refused_with_what_to_do_instead(world: GitHubWorld) -> None:
    with pytest.raises(MintRefused) as caught:
        mint(world, world.order_for(method="fine-grained-pat"))
    assert "installation token" in str(caught.value)
    assert caught.value.hint
    assert world.github.log == ()


@requirement("D3.refused")
@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"private_key": SecretStr("no key")}, "PRIVATE_KEY"),
        ({"app_client_id": "Iv1.someone-else"}, "client id"),
        ({"installation_id": 1}, "INSTALLATION_ID"),
    ],
)
def test_an_app_that_is_configured_wrongly_is_refused_with_what_to_check(
    world: GitHubWorld, change: dict[str, Any], hint: str
) -> None:
    with pytest.raises(MintRefused) as caught:
        world.make(**change).mint(world.order())
    assert hint in (caught.value.hint or "")
    assert world.live() == 0


@requirement("D3.refused")
def test_a_repository_the_app_is_not_installed_on_is_refused(world: GitHubWorld) -> None:
    with pytest.raises(MintRefused, match="422"):
        mint(world, world.order_for(repository="raxx/Other"))
    assert world.live() == 0


@requirement("D3.refused")
def test_a_github_that_cannot_be_reached_minted_nothing(world: GitHubWorld) -> None:
    world.github.close()
    with pytest.raises(MintRefused):
        world.surface.mint(world.order())


@requirement("D3.ambiguous")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda _request, _reply: DROP,
        lambda _request, _reply: TRUNCATE,
        lambda _request, _reply: Reply(500, {"message": "oops"}),
        lambda _request, _reply: Reply(201, ["not", "an", "object"]),
        lambda _request, _reply: Reply(302, None, {"Location": "http://127.0.0.1:9/elsewhere"}),
    ],
)
def test_every_broken_answer_after_the_effect_is_ambiguous_and_asked_once(world: GitHubWorld, spoil: Any) -> None:
    world.github.hook(MINT, after=spoil)
    with pytest.raises(MintAmbiguous) as caught:
        mint(world)
    assert world.github.count(MINT) == 1
    assert caught.value.live_until is not None
    assert caught.value.live_until >= START + timedelta(hours=1)


@requirement("surface.github.token-shape")
@pytest.mark.parametrize("value", ["ghp_" + "a" * 36, "ghs_short", "ghs_" + "a" * 30 + " " + "a" * 30, "sk_live_x"])
def test_what_does_not_look_like_an_installation_token_is_not_handed_on(world: GitHubWorld, value: str) -> None:
    world.github.hook(MINT, before=lambda _request: Reply(201, {"token": value, "expires_at": "2026-06-20T13:00:00Z"}))
    with pytest.raises(MintRefused) as caught:
        world.surface.mint(world.order())
    assert value not in caught.value.diagnostics()
    assert world.github.count(REVOKE) >= 1


@requirement("surface.github.token-shape")
def test_an_answer_that_does_not_say_what_was_minted_is_revoked(world: GitHubWorld) -> None:
    world.github.hook(MINT, after=with_body(expires_at="soon"))
    with pytest.raises(MintRefused):
        world.surface.mint(world.order())
    assert world.live() == 0


@requirement("surface.github.vendor-end")
@pytest.mark.parametrize("end", ["2026-06-20T07:00:00Z", "2026-06-20T12:00:00Z", "2026-06-20T13:05:01Z"])
def test_an_end_that_cannot_be_one_is_not_believed_and_the_token_is_undone(world: GitHubWorld, end: str) -> None:
    world.github.hook(MINT, after=with_body(expires_at=end))
    with pytest.raises(MintRefused, match="when the token ends"):
        world.surface.mint(world.order())
    assert world.live() == 0


@requirement("surface.github.vendor-end", "D3.bounded")
def test_a_false_end_of_a_token_that_cannot_be_undone_bounds_nothing(world: GitHubWorld) -> None:
    world.github.hook(MINT, after=with_body(expires_at="2026-06-20T07:00:00Z"))
    refusing = world.github.hold(REVOKE, at="before", times=None)
    with pytest.raises(MintAmbiguous) as caught:
        world.surface.mint(world.order())
    assert caught.value.live_until is not None
    assert caught.value.live_until >= START + timedelta(hours=1)
    search = world.surface.find(world.identity(), START)
    assert not search.certain
    assert search.live_until is not None
    assert search.live_until >= START + timedelta(hours=1)
    refusing.release()
    until(lambda: world.live() == 0)


@requirement("surface.github.one-repository")
def test_the_token_reaches_one_repository_with_exactly_what_was_asked_for_an_hour(world: GitHubWorld) -> None:
    world.github.add_repository("Other")
    order = world.order()
    minted = mint(world, order)
    lease = world.surface.verify(minted.lease, minted.secrets, order)
    (token,) = world.github.live_tokens()
    assert token.repositories == {"raxx/TradeMasterAPI"}
    assert dict(token.permissions) == {**ASKED, "metadata": "read"}
    assert lease.expires_at == START + timedelta(hours=1)
    assert lease.scope == {
        "repository": "raxx/TradeMasterAPI",
        "permissions": ASKED,
        "protected_branches": {"main": "approved pull requests only, no bypass"},
    }


@requirement("D5.wider-refused")
@pytest.mark.parametrize(
    "spoil",
    [
        with_body(permissions={**ASKED, "issues": "write"}),
        with_body(permissions={"contents": "write"}),
        with_body(repositories=[{"full_name": "raxx/TradeMasterAPI"}, {"full_name": "raxx/Other"}]),
    ],
)
def test_a_grant_that_is_not_the_order_is_refused(world: GitHubWorld, spoil: Any) -> None:
    world.github.hook(MINT, after=spoil)
    order = world.order()
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("D5.wider-refused", "surface.github.one-repository")
def test_a_token_that_reaches_a_second_repository_is_refused(world: GitHubWorld) -> None:
    world.github.add_repository("Other")
    order = world.order()
    # The vendor mints for every repository, and its answer names the one that was asked for.
    world.github.hook(
        method("GET", "/installation/repositories"),
        after=lambda _request, reply: replace(
            reply,
            body={"total_count": 2, "repositories": [*reply.body["repositories"], {"full_name": "raxx/Other"}]},
        ),
    )
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide, match="raxx/Other"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.github.backstop")
def test_a_branch_without_a_ruleset_refuses_the_token(world: GitHubWorld) -> None:
    world.github.unprotect("raxx/TradeMasterAPI")
    order = world.order()
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide, match="push to main"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.github.backstop", "surface.github.backstop-review")
def test_a_branch_that_takes_a_pull_request_without_an_approval_refuses_the_token(world: GitHubWorld) -> None:
    world.github.unprotect("raxx/TradeMasterAPI")
    world.github.protect("raxx/TradeMasterAPI", "main", approvals=0)
    order = world.order()
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide, match="merge its own pull request into main") as caught:
        world.surface.verify(minted.lease, minted.secrets, order)
    assert "approvals" in (caught.value.hint or "")


@requirement("surface.github.backstop-review")
@pytest.mark.parametrize("parameters", [None, {}, {"required_approving_review_count": True}, ["1"]])
def test_a_pull_request_rule_that_does_not_say_how_many_approvals_demands_none(
    world: GitHubWorld, parameters: Any
) -> None:
    def after(_request: Request, reply: Reply) -> Reply:
        return replace(reply, body=[{**rule, "parameters": parameters} for rule in reply.body])

    world.github.hook(method("GET", r".*/rules/branches/.*"), after=after)
    order = world.order()
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide, match="demands an approval"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.github.backstop-review")
def test_one_ruleset_that_demands_an_approval_is_enough(world: GitHubWorld) -> None:
    world.github.protect("raxx/TradeMasterAPI", "main", approvals=0)
    order = world.order()
    minted = mint(world, order)
    assert "main" in world.surface.verify(minted.lease, minted.secrets, order).scope["protected_branches"]


@requirement("surface.github.backstop")
@pytest.mark.parametrize("bypass", ["always", "pull_requests_only", "exempt"])
def test_a_ruleset_that_the_token_can_go_around_refuses_it(world: GitHubWorld, bypass: str) -> None:
    world.github.protect("raxx/TradeMasterAPI", "staging", bypass=bypass)
    order = world.order()
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide, match="go around ruleset"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.github.backstop")
def test_the_default_branch_is_protected_whatever_it_is_called(world: GitHubWorld) -> None:
    repo = world.github.repositories["raxx/trademasterapi"]
    repo.default_branch = "trunk"
    repo.branches["trunk"] = {}
    order = world.order()
    minted = mint(world, order)
    with pytest.raises(ScopeTooWide, match="push to trunk"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("surface.github.backstop")
def test_a_token_that_cannot_write_contents_needs_no_backstop(world: GitHubWorld) -> None:
    world.github.unprotect("raxx/TradeMasterAPI")
    order = world.order_for(permissions={"issues": "write"})
    minted = mint(world, order)
    assert world.surface.verify(minted.lease, minted.secrets, order).scope["protected_branches"] == {}


@requirement("H8.kill-switch", "surface.github.keeper")
def test_a_token_revoked_before_it_was_recorded_lets_its_keeper_go(world: GitHubWorld) -> None:
    minted = world.surface.mint(world.order())
    world.surface.revoke(minted.lease, minted.secrets)
    world.surface.prove_dead(minted.lease, minted.secrets)
    search = world.surface.find(world.identity(), START)
    assert (search.certain, search.leases) == (True, ())
    assert world.live() == 0


@requirement("H8.kill-switch")
def test_a_minted_token_that_is_dropped_is_undone(world: GitHubWorld) -> None:
    minted = world.surface.mint(world.order())
    assert world.live() == 1
    del minted
    until(lambda: world.live() == 0)


@requirement("surface.github.keeper")
def test_a_token_seen_dead_is_no_longer_found(world: GitHubWorld) -> None:
    minted = mint(world)
    assert len(world.surface.find(world.identity(), START).leases) == 1
    world.surface.revoke(minted.lease, minted.secrets)
    world.surface.prove_dead(minted.lease, minted.secrets)
    assert world.surface.find(world.identity(), START).leases == ()


@requirement("H3.token-ttl")
def test_a_token_past_its_hour_is_dead_by_itself(world: GitHubWorld) -> None:
    minted = mint(world)
    world.clock.advance(timedelta(hours=1))
    assert world.live() == 0
    world.surface.prove_dead(minted.lease, minted.secrets)


@requirement("D3.proof", "surface.github.proof-in-its-words")
@pytest.mark.parametrize(
    "body", [{"error": "gateway session expired"}, {"message": "Requires authentication"}, ["Bad credentials"], None]
)
def test_a_401_that_is_not_in_githubs_words_proves_nothing(world: GitHubWorld, body: Any) -> None:
    minted = mint(world)
    in_between = world.github.hook(lambda _request: True, before=lambda _request: Reply(401, body))
    surface = world.make(patience=timedelta(0))
    with pytest.raises(RevokeFailed, match="not in GitHub's words"):
        surface.revoke(minted.lease, minted.secrets)
    with pytest.raises(RevokeFailed, match="not in GitHub's words"):
        surface.prove_dead(minted.lease, minted.secrets)
    assert world.live() == 1
    in_between.remove()
    surface.revoke(minted.lease, minted.secrets)
    assert surface.prove_dead(minted.lease, minted.secrets).how.endswith("answered 401")


@requirement("D3.proof")
def test_a_revocation_that_github_does_not_confirm_has_failed(world: GitHubWorld) -> None:
    minted = mint(world)
    world.github.hook(REVOKE, before=lambda _request: Reply(403, {"message": "no\x1b[31m\nway " + "x" * 900}))
    with pytest.raises(RevokeFailed) as caught:
        world.surface.revoke(minted.lease, minted.secrets)
    assert "403: no" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


@requirement("H6.no-secret-shown")
def test_a_vendor_that_echoes_the_token_does_not_get_it_into_an_error(world: GitHubWorld) -> None:
    minted = mint(world)
    token = minted.secrets[SECRET].get_secret_value()

    def echo(request: Request) -> Reply:
        return Reply(403, {"message": f"not with {request.bearer()}"})

    world.github.hook(REVOKE, before=echo)
    with pytest.raises(RevokeFailed) as caught:
        world.surface.revoke(minted.lease, minted.secrets)
    assert "not with" in str(caught.value)
    assert token[:40] not in str(caught.value)


@requirement("H6.no-secret-shown")
def test_the_apps_private_key_is_in_no_error(world: GitHubWorld) -> None:
    bad = "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END RSA PRIVATE KEY-----"
    surface = world.make(private_key=SecretStr(bad))
    with pytest.raises(HandoffError) as caught:
        surface.mint(world.order())
    assert "c2VjcmV0" not in caught.value.diagnostics() + repr(caught.value) + repr(surface)
    assert caught.value.__cause__ is None


@requirement("D5.read-back")
def test_a_github_that_cannot_be_read_back_verifies_nothing(world: GitHubWorld) -> None:
    order = world.order()
    minted = mint(world, order)
    world.github.hook(method("GET", r".*/rules/branches/.*"), after=lambda _request, _reply: TRUNCATE)
    with pytest.raises(HandoffError, match="cannot be read back"):
        world.surface.verify(minted.lease, minted.secrets, order)
