"""The vault identity as a surface: its scope is proven inside and outside, with its own login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import MintRefused, RevokeFailed, ScopeTooWide, SurfaceError, VaultForbidden
from agent_token_injector.names import SecretGlob, VaultPath
from agent_token_injector.surfaces.infisical import CLIENT_ID, CLIENT_SECRET
from agent_token_injector.vaults import MAX_TOKEN_TTL
from tests.requirements import requirement
from tests.surfaces.worlds import HANDOFF, LAYOUT, InfisicalWorld

STAGING = VaultPath("/MooseQuest/queue/staging")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[InfisicalWorld]:
    with ExitStack() as stack:
        yield InfisicalWorld(tmp_path, stack)


@requirement("surface.infisical.scope", "H1.least-privilege")
def test_the_identity_reads_its_own_folder_and_what_was_granted_and_nothing_else(world: InfisicalWorld) -> None:
    for name in ("STRIPE_WEBHOOK", "DATABASE"):
        world.vault.create_secret(STAGING, name, SecretStr("value"))
    order = world.order()
    minted = world.surface.mint(order)
    world.store(minted)
    lease = world.surface.verify(minted.lease, minted.secrets, order)
    assert set(lease.scope["read"]) == {f"{LAYOUT.of(HANDOFF)}/*", f"{STAGING}/STRIPE_*"}
    session = world.vault.login(minted.secrets[CLIENT_ID].get_secret_value(), minted.secrets[CLIENT_SECRET])
    assert session.read_secret(STAGING, "STRIPE_WEBHOOK").get_secret_value() == "value"
    with pytest.raises(VaultForbidden):
        session.read_secret(STAGING, "DATABASE")


@requirement("surface.infisical.lifetime", "H3.token-ttl")
def test_the_identity_ends_with_its_handoff_and_its_tokens_within_15_minutes(world: InfisicalWorld) -> None:
    order = world.order()
    world.surface.mint(order)
    (record,) = world.vault.find_identities(str(world.identity()))
    assert record.expires_at == order.not_after
    assert record.token_ttl == MAX_TOKEN_TTL == timedelta(minutes=15)


@requirement("surface.infisical.one-identity")
def test_a_second_identity_of_the_same_name_is_not_made(world: InfisicalWorld) -> None:
    world.surface.mint(world.order())
    with pytest.raises(MintRefused, match="exists already"):
        world.surface.mint(world.order())
    assert world.live() == 1


@requirement("D5.wider-refused", "surface.infisical.lifetime")
def test_an_identity_stored_with_another_end_or_shorter_tokens_is_refused(world: InfisicalWorld) -> None:
    order = world.order()
    for ttl, end in ((timedelta(minutes=5), order.not_after), (MAX_TOKEN_TTL, order.not_after + timedelta(hours=1))):
        minted = world.surface.mint(order)
        world.vault.delete_identity(str(minted.lease.handle))
        globs = [SecretGlob.parse(text) for text in minted.lease.scope["read"]]
        made = world.vault.create_identity(minted.lease.identity, read=globs, token_ttl=ttl, expires_at=end)
        lease = minted.lease.model_copy(update={"handle": made.identity_id})
        with pytest.raises(ScopeTooWide):
            world.surface.verify(lease, minted.secrets, order)
        world.surface.revoke(lease, {})


@requirement("D5.read-back")
def test_an_identity_whose_credentials_were_not_stored_is_not_verified(world: InfisicalWorld) -> None:
    order = world.order()
    minted = world.surface.mint(order)
    with pytest.raises(SurfaceError, match="cannot be read back"):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("D3.proof", "surface.infisical.proof")
def test_an_identity_is_dead_when_it_is_not_listed_and_cannot_log_in(world: InfisicalWorld) -> None:
    minted = world.surface.mint(world.order())
    world.surface.revoke(minted.lease, minted.secrets)
    assert "login is refused" in world.surface.prove_dead(minted.lease, minted.secrets).how
    assert "login" not in world.surface.prove_dead(minted.lease, {}).how


@requirement("surface.infisical.proof")
def test_without_a_handle_every_identity_of_the_name_is_revoked(world: InfisicalWorld) -> None:
    minted = world.surface.mint(world.order())
    globs = [SecretGlob.parse(text) for text in minted.lease.scope["read"]]
    world.vault.create_identity(
        minted.lease.identity, read=globs, token_ttl=MAX_TOKEN_TTL, expires_at=world.order().not_after
    )
    lease = minted.lease.model_copy(update={"handle": None})
    with pytest.raises(RevokeFailed):
        world.surface.prove_dead(lease, {})
    world.surface.revoke(lease, {})
    world.surface.prove_dead(lease, {})
    assert world.live() == 0


@requirement("surface.infisical.scope")
def test_an_identity_that_reads_beyond_its_stored_globs_is_refused(world: InfisicalWorld) -> None:
    # The vault says one thing and does another: the login is an identity with a wider reach.
    order = world.order()
    minted = world.surface.mint(order)
    world.store(minted)
    wide = world.vault.create_identity(
        "infisical-handoff-wide-20260620",
        read=[LAYOUT.own_glob(HANDOFF), SecretGlob.parse("/MooseQuest/handoffs/*")],
        token_ttl=MAX_TOKEN_TTL,
        expires_at=order.not_after,
    )
    world.unreliable.login_as = (wide.client_id, wide.client_secret)
    with pytest.raises(ScopeTooWide, match="not refused"):
        world.surface.verify(minted.lease, minted.secrets, order)
