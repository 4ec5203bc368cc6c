"""An attempt's log as lines, cut in the same places however the bytes come in."""

from __future__ import annotations

import re
from collections.abc import Iterator

LINE_CAP = 64 * 1024  # not below 4, the bytes of a character
"""A longer line comes in pieces, so that a log without line ends takes no more memory than others."""

_END = re.compile(rb"\r\n|\n|\r")
_LF = 10


class LineSplitter:
    """Fed with a log's bytes from ``position`` on; ``before`` is the byte in front of it (empty at the beginning).

    A line ends in LF, CRLF or CR: programs that redraw one line of progress only send CR. A splitter that begins where
    another one's line ended goes on as that one would have.
    """

    def __init__(self, position: int = 0, before: bytes = b"") -> None:
        self._position = position
        """Of the first byte that is kept."""
        self._kept = b""
        self._after_cr = before == b"\r"

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[tuple[int, str]]:
        """Lines that are complete now, each with the position behind its end; with ``last`` also what is left."""
        kept = self._kept + data
        start = 0
        if self._after_cr and kept:
            # The line was given out at its CR, as it might have stayed alone. It was a CRLF.
            start, self._after_cr = int(kept[0] == _LF), False
        try:
            while start < len(kept):
                end = _END.search(kept, start, start + LINE_CAP + 2)
                if end is None or end.start() - start > LINE_CAP:
                    if len(kept) - start <= LINE_CAP:
                        break
                    cut = _between_characters(kept, start + LINE_CAP)
                    line, start = kept[start:cut], cut
                else:
                    cr = end.group() == b"\r"
                    perhaps_crlf = cr and end.end() == len(kept) and not last
                    if cr and end.start() == start:
                        if perhaps_crlf:
                            break
                        start = end.end()  # a CR at a line's beginning only moves the cursor
                        continue
                    self._after_cr = perhaps_crlf
                    line, start = kept[start : end.start()], end.end()
                yield self._position + start, line.decode("utf-8", "replace")
            if last and start < len(kept):
                line, start = kept[start:], len(kept)
                yield self._position + start, line.decode("utf-8", "replace")
        finally:
            self._kept, self._position = kept[start:], self._position + start


def _between_characters(data: bytes, cut: int) -> int:
    """``cut``, or the beginning of the UTF-8 character that it would cut in two."""
    for back in range(4):
        if data[cut - back] & 0xC0 != 0x80:
            return cut - back
    return cut
