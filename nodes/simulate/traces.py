"""Traces: a CSV of jobs that came once, to be played again."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from functions.errors import Invalid
from functions.quantities import parse_bytes, parse_duration
from nodes.simulate.loads import LONGEST, MOST_JOBS, Job

COLUMNS = ("arrival", "duration", "class", "slots", "memory", "account", "lane", "deadline")


def read(path: Path) -> list[Job]:
    """The jobs of a file, by arrival, the first at 0 s; raises ``Invalid`` with the line that cannot be read.

    ``arrival`` is seconds or an RFC 3339 time, ``duration`` seconds or ``4m``. Optional: ``class`` (which durations
    belong together), ``slots``, ``memory`` (``1Gi``), ``account``, ``lane`` (``standard`` or ``paid``), ``deadline``.

    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return parse(file, path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None


def parse(lines: Iterable[str], name: str) -> list[Job]:
    rows = csv.DictReader(lines)
    missing = {"arrival", "duration"} - set(rows.fieldnames or ())
    if missing:
        raise Invalid(f"{name}: the first line names the columns; {' and '.join(sorted(missing))} must be among them")
    jobs: list[Job] = []
    accounts: dict[str, int] = {}
    try:
        for row in rows:
            jobs.append(_job(row, accounts))
            if len(jobs) > MOST_JOBS:
                raise Invalid(f"{name}: more than {MOST_JOBS:,} jobs")
    except (ValueError, OverflowError, csv.Error) as error:
        raise Invalid(f"{name}, line {rows.line_num}: {error}") from None
    if not jobs:
        raise Invalid(f"{name}: no jobs in it")
    first = min(job.at for job in jobs)
    return sorted((_since(job, first) for job in jobs), key=lambda job: job.at)


def _job(row: Mapping[str, str | None], accounts: dict[str, int]) -> Job:
    def cell(name: str, otherwise: str) -> str:
        return (row.get(name) or "").strip() or otherwise

    at, lane = _moment(cell("arrival", "")), cell("lane", "standard")
    if lane not in ("standard", "paid"):
        raise ValueError(f"lane {lane!r} is neither standard nor paid")
    deadline = cell("deadline", "")
    account = cell("account", "")
    slots = int(cell("slots", "1"))
    if slots < 1:
        raise ValueError("a job takes at least one slot")
    return Job(
        at=at,
        runs=min(max(_seconds(cell("duration", "")), 0.001), LONGEST),
        kind=cell("class", "job"),
        slots=slots,
        memory=parse_bytes(cell("memory", "1")),
        account=accounts.setdefault(account, len(accounts) + 1),
        paid=lane == "paid",
        deadline=at + _seconds(deadline) if deadline and lane == "paid" else None,
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
