"""What the demo prints: steps with their time, log lines as they come, a bar for each running job."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from gateway.cli.demo.instance import Instance
from gateway.cli.demo.jobs import Watcher
from gateway.cli.output import log_text
from gateway.cli.waiting import describe

FIRST_LINES = 8
"""How much of a job's log is shown: ffmpeg is talkative."""
MARGIN = " " * 10


@dataclass(frozen=True)
class Done:
    function: str
    job: str
    callback: str
    """Its ``webhook-id``."""
    files: list[str]


class Show:
    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self._started = time.monotonic()

    def step(self, what: str, text: str) -> None:
        seconds = f"{time.monotonic() - self._started:6.1f} s"
        self._console.print(Text.assemble((seconds, "dim"), "  ", (f"{what:<10}", "bold"), text))

    @contextmanager
    def running(self) -> Iterator[Watcher]:
        """Bars on a terminal; elsewhere a line at every quarter."""
        columns = (
            TextColumn(MARGIN + "{task.description:<26}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
        )
        shown = self._console.is_terminal and not self._console.quiet
        bars = Progress(*columns, console=self._console, transient=True, disable=not shown)
        tasks: dict[str, TaskID] = {}
        lines: Counter[str] = Counter()
        quarters: Counter[str] = Counter()

        def line(name: str, text: str) -> None:
            lines[name] += 1
            if lines[name] <= FIRST_LINES:
                self._console.print(Text(f"{MARGIN}{name} │ {log_text(text, sys.stdout)}", style="dim"))

        def job(job: dict[str, Any]) -> None:
            name, share = str(job["function"]), job["progress"] or 0.0
            if name not in tasks:
                tasks[name] = bars.add_task("", total=1.0)
            bars.update(tasks[name], description=describe(job), completed=share)
            if not shown and int(share * 4) > quarters[name]:
                quarters[name] = int(share * 4)
                self.step("progress", f"{name}: {share:.0%}")

        with bars:
            yield Watcher(line, job)
        for name, count in lines.items():
            if count > FIRST_LINES:
                self._console.print(Text(f"{MARGIN}{name} │ … {count - FIRST_LINES} more lines", style="dim"))

    def look_around(self, done: list[Done], up: Instance) -> None:
        """While the instance is up."""
        rgrid = _command()
        self._console.print(
            f"\nIt stays up until Ctrl-C. In another terminal:\n\n"
            f"  export RGRID_URL={up.url} RGRID_API_KEY={up.key}\n"
            f"  {rgrid} jobs\n"
            f"  {rgrid} logs {done[-1].job}\n"
        )

    def end(self, done: list[Done], data_dir: Path) -> None:
        """Where the files are, and how to see the rest again."""
        rgrid = _command()
        self._console.print()
        self._console.print(Text(f"The picture: {done[0].files[0]}", style="bold green"))
        for job in done[1:]:
            self._console.print(f"The video:   {', '.join(job.files)}")
        self._console.print(
            f"\nNothing is left running. To look around, start it again, and follow what it prints:\n\n"
            f"  {rgrid} up --data-dir {data_dir}\n"
            f"  {rgrid} jobs\n"
            f"  {rgrid} logs {done[-1].job}\n"
            f"  {rgrid} functions"
        )


def _command() -> str:
    """How the user calls rgrid here."""
    return "rgrid" if shutil.which("rgrid") else sys.argv[0]
