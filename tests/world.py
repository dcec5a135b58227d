"""A world to test in: emulated vendors on loopback, and the operator's configuration that points at them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_token_injector.clock import Clock, SystemClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.names import VaultPath
from agent_token_injector.sandbox import Sandbox
from agent_token_injector.settings import Settings
from agent_token_injector.spec import HandoffSpec
from agent_token_injector.surfaces.stripe_permissions import wanted

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
STAGING = VaultPath("/MooseQuest/queue/staging")


@dataclass
class World:
    """The vendors, a state directory of its own, and ways to act in it as an operator or a program would."""

    home: Path
    sandbox: Sandbox
    clock: Clock
    spec: HandoffSpec
    keys: list[SecretStr] = field(default_factory=list, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.sandbox.environment(),
            "HANDOFF_STATE_DIR": str(self.home / "state"),
            "HANDOFF_CONFIG_DIR": str(self.home / "config"),
            "HOME": str(self.home),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
        }

    @contextmanager
    def open(self) -> Iterator[HandoffContext]:
        with HandoffContext.from_settings(Settings.load(self.environment), clock=self.clock) as ctx:
            yield ctx

    def stripe_key(self, *more: str) -> SecretStr:
        """What the operator makes in the Dashboard for this spec."""
        assert self.spec.surfaces.stripe is not None
        key = self.sandbox.operator_stripe_key([*wanted(self.spec.surfaces.stripe.permissions).asked, *more])
        self.keys.append(key)
        return key

    def delete_stripe_keys(self) -> None:
        for key in self.keys:
            self.sandbox.stripe.dashboard_delete_key(key)

    def furnish(self, ctx: HandoffContext) -> None:
        """Put the staging secret that the spec reads, and a production secret that it must not, into the vault."""
        for folder, name in ((STAGING, "STRIPE_WEBHOOK_SECRET"), (VaultPath("/MooseQuest/velvet"), "PRODUCTION_KEY")):
            ctx.vault.create_folder(folder)
            ctx.vault.create_secret(folder, name, SecretStr(f"value-of-{name.lower()}"))

    def live_minted(self) -> tuple[str, ...]:
        """What GitHub would still accept."""
        return self.sandbox.github.live_credentials()

    def write_spec(self, name: str = "handoff-spec.json", spec: Mapping[str, Any] | None = None) -> Path:
        path = self.home / name
        path.write_text(json.dumps(spec or self.spec.to_dict()))
        return path

    def cli(self, *argv: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """Run `handoff` as a user would, with nothing in the environment but the configuration."""
        return subprocess.run(
            [sys.executable, "-c", "from agent_token_injector.cli import main; main()", *argv],
            env={**self.environment, **more},
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def founders(sandbox: Sandbox | None = None) -> HandoffSpec:
    """The ADR's §8.2, with the sandbox's MCP server where its command would be."""
    document = json.loads((EXAMPLES / "founders_checkout" / "handoff-spec.json").read_text())
    server = document["mcp_servers"]["github"]
    server["command"] = [sys.executable, "-m", "agent_token_injector.sandbox.github_mcp_server"]
    if sandbox is not None:
        server["plain_env"] = {"GITHUB_API_URL": sandbox.github.url}
    return HandoffSpec.parse(json.dumps(document))


def eventually(condition: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    """Whether a condition comes true before a deadline."""
    limit = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return True


@contextmanager
def make_world(home: Path, clock: Clock | None = None) -> Iterator[World]:
    clock = clock or SystemClock()
    with Sandbox(home / "vendors", clock=clock) as sandbox:
        yield World(home, sandbox, clock, founders(sandbox))
