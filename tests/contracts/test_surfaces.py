"""The surface contract: what `surfaces/base.py` promises, held against every surface.

To add one, put its world into tests/surfaces/worlds.py; no test changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import HandoffError, MintAmbiguous, MintRefused, RevokeFailed, ScopeTooWide
from agent_token_injector.lease import MintKind, Recovery
from agent_token_injector.policy import GRANTED_NAMES
from agent_token_injector.surfaces import SUPPORTED
from agent_token_injector.surfaces.base import Minted
from tests.requirements import requirement
from tests.surfaces.worlds import START, WORLDS, World


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield WORLDS[request.param](tmp_path, stack)


def minted_and_stored(world: World) -> tuple[Minted, object]:
    order = world.order()
    minted = world.surface.mint(order)
    world.store(minted)
    return minted, order


@requirement("surface.registry")
def test_every_supported_surface_is_held_to_this_contract() -> None:
    assert set(WORLDS) == set(SUPPORTED)


@requirement("surface.facts")
def test_a_surface_declares_names_that_agree_with_the_policy(world: World) -> None:
    facts = world.surface.facts
    assert tuple(facts.secrets.values()) == GRANTED_NAMES[facts.surface]
    assert facts.kill_latency
    assert facts.revoke_by_hand


@requirement("D3.minted", "H1.own-identity")
def test_a_mint_makes_one_credential_and_says_which(world: World) -> None:
    minted, _ = minted_and_stored(world)
    facts = world.surface.facts
    assert world.live() == 1
    assert set(minted.secrets) == set(facts.secrets) == set(minted.lease.secrets)
    assert minted.lease.identity == str(world.identity())
    assert minted.lease.handle
    assert (minted.lease.kind, minted.lease.recovery) == (facts.kind, facts.recovery)


@requirement("D3.refused")
def test_a_refused_mint_leaves_nothing(world: World) -> None:
    world.refuse_mints()
    with pytest.raises(MintRefused):
        world.surface.mint(world.order())
    assert world.live() == 0


@requirement("D3.ambiguous")
def test_a_mint_whose_answer_is_lost_is_ambiguous_and_is_not_asked_for_again(world: World) -> None:
    if not world.makes_requests:
        pytest.skip("this surface's mint asks the vendor for nothing")
    requests = world.lose_answers()
    with pytest.raises(MintAmbiguous) as caught:
        world.surface.mint(world.order())
    assert requests() == 1
    assert caught.value.live_until is not None


@requirement("D3.reconciled")
def test_a_lost_mint_is_found_by_name_or_bounded_in_time(world: World) -> None:
    if not world.makes_requests:
        pytest.skip("this surface's mint asks the vendor for nothing")
    world.lose_answers()
    with pytest.raises(MintAmbiguous):
        world.surface.mint(world.order())
    search = world.surface.find(world.identity(), START)
    if world.surface.facts.recovery is Recovery.BY_NAME:
        assert search.certain
        (lease,) = search.leases
        world.surface.revoke(lease, {})
        world.surface.prove_dead(lease, {})
        assert world.live() == 0
    else:
        assert not search.certain
        assert search.live_until is not None
        world.clock.advance(search.live_until - world.clock.now())
        assert world.surface.find(world.identity(), START).certain
        assert world.live() == 0


@requirement("D3.begin")
def test_nothing_is_requested_when_the_mint_may_not_begin(world: World) -> None:
    if not world.makes_requests:
        pytest.skip("this surface's mint asks the vendor for nothing")
    began: list[int] = []

    def begin() -> None:
        began.append(world.live())
        raise HandoffError("the record could not be written")

    with pytest.raises(HandoffError, match="the record could not be written"):
        world.surface.mint(replace(world.order(), begin=begin))
    assert began == [0]
    assert world.live() == 0


@requirement("D5.read-back")
def test_a_credential_that_is_what_was_asked_is_verified(world: World) -> None:
    minted, order = minted_and_stored(world)
    lease = world.surface.verify(minted.lease, minted.secrets, order)
    assert lease.scope
    assert lease.handle == minted.lease.handle
    assert world.live() == 1


@requirement("D5.wider-refused", "H1.least-privilege")
def test_a_credential_wider_than_asked_is_not_verified(world: World) -> None:
    world.widen()
    minted, order = minted_and_stored(world)
    with pytest.raises(ScopeTooWide):
        world.surface.verify(minted.lease, minted.secrets, order)


@requirement("H8.kill-switch", "D3.proof")
def test_a_credential_is_revoked_and_seen_dead_and_both_may_be_repeated(world: World) -> None:
    minted, _ = minted_and_stored(world)
    for _ in range(2):
        world.surface.revoke(minted.lease, minted.secrets)
        world.person_ends_it(minted)
        proof = world.surface.prove_dead(minted.lease, minted.secrets)
        assert (proof.surface, proof.identity) == (minted.lease.surface, minted.lease.identity)
    assert world.live() == 0


@requirement("D3.proof")
def test_a_living_credential_is_never_proven_dead(world: World) -> None:
    minted, _ = minted_and_stored(world)
    with pytest.raises(RevokeFailed):
        world.surface.prove_dead(minted.lease, minted.secrets)
    assert world.live() == 1


@requirement("H2.independent")
def test_revoking_one_credential_leaves_another_alone(world: World) -> None:
    minted, _ = minted_and_stored(world)
    if world.surface.facts.recovery is Recovery.BY_NAME:
        world.surface.revoke(minted.lease.model_copy(update={"handle": "of-another-handoff"}), {})
        assert world.live() == 1
    else:
        second = world.surface.mint(world.order())
        second.recorded()
        world.surface.revoke(minted.lease, minted.secrets)
        world.person_ends_it(minted)
        world.surface.prove_dead(minted.lease, minted.secrets)
        assert world.live() == 1


@requirement("D3.lost-value")
def test_a_lost_value_is_never_taken_for_a_dead_credential(world: World) -> None:
    minted, _ = minted_and_stored(world)
    with pytest.raises(RevokeFailed) as caught:
        world.surface.prove_dead(minted.lease, {})
    assert str(caught.value)


@requirement("D3.lost-value")
def test_another_credential_in_its_place_proves_nothing(world: World) -> None:
    if world.surface.facts.recovery is Recovery.BY_NAME:
        pytest.skip("this surface's credentials are found by their id, not by their value")
    minted, _ = minted_and_stored(world)
    dead = {name: SecretStr("ghs_" + "0" * 40) for name in minted.secrets}
    with pytest.raises(RevokeFailed, match="is not the"):
        world.surface.prove_dead(minted.lease, dead)


@requirement("H6.no-secret-shown")
def test_no_secret_is_shown_logged_or_raised(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    order = world.order()
    minted = world.surface.mint(order)
    world.store(minted)
    shown = [repr(world.surface), repr(order), repr(minted), repr(minted.lease), minted.lease.model_dump_json()]
    for action in (
        lambda: repr(world.surface.verify(minted.lease, minted.secrets, order)),
        lambda: repr(world.surface.prove_dead(minted.lease, minted.secrets)),
        lambda: repr(world.surface.revoke(minted.lease, minted.secrets)),
        lambda: world.person_ends_it(minted),
        lambda: repr(world.surface.prove_dead(minted.lease, minted.secrets)),
        lambda: repr(world.surface.verify(minted.lease, minted.secrets, order)),
        lambda: repr(world.surface.find(world.identity(), START)),
    ):
        try:
            shown.append(str(action()))
        except HandoffError as error:
            shown.extend((repr(error), error.diagnostics(), str(error.to_dict())))
    text = "\n".join([*shown, caplog.text])
    for value in minted.secrets.values():
        secret = value.get_secret_value()
        # An identity's client id is a name, not a secret, and stands in the vault's own records.
        if secret.startswith(("ghs_", "rk_")) or value is minted.secrets.get("INFISICAL_CLIENT_SECRET"):
            assert secret not in text
            assert secret[-24:] not in text


@requirement("surface.supply-hint")
def test_only_what_an_operator_supplies_comes_with_a_hint_how(world: World) -> None:
    hint = world.surface.supply_hint(world.identity(), world.order().request)
    assert bool(hint) == (world.surface.facts.kind is MintKind.OPERATOR_SUPPLIED)
