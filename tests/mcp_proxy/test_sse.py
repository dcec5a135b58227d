"""Server-sent events: read alike however they are split, bounded, and written so that they read back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_token_injector.mcp_proxy.sse import MAX_EVENT_ID, MAX_LINES, SseError, SseEvent, SseReader, format_event
from agent_token_injector.mcp_proxy.wire import MAX_BYTES
from tests.requirements import requirement

EXAMPLES = [
    (b"data: {}\n\n", [SseEvent(None, None, b"{}")]),
    (b"data:{}\r\r", [SseEvent(None, None, b"{}")]),
    (b"data: {}\r\n\r\n", [SseEvent(None, None, b"{}")]),
    (b"\xef\xbb\xbfdata: x\n\n", [SseEvent(None, None, b"x")]),
    (b"data: \xef\xbb\xbfx\n\n", [SseEvent(None, None, b"\xef\xbb\xbfx")]),
    (b"\n\xef\xbb\xbfdata: x\n\n", []),
    (b"data:  two\n\n", [SseEvent(None, None, b" two")]),
    (b"data: a\ndata\ndata: b\n\n", [SseEvent(None, None, b"a\n\nb")]),
    (b": comment\n:\n\ndata: x\n\n", [SseEvent(None, None, b"x")]),
    (b"id: 7\ndata: \n\n", [SseEvent("7", None, b"")]),
    (b"id\ndata: x\n\n", [SseEvent("", None, b"x")]),
    (b"id: a\0b\ndata: x\n\n", [SseEvent(None, None, b"x")]),
    (b"retry: 250\n\n", [SseEvent(None, 250, b"")]),
    (b"retry: 2.5\nretry: -1\nretry: 99999999999\nretry: \xc2\xb2\ndata: x\n\n", [SseEvent(None, None, b"x")]),
    (
        b"event: message\ndata: x\n\nevent: other\ndata: y\n\ndata: z\n\n",
        [SseEvent(None, None, b"x"), SseEvent(None, None, b"z")],
    ),
    (b"event: ping\nid: 3\ndata: y\n\n", [SseEvent("3", None, b"")]),
    (b"unknown: x\nDATA: y\n data: z\n\n", []),
    (b"data: x\n\ndata: never ended\n", [SseEvent(None, None, b"x")]),
    (
        b'id: 1\r\nevent: message\r\ndata: {"a":1}\r\n\r\nid: 2\rdata: b\r\rid: 3\ndata: c\n\n',
        [SseEvent("1", None, b'{"a":1}'), SseEvent("2", None, b"b"), SseEvent("3", None, b"c")],
    ),
]


def read(*chunks: bytes) -> list[SseEvent]:
    reader = SseReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


@requirement("upstream.sse")
@pytest.mark.parametrize(("stream", "events"), EXAMPLES)
def test_a_stream_reads_alike_when_it_is_split_at_every_byte(stream: bytes, events: list[SseEvent]) -> None:
    assert read(stream) == events
    assert read(*(bytes([byte]) for byte in stream)) == events
    for at in range(len(stream)):
        assert read(stream[:at], stream[at:]) == events
        assert read(stream[:at], b"", stream[at:]) == events


@requirement("upstream.sse")
@given(
    st.lists(
        st.sampled_from(
            [
                b"data: ",
                b"data:",
                b"id: ",
                b"retry: 5",
                b"event: message",
                b": c",
                b"x",
                b"\r",
                b"\n",
                b"\r\n",
                b"\xc3\xa9",
            ]
        )
    ),
    st.lists(st.integers(0, 200)),
)
def test_any_stream_reads_alike_however_it_is_split(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert read(*(stream[a:b] for a, b in pairwise(at))) == read(stream)


@requirement("upstream.sse")
@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
    st.none()
    | st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=80).map(
        lambda t: "i" + t
    ),
    st.none() | st.integers(0, 10**8),
)
def test_what_is_written_reads_back(body: str, event_id: str | None, retry: int | None) -> None:
    written = format_event(body.encode(), event_id, retry)
    expected = SseEvent(event_id, retry, body.encode())
    assert read(written) == ([expected] if body or event_id is not None or retry is not None else [])


@requirement("upstream.sse")
@pytest.mark.parametrize(
    ("body", "event_id"), [(b"a\nb", None), (b"a\rb", None), (b"a", "1\n2"), (b"a", "1\r"), (b"a", "\0")]
)
def test_nothing_is_written_that_would_read_as_something_else(body: bytes, event_id: str | None) -> None:
    with pytest.raises(ValueError, match="one line"):
        format_event(body, event_id)


@requirement("upstream.sse", "upstream.bounded")
@pytest.mark.parametrize(
    "piece",
    [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n", b"data\n" * 10000, b"data: x\n\ndata: " + b"x" * (MAX_BYTES + 65)],
)
def test_an_event_that_does_not_end_is_given_up(piece: bytes) -> None:
    with pytest.raises(SseError, match=f"10 MiB or {MAX_LINES} lines"):
        read(*[piece] * (MAX_BYTES // 65536 + 2))


@requirement("upstream.sse", "upstream.bounded")
@pytest.mark.parametrize("line", [b"id: \xff\n", b"id: " + b"i" * (MAX_EVENT_ID + 1) + b"\n"])
def test_an_event_whose_id_cannot_be_told_is_given_up(line: bytes) -> None:
    with pytest.raises(SseError, match="id is"):
        SseReader().feed(line)


@requirement("upstream.sse", "upstream.large-messages")
def test_a_message_as_large_as_may_be_is_read() -> None:
    body = b"x" * MAX_BYTES
    written = format_event(body)
    half = len(written) // 2
    assert read(written[:half], written[half:]) == [SseEvent(None, None, body)]
