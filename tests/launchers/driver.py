"""A launching process of its own, for the tests that kill it, stop it, or run it as another user.

`python -m tests.launchers.driver JOB` with a JSON job: `code` of an agent whose first line is the pids of its tree;
`seconds`, `grace`; `fork` leaves a fork of the launching process behind; `uid` gives up root first; `stop` stops the
run at once and prints its report. Prints `{"supervisor", "fork", "tree"}`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta

from agent_token_injector.launchers.process import ProcessLauncher
from tests.launchers.agents import context, pids, python


def main() -> None:
    job = json.loads(sys.argv[1])
    if "uid" in job:
        os.setgroups([])
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    launcher = ProcessLauncher(
        python(job["code"]), stdout=subprocess.PIPE, grace=timedelta(seconds=job.get("grace", 0.2))
    )
    agent = launcher(context(seconds=job.get("seconds", 3600)))
    tree = pids(agent.stdout)
    fork = 0
    if job.get("fork"):
        fork = os.fork()
        if fork == 0:
            while True:
                signal.pause()
    print(json.dumps({"supervisor": agent.supervisor_pid, "fork": fork, "tree": tree}), flush=True)
    if job.get("stop"):
        print(json.dumps(agent.stop("asked").to_dict()), flush=True)
        return
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
