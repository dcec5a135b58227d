"""Signals: a command that is told to end undoes what it began; one with a running agent passes the signal on to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

    from agent_token_injector.launchers.process import AgentProcess, ProcessLauncher
    from agent_token_injector.session_context import SessionContext
    from agent_token_injector.spawn import Handoff

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal told this command to end. As with Ctrl-C, every `finally` and every undo on the way runs."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted, once; the next is only answered, so that an undo can finish.

    A third one raises again: whoever insists is obeyed.
    """
    seen = 0

    def end(number: int, _frame: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            tell("handoff: undoing what was begun; once more abandons it (then use `handoff revoke`)")
            return
        raise Interrupted(number)

    with _handling(end):
        yield


class AgentSignals:
    """While an agent runs, SIGINT, SIGTERM and SIGHUP are the agent's; while it is taken down, they wait for the end.

        with AgentSignals() as signals, spawn_handoff(handoff_id, signals.launching(launcher)) as handoff:
            signals.wait(handoff)

    Before the agent is launched a signal raises Interrupted. From then on the first of a kind is passed on, and a second
    one ends the run. Stopping and revoking have deadlines of their own, so nothing cuts them short.
    """

    def __init__(self) -> None:
        self._agent: AgentProcess | None = None
        self._launching = self._over = False
        self._seen: set[int] = set()
        self._handling = _handling(self._on_signal)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.__exit__(kind, error, trace)

    def launching(self, launcher: ProcessLauncher) -> Callable[[SessionContext], AgentProcess]:
        """The launcher, with what comes while it launches kept for the agent."""

        def launch(context: SessionContext) -> AgentProcess:
            self._launching = True
            self._agent = launcher(context)
            self._launching = False
            for number in tuple(self._seen):
                self._agent.send_signal(number)
            return self._agent

        return launch

    def wait(self, handoff: Handoff) -> None:
        """Wait until the agent is over, or a second signal of a kind says that it has been waited for long enough."""
        with suppress(Interrupted):
            try:
                handoff.wait()
            finally:
                self._over = True

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._over:
            tell("handoff: the run is being taken down; this takes seconds")
        elif self._launching:
            self._seen.add(number)
        elif self._agent is None or number in self._seen:
            raise Interrupted(number)
        else:
            self._seen.add(number)
            self._agent.send_signal(number)


def tell(text: str) -> None:
    """A line on stderr from a signal handler: unbuffered, for the interrupted code may be printing itself."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {}
    for number in SIGNALS:
        # What our caller has us ignore (nohup, a background job's SIGINT) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
