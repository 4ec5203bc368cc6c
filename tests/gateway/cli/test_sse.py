"""Server-sent events from bytes that come in any pieces."""

from __future__ import annotations

import pytest

from gateway.cli.sse import Event, parse

STREAM = (
    b": hello\n\nid: 1:5\nevent: log\ndata: first\n\n"
    b"id:1:9\nevent: log\ndata:\xc3\xa4\ndata: second\n\nevent: end\ndata: {}\n\n"
)
EVENTS = [Event("log", "first", "1:5"), Event("log", "ä\nsecond", "1:9"), Event("end", "{}", "1:9")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_bytes_come(end: bytes, piece: int) -> None:
    stream = STREAM.replace(b"\n", end) + b":\n"
    assert list(parse(stream[at : at + piece] for at in range(0, len(stream), piece))) == EVENTS


def test_an_event_whose_end_has_not_come_does_not_count() -> None:
    assert list(parse([b"id: 1\ndata: a\n\nid: 2\ndata: b\n"])) == [Event("message", "a", "1")]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data\n\n", [Event("message", "", "")]),
        (b"data:  two\n\n", [Event("message", " two", "")]),
        (b"nonsense: 3\ndata: a\n\n", [Event("message", "a", "")]),
        (b"id: a\0b\ndata: a\n\n", [Event("message", "a", "")]),
        (b"event: log\n\ndata: a\n\n", [Event("message", "a", "")]),
        (b"data: \xff\n\n", [Event("message", "�", "")]),
    ],
)
def test_odd_lines_are_read_as_the_standard_says(stream: bytes, events: list[Event]) -> None:
    assert list(parse([stream])) == events
