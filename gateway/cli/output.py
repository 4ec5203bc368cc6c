"""What commands print: results on stdout, everything else on stderr; tables for people, JSON for scripts.

Names, messages and log lines come from strangers' containers: nothing that a terminal would obey gets through.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TextIO

from gateway.cli.failures import PipeClosed, in_one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

STYLES = {
    "succeeded": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "running": "cyan",
    "ready": "green",
    "draining": "yellow",
    "silent": "red",
    "skipped": "yellow",
    "missed": "red",
    "paused": "yellow",
}
"""Colours of the states that tables show."""

NO_WIDTH = 100_000
"""Output that no terminal shows is never cut or wrapped."""

_COLOURS = re.compile(r"(\x1b\[[0-9;]{0,32}m)")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def out(text: str, end: str = "\n") -> None:
    """Print a result. Raises ``PipeClosed`` when its reader has gone."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise PipeClosed from None


def out_bytes(data: bytes) -> None:
    """Print bytes as they are."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise PipeClosed from None


def note(text: str) -> None:
    """Tell the user something that is not the result."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        pass


def out_json(value: Any) -> None:
    out(json.dumps(value, ensure_ascii=False, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing yet") -> None:
    """Print rows under their heads; with none, say ``empty`` on stderr."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        # Ids, the first column, are for copying; a long last column is cut by the terminal's edge.
        drawn.add_column(column, no_wrap=True, overflow="ellipsis" if number else "ignore")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    if drawn.row_count:
        out(_rendered(drawn))
    else:
        note(empty)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print one thing's properties, one a line; those that are None or empty are left out."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != "":
            drawn.add_row(name, _cell(value))
    out(_rendered(drawn))


def stderr_console() -> Console:
    """For progress bars, which only a terminal sees."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)


def log_text(line: str, stream: TextIO) -> str:
    """A line of a job's output, safe for a terminal (colours and tabs stay); elsewhere as it is."""
    if not stream.isatty():
        return line
    parts = _COLOURS.split(line)
    safe = [part if number % 2 else _CONTROLS.sub(_caret, part) for number, part in enumerate(parts)]
    if len(parts) == 1:
        return safe[0]
    if "NO_COLOR" in os.environ:
        return "".join(safe[::2])
    return "".join(safe) + "\x1b[0m"


def age(text: str | None) -> str:
    """How long ago an RFC 3339 time was, as people say it."""
    return "" if text is None else f"{span(datetime.now(UTC) - moment(text))} ago"


def ahead(text: str) -> str:
    """How soon an RFC 3339 time is, as people say it."""
    left = moment(text) - datetime.now(UTC)
    return f"in {span(left)}" if left > timedelta(0) else "now"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def span(length: timedelta) -> str:
    """``length`` in its largest one or two units."""
    seconds = max(0.0, length.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours < 1:
        return f"{minutes}m{int(seconds % 60):02}s" if minutes < 10 else f"{minutes}m"
    return f"{hours}h{minutes % 60:02}m" if days < 2 else f"{days}d"


def size(count: int) -> str:
    """Bytes in decimal units, as stores bill them."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def _cell(value: object) -> Text:
    from rich.text import Text

    text = "" if value is None else in_one_line(str(value))
    return Text(text, style=STYLES.get(text, ""))


def _rendered(drawn: RenderableType) -> str:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=None if terminal else NO_WIDTH, highlight=False
    )
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _caret(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "" if code == 0x0D else f"^{chr(code ^ 0x40)}" if code < 0x80 else "�"
