"""How far a job has got, read from what it prints: no SDK, nothing for the user to call. Pure.

Understood: ffmpeg (``Duration:`` with ``time=``, or ``-progress``'s ``out_time_us=``), tqdm and every other
bar that writes ``NN%``, and counters such as ``step 3/10``. Bars redraw their line with ``\\r``, which ends a
line here too.
"""

from __future__ import annotations

import re
from enum import IntEnum

LINE_CAP_BYTES = 4096
"""What is looked at of one line: a program that never ends its line must not make the agent grow."""

_ENDS = re.compile(rb"[\r\n]+")
_CLOCK = rb"(\d{1,4}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)"
_INPUT = re.compile(rb"^Input #(\d+),")
_DURATION = re.compile(rb"^\s*Duration: " + _CLOCK)
_OUT_TIME = re.compile(rb"^out_time_(?:us|ms)=(\d{1,18})\s*$")
_TIME = re.compile(rb"(?:^out_time=|\btime=)" + _CLOCK)
_BEFORE = rb"(?<![\w.,/+-])(?<!\d:)"
_PERCENT = re.compile(_BEFORE + rb"(\d{1,3}(?:\.\d{1,9})?) ?%(?![\w%])")
_COUNT = re.compile(_BEFORE + rb"(\d{1,12}) ?/ ?(\d{1,12})(?![\w/-]|[.,:]\d)")
_ENCODER = re.compile(rb"^\[[\w,.-]+ @ 0x[0-9a-f]+\]")
"""Statistics of ffmpeg's encoders are full of percentages that are no progress."""


class _Source(IntEnum):
    """Who said it. What a sure source said is not overruled by a guess at other numbers of the same
    output."""

    GUESS = 0
    FFMPEG = 1


class ProgressReader:
    """Feed it output as it comes, cut anywhere; ``value`` is the last share seen (0 to 1), None while there
    is none.

    A value may fall: a program with two bars starts the second one at 0.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self._rest = b""
        self._source = _Source.GUESS
        self._duration_s = 0.0

    def feed(self, data: bytes) -> float | None:
        lines = _ENDS.split(self._rest + data)
        self._rest = lines.pop()[-LINE_CAP_BYTES:]
        for line in lines:
            self._read(line[-LINE_CAP_BYTES:])
        # A bar redrawn with a leading \r has no end yet, and its current state is what matters. A number at
        # the very end may be half a number: it is left for the next call.
        self._read(self._rest.rstrip(b"0123456789./:"), whole=False)
        return self.value

    def _read(self, line: bytes, *, whole: bool = True) -> None:
        # Cheap tests first: most lines of most programs say nothing of progress.
        if b":" in line or b"=" in line:
            self._read_ffmpeg(line, whole)
        if self._source is _Source.GUESS and not _ENCODER.match(line):
            self._guess(line)

    def _read_ffmpeg(self, line: bytes, whole: bool) -> None:
        if match := _INPUT.match(line):
            if match[1] == b"0" and whole:
                self._duration_s = 0.0  # another run of ffmpeg in the same script
        elif match := _DURATION.match(line):
            self._duration_s = max(self._duration_s, _seconds(match))
        elif match := _OUT_TIME.match(line):
            # Both names count microseconds: out_time_ms was misnamed once and kept for compatibility.
            if whole:
                self._reached(int(match[1]) / 1e6)
        elif matches := list(_TIME.finditer(line)):
            self._reached(_seconds(matches[-1]))
        elif whole and line.rstrip() == b"progress=end" and self._source is _Source.FFMPEG:
            self.value = 1.0

    def _reached(self, time_s: float) -> None:
        if self._duration_s > 0:
            self._source = _Source.FFMPEG
            self.value = min(time_s / self._duration_s, 1.0)

    def _guess(self, line: bytes) -> None:
        if b"%" in line:
            # The first one that can be a share: tqdm writes its own in front, numbers of other things behind.
            for match in _PERCENT.finditer(line):
                if (share := float(match[1])) <= 100:
                    self.value = share / 100
                    return
        if b"/" in line:
            for match in _COUNT.finditer(line):
                done, total = int(match[1]), int(match[2])
                if total > 1 and done <= total:
                    self.value = done / total
                    return


def _seconds(match: re.Match[bytes]) -> float:
    hours, minutes, seconds = match.groups()[-3:]
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
