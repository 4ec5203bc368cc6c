"""Traces: a CSV of jobs that came once, to be played again."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from functions.errors import Invalid
from functions.quantities import parse_bytes, parse_duration
from nodes.simulate.loads import DAY, MONDAY, MOST_JOBS, Job

COLUMNS = ("arrival", "duration", "class", "slots", "memory", "account", "lane", "deadline")
LONGEST = 7 * DAY
"""The longest ``timeout`` of a manifest."""
A_DATE = 1e8
"""Seconds from here on are UNIX time (1973); fewer count from a Monday's midnight, UTC."""


@dataclass(frozen=True, slots=True)
class Trace:
    """``jobs`` by arrival, the first at 0 s: that is ``begins``, as UNIX time. ``unused`` are columns that say
    nothing here."""

    jobs: list[Job]
    begins: float
    unused: tuple[str, ...] = ()


def read(path: Path, *, deadline: float) -> Trace:
    """The jobs of a file; raises ``Invalid`` with the line that cannot be read.

    ``arrival`` is seconds or an RFC 3339 time, ``duration`` seconds or ``4m``. Optional: ``class`` (which durations
    belong together), ``slots``, ``memory`` (``1Gi``), ``account``, ``lane`` (``standard`` or ``paid``), ``deadline``:
    within what time a paid job must start, else within ``deadline`` seconds. One without would wait for ever where no
    other job pays for a node.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return parse(file, path.name, deadline=deadline)
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None


def parse(lines: Iterable[str], name: str, *, deadline: float) -> Trace:
    rows = csv.DictReader(lines)
    try:
        columns = rows.fieldnames = [column.strip() for column in rows.fieldnames or ()]
    except csv.Error as error:
        raise Invalid(f"{name}, line 1: {error}") from None
    if twice := {column for column in columns if column and columns.count(column) > 1}:
        raise Invalid(f"{name}: the first line has {' and '.join(map(repr, sorted(twice)))} more than once")
    if missing := {"arrival", "duration"} - set(columns):
        raise Invalid(f"{name}: the first line names the columns; {' and '.join(sorted(missing))} must be among them")
    jobs: list[Job] = []
    accounts: dict[str, int] = {}
    try:
        for row in rows:
            jobs.append(_job(row, accounts, deadline))
            if len(jobs) > MOST_JOBS:
                raise Invalid(f"{name}: more than {MOST_JOBS:,} jobs")
    except (ValueError, OverflowError, csv.Error) as error:
        raise Invalid(f"{name}, line {rows.line_num}: {error}") from None
    if not jobs:
        raise Invalid(f"{name}: no jobs in it")
    first = min(job.at for job in jobs)
    jobs = sorted((_since(job, first) for job in jobs), key=lambda job: job.at)
    unused = tuple(column for column in columns if column and column not in COLUMNS)
    return Trace(jobs, first if first >= A_DATE else MONDAY + first, unused)


def _job(row: Mapping[str, str | None], accounts: dict[str, int], deadline: float) -> Job:
    def cell(name: str, otherwise: str) -> str:
        return (row.get(name) or "").strip() or otherwise

    at, lane = _moment(cell("arrival", "")), cell("lane", "standard")
    if lane not in ("standard", "paid"):
        raise ValueError(f"lane {lane!r} is neither standard nor paid")
    within, account, slots = cell("deadline", ""), cell("account", ""), cell("slots", "1")
    if not slots.isdecimal() or int(slots) < 1:
        raise ValueError(f"slots {slots!r}: a job takes one at least, and whole ones")
    runs = _seconds(cell("duration", ""))
    if not 0 <= runs <= LONGEST:
        raise ValueError(f"duration {cell('duration', '')!r}: a job runs for 7 days at most, and not less than 0 s")
    return Job(
        at=at,
        runs=max(runs, 0.001),
        kind=cell("class", "job"),
        slots=int(slots),
        memory=parse_bytes(cell("memory", "1")),
        account=accounts.setdefault(account, len(accounts) + 1),
        paid=lane == "paid",
        deadline=at + (_seconds(within) if within else deadline) if lane == "paid" else None,
    )


def _since(job: Job, first: float) -> Job:
    deadline = None if job.deadline is None else job.deadline - first
    return Job(job.at - first, job.runs, job.kind, job.slots, job.memory, job.account, job.paid, deadline)


def _moment(text: str) -> float:
    try:
        return _finite(float(text))
    except ValueError:
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise ValueError(f"arrival {text!r} is neither seconds nor a time") from None


def _seconds(text: str) -> float:
    try:
        return _finite(float(text))
    except ValueError:
        try:
            return parse_duration(text).total_seconds()
        except ValueError:
            raise ValueError(f"{text!r} is no duration: write seconds, 30s, 4m or 1h30m") from None


def _finite(value: float) -> float:
    if not math.isfinite(value) or abs(value) > 1e12:
        raise ValueError("too large")
    return value
