"""Schedules, and what came of their planned times."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from gateway.api.models import View

RunState = Literal["submitted", "skipped", "missed", "failed"]


class LastRun(View):
    planned_at: datetime
    state: RunState
    job: str | None


class ScheduleView(View):
    """A schedule, as its manifest has it. ``next_runs`` are the next five times; none while it is paused. ``origin``
    says who takes it away: an apply, or a call."""

    id: str
    function: str
    name: str
    origin: Literal["manifest", "api"]
    cron: str
    timezone: str
    params: dict[str, Any]
    overlap: Literal["skip", "allow", "replace"]
    catchUp: Literal["none", "one", "all"]
    jitter: str
    paused: bool
    next_runs: list[datetime]
    last_run: LastRun | None
    created_at: datetime
    updated_at: datetime


class ScheduleList(View):
    data: list[ScheduleView]
    next_cursor: str | None


class RunError(View):
    code: str
    message: str


class RunView(View):
    """What came of a planned time. A ``missed`` one may stand for ``count`` times (null: too many to count), the last
    of them ``until``. ``manual``: somebody asked for it, at that moment."""

    planned_at: datetime
    state: RunState
    manual: bool
    job: str | None
    error: RunError | None
    until: datetime | None
    count: int | None


class RunList(View):
    data: list[RunView]
    next_cursor: str | None
