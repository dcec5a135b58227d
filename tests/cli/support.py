"""Running the commands as a user or a script does: as processes, with nothing in the environment but the configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.world import EXAMPLES, World

HANDOFF = (sys.executable, "-c", "from agent_token_injector.cli import main; main()")
ADR_COMMAND = (sys.executable, "-c", "from agent_token_injector.cli.provision_handoff_identity import main; main()")

MINIMAL: dict[str, Any] = json.loads((EXAMPLES / "minimal" / "handoff-spec.json").read_text())
"""A spec that needs no vendor."""
GITHUB: dict[str, Any] = {
    **MINIMAL,
    "task_slug": "one-repository",
    "surfaces": {"github": {"repository": "raxx/TradeMasterAPI", "permissions": {"contents": "write"}}},
}
LIVE_STRIPE: dict[str, Any] = {
    **MINIMAL,
    "task_slug": "live-checkout",
    "surfaces": {"stripe": {"mode": "live", "permissions": {"checkout_sessions": "write"}}},
    "revocation": {"by_hand": {"who": "operator@example.com", "how": "in the Dashboard"}},
}


def write(world: World, name: str, document: Mapping[str, Any]) -> str:
    """A spec in the world's home, by the name that a command there is given."""
    world.write_spec(name, document)
    return name


def run(
    world: World, argv: Sequence[str], *, stdin: str = "", program: Sequence[str] = HANDOFF, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *argv],
        env={**world.environment, **more},
        cwd=world.home,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(world: World, *argv: str, **streams: Any) -> subprocess.Popen[str]:
    """A command that a test talks to while it runs."""
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([*HANDOFF, *argv], env=world.environment, cwd=world.home, text=True, **given)


def provisioned(world: World, document: Mapping[str, Any] = MINIMAL) -> str:
    """Provision a spec with the command, and return the id that it printed."""
    done = run(world, ["provision", write(world, "spec.json", document)])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def audit_file(world: World, handoff_id: str) -> Path:
    return world.home / "state" / "audit" / f"{handoff_id}.jsonl"


def no_traceback(done: subprocess.CompletedProcess[str]) -> bool:
    return "Traceback" not in done.stderr + done.stdout
