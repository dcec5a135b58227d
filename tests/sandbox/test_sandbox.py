"""The sandbox as a whole: the configuration that points at it."""

from __future__ import annotations

import stat
from pathlib import Path

from agent_token_injector.sandbox import Sandbox
from tests.requirements import requirement


@requirement("sandbox.environment")
def test_the_environment_points_at_running_emulators_and_holds_no_secret(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "state") as sandbox:
        environment = sandbox.environment()
        assert environment["HANDOFF_GITHUB_API_URL"] == sandbox.github.url
        assert environment["HANDOFF_STRIPE_API_URL"] == sandbox.stripe.url
        key_file = Path(environment["HANDOFF_GITHUB_PRIVATE_KEY_FILE"])
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert key_file.read_text() == sandbox.github.private_key.get_secret_value()
        assert not any("BEGIN" in value for value in environment.values())
    assert not key_file.exists()


@requirement("sandbox.environment")
def test_an_operators_key_is_live_until_it_is_deleted(tmp_path: Path) -> None:
    with Sandbox(tmp_path) as sandbox:
        key = sandbox.operator_stripe_key(["subscription_read"], name="trial")
        assert len(sandbox.live_credentials()["stripe"]) == 1
        assert sandbox.live_credentials()["github"] == ()
        sandbox.stripe.dashboard_delete_key(key)
        assert sandbox.live_credentials()["stripe"] == ()
