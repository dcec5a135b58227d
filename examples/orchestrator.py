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


def wrap_your_own(handoff_id: str, spawn: Any, *, ctx: HandoffContext | None = None) -> Any:
    """The same refusals and the same end around a spawn call that you have: it gets the ADR's §4.5 document.

    `spawn` returns when its agent is over, or returns something with `wait()`: the agent's tools end with the block.
    """
    with spawn_handoff(handoff_id, lambda context: spawn(context.to_json()), ctx=ctx) as handoff:
        handoff.wait()
        return handoff.result


def by_subprocess(context: SessionContext) -> subprocess.Popen[bytes]:
    """A launcher is any callable; what it returns is waited for and stopped when it has `wait` and `terminate`."""
    return subprocess.Popen(["/usr/bin/env"], env=context.reveal_env())


def main(arguments: list[str]) -> int:
    """`SPEC -- COMMAND...`: dispatch it, and tell what went wrong in words."""
    if "--" not in arguments[1:2] or not arguments[2:]:
        print("usage: orchestrator.py SPEC -- COMMAND...", file=sys.stderr)
        return 2
    try:
        return dispatch(arguments[0], arguments[2:])
    except HandoffError as error:
        print(error.diagnostics(), file=sys.stderr)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
