"""Takes the values of secrets out of a log, however the log is cut into pieces. A best effort: a job that wants to show
what it was given can (SECURITY S85); this is for the one that prints its environment by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST_BYTES = 4
"""A shorter value would be found in half of all lines, and who sees the gaps could guess it."""
INSTEAD = b"***"
LOOKS_MOST = 64
"""So many beginnings of one value are looked at in a piece's end; the first of more is taken for one."""


class Mask:
    """Feed it pieces of a log; what may be the beginning of a value is held back until the next one: no more than twice
    the longest value."""

    def __init__(self, values: Iterable[str]) -> None:
        # A secret that was set from a file often ends with a line end that the job takes off.
        found = {form.encode(errors="surrogateescape") for value in values for form in (value, value.strip())}
        self._values = [value for value in found if len(value) >= SHORTEST_BYTES]
        self._longest = max(map(len, self._values), default=0)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What of the log so far can be shown, and has not been."""
        if not self._values:
            return data
        log = self._held + data
        spans = self._spans(log)
        end = self._beginning(log, 0)
        for start, stop in spans:
            # A value in whose middle another may begin waits for that one, unless it is a chain of them.
            if start < end < stop:
                end = start if len(log) - start <= 2 * self._longest else self._beginning(log, stop)
        self._held = log[end:]
        return _without(log[:end], [span for span in spans if span[1] <= end])

    def rest(self) -> bytes:
        """What was held back, at the log's end."""
        held, self._held = self._held, b""
        return _without(held, self._spans(held))

    def _spans(self, log: bytes) -> list[tuple[int, int]]:
        """Where values stand, those that overlap as one, in order."""
        found = []
        for value in self._values:
            at = log.find(value)
            while at >= 0:
                found.append((at, at + len(value)))
                at = log.find(value, at + len(value))
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(found):
            if merged and start < merged[-1][1]:
                merged[-1] = merged[-1][0], max(stop, merged[-1][1])
            else:
                merged.append((start, stop))
        return merged

    def _beginning(self, log: bytes, least: int) -> int:
        """Where, from ``least`` on, what may be the beginning of a value stands at the end; the log's length if none
        does."""
        return min(_beginning_of(value, log, least) for value in self._values)


def _beginning_of(value: bytes, log: bytes, least: int) -> int:
    at = max(least, len(log) - len(value) + 1)
    first = value[:SHORTEST_BYTES]
    for _ in range(LOOKS_MOST):
        at = log.find(first, at)
        if at < 0:
            break
        if value.startswith(log[at:]):
            return at
        at += 1
    else:
        return at
    for length in range(min(SHORTEST_BYTES, len(value), len(log) - least + 1) - 1, 0, -1):
        if log.endswith(value[:length]):
            return len(log) - length
    return len(log)


def _without(log: bytes, spans: list[tuple[int, int]]) -> bytes:
    if not spans:
        return log
    shown, at = [], 0
    for start, stop in spans:
        shown += [log[at:start], INSTEAD]
        at = stop
    return b"".join([*shown, log[at:]])
