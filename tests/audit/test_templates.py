"""Rows that are spelled once and filled in are the rows that would have been spelled each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.audit import Decision, Draft
from agent_token_injector.audit.spelling import Gap, Template, literal, spell_batch
from agent_token_injector.masking import MASK, Redactor
from tests.audit.support import HANDOFF, chain_of, open_log
from tests.requirements import requirement

TEXTS = st.text(max_size=30)
NAMES = st.sampled_from(["a", "bytes", "masked", "ms", "tool", "z_1"])
HEX = st.text("0123456789abcdef", min_size=1, max_size=64)


@requirement("audit.template")
@settings(deadline=None)
@given(
    texts=st.tuples(TEXTS, TEXTS),
    fixed=st.dictionaries(NAMES, st.one_of(TEXTS, st.integers(-(2**53) + 1, 2**53 - 1), st.booleans()), max_size=3),
    number=st.integers(-(2**53) + 1, 2**53 - 1),
    text=HEX,
    share=st.one_of(st.booleans(), st.integers(0, 10**9), st.floats(0.1, 10**6).map(lambda one: round(one, 1))),
)
def test_a_row_that_is_filled_in_is_the_row_of_the_whole_event(
    texts: tuple[str, str], fixed: dict[str, str | int], number: int, text: str, share: float
) -> None:
    (action, target), redactor = texts, Redactor()
    gaps = {"gap_number": Gap.NUMBER, "gap_share": Gap.LITERAL, "gap_text": Gap.TEXT}
    draft = Draft(f"tool.{action}", Decision.DONE, "mcp", target, "", fixed)
    row = Template(draft, gaps, redactor).row(number, literal(share), text.encode())
    whole = draft.adding(gap_number=number, gap_share=share, gap_text=text)
    assert [row] == spell_batch([whole], redactor) == spell_batch([row], redactor)


@requirement("audit.template")
def test_rows_and_drafts_stand_in_one_chain_in_the_order_they_were_given(tmp_path: Path) -> None:
    redactor = Redactor([SecretStr("secret-of-the-handoff")])
    draft = Draft("tool.call", Decision.ALLOWED, "mcp", "server/secret-of-the-handoff 100%d", "", {"tool": "a%b"})
    template = Template(draft, {"n": Gap.NUMBER}, redactor)
    with open_log(tmp_path, redactor=redactor) as log:
        log.append(HANDOFF, [template.row(1), draft.adding(n=2), template.row(3)])
        events = list(log.events(HANDOFF))
        assert log.verify(HANDOFF).ok
    assert [event.detail for event in events] == [{"n": number, "tool": "a%b"} for number in (1, 2, 3)]
    assert {event.target for event in events} == {f"server/{MASK} 100%d"}
    assert b"secret-of-the-handoff" not in chain_of(tmp_path).read_bytes()


@requirement("audit.template")
def test_an_event_that_somebody_waits_for_has_no_template() -> None:
    for draft in (Draft("tool.denied", Decision.REFUSED), Draft("mint.done", Decision.DONE)):
        with pytest.raises(ValueError, match="urgent"):
            Template(draft, {}, Redactor())
    with pytest.raises(ValueError, match="ASCII"):
        Template(Draft("tool.call", Decision.ALLOWED), {"n\u00e4me": Gap.NUMBER}, Redactor())
