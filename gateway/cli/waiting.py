"""Waiting for a job to end, with what a terminal shows meanwhile. Results are for stdout; all of this is on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from gateway.cli.client import Api
from gateway.cli.failures import Failed, in_one_line
from gateway.cli.output import log_text, note, stderr_console

if TYPE_CHECKING:
    from rich.progress import Progress

TERMINAL = frozenset({"succeeded", "failed", "timed_out", "cancelled", "expired"})
WAIT_S = 30
"""How long the gateway may hold one answer."""
PATIENCE_S = 60.0
"""How long the gateway may be away, restarting for instance, before waiting is given up."""

Show = Callable[[dict[str, Any]], None]


def wait(
    api: Api, job_id: str, *, deadline: float | None = None, show: Show | None = None, step_s: int = WAIT_S
) -> dict[str, Any]:
    """The finished job. Raises ``TimeoutError`` at ``deadline``; ``show`` gets the job every ``step_s`` or so."""
    while True:
        left = step_s if deadline is None else deadline - time.monotonic()
        asked = time.monotonic()
        hold = max(0, min(step_s, int(left)))
        job = api.get(f"/v1/jobs/{job_id}", {"wait": hold or None}, wait_s=hold, patience_s=PATIENCE_S)
        if show is not None:
            show(job)
        if job["status"] in TERMINAL:
            return job
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError
        # A gateway that is about to stop answers at once: it must not be asked a thousand times a second.
        early = 0.5 - (time.monotonic() - asked)
        if early > 0:
            time.sleep(early if deadline is None else max(0.0, min(early, deadline - time.monotonic())))


class Watch:
    """What the user sees on stderr while a job runs: its lines and, on a terminal, a bar below them."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None) if bars else None

    def line(self, text: str) -> None:
        """A line of the job's output."""
        if self._bars is None:
            note(log_text(text, sys.stderr))
        else:
            from rich.text import Text

            self._bars.console.print(Text.from_ansi(log_text(text, sys.stderr)))

    def job(self, job: dict[str, Any]) -> None:
        if self._bars is None or self._task is None:
            return
        share = job.get("progress")
        self._bars.update(
            self._task,
            description=describe(job),
            total=None if share is None else 1.0,
            completed=share or 0.0,
        )


@contextmanager
def watching() -> Iterator[Watch]:
    if not sys.stderr.isatty():
        yield Watch(None)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as bars:
        yield Watch(bars)


def describe(job: dict[str, Any]) -> str:
    """A job in a few words: where it is and why it is not further."""
    said = f"{job.get('function') or job['id']} {job['status']}"
    if job["status"] == "running" and (job.get("attempt") or 1) > 1:
        said += f", attempt {job['attempt']} of {job['max_attempts']}"
    if job.get("wait_reason"):
        said += f" ({job['wait_reason']})"
    return in_one_line(said)


def wait_watched(api: Api, job_id: str, *, deadline: float | None = None) -> dict[str, Any]:
    """The finished job, with a bar on a terminal."""
    with watching() as watch:
        return wait(api, job_id, deadline=deadline, show=watch.job, step_s=_step_s())


def follow(api: Api, job_id: str, *, deadline: float | None = None) -> dict[str, Any]:
    """The finished job; its lines go to stderr as they come."""
    from gateway.cli.sse import stream

    with watching() as watch, _polled(api, job_id, watch):
        for event in stream(api, f"/v1/jobs/{job_id}/logs", {"follow": "true"}, deadline=deadline):
            if event.kind == "log":
                watch.line(event.data)
    return wait(api, job_id, deadline=deadline)


@contextmanager
def _polled(api: Api, job_id: str, watch: Watch) -> Iterator[None]:
    """The bar moves while the main thread reads the log stream."""
    if not sys.stderr.isatty():
        yield
        return
    done = Event()

    def poll() -> None:
        while not done.is_set():
            try:
                job = api.get(f"/v1/jobs/{job_id}")
            except (Failed, RuntimeError):  # the stream tells of it; RuntimeError: the client was closed
                pass
            else:
                watch.job(job)
            done.wait(_step_s())

    thread = Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=1)


def _step_s() -> int:
    return 1 if sys.stderr.isatty() else WAIT_S
