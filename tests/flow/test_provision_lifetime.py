"""How long a handoff lives, and what provisioning does once it is over."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent_token_injector.clock import ManualClock
from agent_token_injector.provisioning import provision
from agent_token_injector.spec import HandoffSpec
from tests.requirements import requirement
from tests.world import EXAMPLES, make_world

MORNING = datetime(2026, 6, 20, 6, tzinfo=UTC)


def minimal(**changes: object) -> HandoffSpec:
    document = json.loads((EXAMPLES / "minimal" / "handoff-spec.json").read_text())
    return HandoffSpec.parse(json.dumps({**document, **changes}))


@requirement("D4.provision-twice", "H3.no-second-life")
def test_an_expired_handoff_of_the_same_day_is_ended_and_provisioned_anew(tmp_path: Path) -> None:
    clock = ManualClock(MORNING)
    with make_world(tmp_path, clock) as world, world.open() as ctx:
        first = provision(minimal(), ctx)
        clock.advance(timedelta(hours=1))
        second = provision(minimal(), ctx)
        assert second.handoff_id == first.handoff_id
        assert second.provisioned_at == clock.now()
        assert second.leases[0].handle != first.leases[0].handle
        alive = ctx.vault.find_identities(first.leases[0].identity)
        assert [one.id for one in alive] == [second.leases[0].handle]


@requirement("H3.shortest-credential")
def test_a_shorter_end_that_the_spec_asks_for_on_a_surface_ends_the_handoff(tmp_path: Path) -> None:
    clock = ManualClock(MORNING)
    with make_world(tmp_path, clock) as world, world.open() as ctx:
        document = world.spec.to_dict()
        document["surfaces"]["stripe"]["expires_in"] = "PT20M"
        spec = HandoffSpec.parse(json.dumps(document))
        manifest = provision(spec, ctx, supplied={"stripe": world.stripe_key()})
        assert manifest.limited_by == "stripe"
        assert manifest.expires_at == MORNING + timedelta(minutes=20)


@requirement("H3.token-ttl", "policy.tighten-only")
def test_a_policy_that_shortens_access_tokens_is_what_the_identity_gets(tmp_path: Path) -> None:
    with make_world(tmp_path, ManualClock(MORNING)) as world:
        config = tmp_path / "config"
        config.mkdir(mode=0o700)
        (config / "policy.json").write_text('{"vault_token_ttl": "PT5M"}')
        with world.open() as ctx:
            manifest = provision(minimal(), ctx)
            (record,) = ctx.vault.find_identities(manifest.leases[0].identity)
            assert record.token_ttl == timedelta(minutes=5)
