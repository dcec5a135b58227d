"""Provision in a process that kills itself, with SIGKILL, at one exact point: `python -m tests.crash.driver`.

Reads one JSON job a line from stdin: {environment, supplied, spec, point}. For each it forks; the child provisions
through the public face with a vault, an audit log and surfaces that count every call, and kills itself right before call
number `point` (0: never; one more than there are calls: at the end). Answers one line: {signal, calls, names}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from typing import Any

from pydantic import SecretStr

from agent_token_injector.context import HandoffContext, SurfaceTable
from agent_token_injector.provisioning import provision
from agent_token_injector.settings import Settings
from agent_token_injector.spec import HandoffSpec
from agent_token_injector.surfaces.infisical import InfisicalSurface


class Counter:
    def __init__(self, point: int) -> None:
        self.point, self.calls = point, 0
        self.names: list[str] = []

    def arrive(self, name: str) -> None:
        self.calls += 1
        self.names.append(name)
        if self.calls == self.point:
            os.kill(os.getpid(), signal.SIGKILL)


class Counted:
    """Passes everything on, and counts each call."""

    def __init__(self, inner: Any, counter: Counter, label: str) -> None:
        self._inner, self._counter, self._label = inner, counter, label

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def passed_on(*args: Any, **kwargs: Any) -> Any:
            self._counter.arrive(f"{self._label}.{name}")
            return value(*args, **kwargs)

        return passed_on


def run(job: dict[str, Any]) -> Counter:
    counter = Counter(job["point"])
    with HandoffContext.from_settings(Settings.load(job["environment"])) as ctx:
        vault: Any = Counted(ctx.vault, counter, "vault")
        infisical = InfisicalSurface(vault, layout=ctx.layout, clock=ctx.clock)
        surfaces = {
            "infisical": lambda: Counted(infisical, counter, "infisical"),
            "github": lambda: Counted(ctx.surfaces["github"], counter, "github"),
            "stripe": lambda: Counted(ctx.surfaces["stripe"], counter, "stripe"),
        }
        audit: Any = Counted(ctx.audit, counter, "audit")
        counted = dataclasses.replace(ctx, vault=vault, audit=audit, surfaces=SurfaceTable(surfaces))
        supplied = {name: SecretStr(value) for name, value in job["supplied"].items()}
        provision(HandoffSpec.parse(json.dumps(job["spec"])), counted, supplied=supplied)
        calls = counter.calls
        counter.arrive("the end")
    counter.calls = calls
    return counter


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                counter = run(job)
                os.write(writing, json.dumps({"calls": counter.calls, "names": counter.names}).encode())
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - the parent is told
                os.write(writing, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        answer = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, **(json.loads(told) if told else {})}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
