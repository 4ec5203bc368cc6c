"""Server-sent events of a job's log stream: read from bytes, resumed after the last one on a new connection."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.cli.client import BUSY, Api, pause
from gateway.cli.failures import Refused

PATIENCE_S = 60.0
"""How long the gateway may be away before a stream is given up."""
SILENCE_S = 60.0
"""A connection on which not even a comment came for so long is dead."""
SOUND_S = 5.0
"""A connection that lasted so long was a good one, although nothing came on it."""

# A CR at the very end may be half of a CRLF.
_END_OF_LINE = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Event:
    kind: str
    data: str
    id: str


def parse(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Events of a stream (WHATWG HTML §9.2). One whose end has not come when the stream breaks does not count."""
    kind, last_id = "", ""
    data: list[str] = []
    for raw in _lines(chunks):
        line = raw.decode("utf-8", "replace")
        if not line:
            if data:
                yield Event(kind or "message", "\n".join(data), last_id)
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines that end in LF, CRLF or CR, each as soon as its end has come."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        start = 0
        for end in _END_OF_LINE.finditer(rest):
            yield rest[start : end.start()]
            start = end.end()
        rest = rest[start:]


def stream(
    api: Api, path: str, params: Mapping[str, Any], *, deadline: float | None = None
) -> Iterator[Event]:
    """Events until one of kind ``end``, over as many connections as it takes.

    Raises ``Failed`` when the gateway is away for ``PATIENCE_S``, and ``TimeoutError`` at ``deadline`` (a
    ``time.monotonic()``).
    """
    last_id, ever, failures, sound = "", False, 0, time.monotonic()
    while True:
        opened = time.monotonic()
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        try:
            with api.stream(path, params, headers=headers, read_s=min(SILENCE_S, _left(deadline))) as answer:
                ever = True
                for event in parse(_until(answer.iter_bytes(), deadline)):
                    failures, sound = 0, time.monotonic()
                    last_id = event.id or last_id
                    yield event
                    if event.kind == "end":
                        return
            broken = None
        except httpx.TransportError as error:
            _left(deadline)
            broken = api.away(error)
            if not ever and isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                raise broken from None
        except Refused as refused:
            if refused.status not in BUSY:
                raise
            broken = refused
        if ever and time.monotonic() - opened > SOUND_S:
            failures, sound = 0, time.monotonic()
        if time.monotonic() - sound > PATIENCE_S:
            raise broken or Refused(f"{api.url} keeps closing the log stream: try again", status=200)
        failures += 1
        time.sleep(min(pause(failures), _left(deadline)))


def _until(chunks: Iterable[bytes], deadline: float | None) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        _left(deadline)


def _left(deadline: float | None) -> float:
    """Seconds until ``deadline``; raises ``TimeoutError`` when there are none."""
    if deadline is None:
        return SILENCE_S
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
