"""An orchestrator's two ways to dispatch: a process of this machine, and whatever starts your agents today.

    python examples/orchestrator.py examples/minimal/handoff-spec.json -- env
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from agent_token_injector import (
    HandoffContext,
    HandoffError,
    HandoffSpec,
    ProcessLauncher,
    SessionContext,
    provision,
    spawn_handoff,
)


def dispatch(spec_path: str, argv: list[str]) -> int:
    """Give one run its own identity, run it, and revoke the identity when it ends, whatever the end."""
    with HandoffContext.from_settings() as ctx:
        manifest = provision(HandoffSpec.load(spec_path), ctx)
        with spawn_handoff(manifest.handoff_id, ProcessLauncher(argv), ctx=ctx, revoke_on_exit=True) as handoff:
            code: int = handoff.wait()
        receipt = handoff.stop()
    if receipt.revocation is not None and not receipt.revocation.ok:
        for item in receipt.revocation.residue:
            print(f"still alive: {item}", file=sys.stderr)
        return 5
    return code


def wrap_your_own(handoff_id: str, spawn: Any) -> Any:
    """The same refusals and the same end around a spawn call that you have: it gets the ADR's §4.5 document."""
    with spawn_handoff(handoff_id, lambda context: spawn(context.to_json())) as handoff:
        return handoff.result


def by_subprocess(context: SessionContext) -> subprocess.Popen[bytes]:
    """A launcher is any callable; what it returns is waited for and stopped when it has `wait` and `terminate`."""
    return subprocess.Popen(["/usr/bin/env"], env=context.reveal_env())


if __name__ == "__main__":
    try:
        sys.exit(dispatch(sys.argv[1], sys.argv[sys.argv.index("--") + 1 :]))
    except HandoffError as error:
        sys.exit(error.diagnostics())
