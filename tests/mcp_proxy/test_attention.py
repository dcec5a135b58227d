"""The proxy looks for an answer for a moment, and never for long."""

from __future__ import annotations

import time

from agent_token_injector.mcp_proxy.attention import LOOK_SECONDS, MAX_MISSES, RARELY, Patience, look
from tests.requirements import requirement


class Said:
    """Has something to say after so many looks; never, when that is None."""

    def __init__(self, after: int | None) -> None:
        self.patience = Patience()
        self.looks = 0
        self._after = after

    def looked_for(self) -> bytes | None:
        self.looks += 1
        return b"here" if self._after is not None and self.looks > self._after else None

    def heard(self, data: bytes) -> None:
        raise AssertionError(data)


@requirement("mcp.attention")
def test_what_comes_at_once_is_found_and_what_does_not_is_given_up_in_time() -> None:
    assert look(Said(3)) == b"here"
    silent = Said(None)
    began = time.monotonic()
    assert look(silent) is None
    assert silent.looks >= 1
    assert time.monotonic() - began < LOOK_SECONDS + 1.0


@requirement("mcp.attention")
def test_a_source_that_stays_silent_is_looked_for_rarely_until_it_speaks() -> None:
    silent = Said(None)
    for _ in range(MAX_MISSES + 1):
        assert look(silent) is None
    before = silent.looks
    for _ in range(RARELY // 2):
        look(silent)
    assert silent.looks == before
    silent._after = 0
    assert b"here" in [look(silent) for _ in range(2 * RARELY)]
    assert look(silent) == b"here"
