"""A schedule of a function: when it makes jobs, with which params, and what becomes of times that it could not keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from functions import filling, timezones
from functions.cron import LONGEST_LINE, Cron, check_line
from functions.documents import pointer, shown
from functions.errors import Invalid
from functions.expressions import SCHEDULE_ROOTS, MissingValue
from functions.fields import Part, at_most, checked, duration_between, fault
from functions.names import Name
from functions.params import ParamsSchema

MOST_SCHEDULES = 20
LONGEST_JITTER = timedelta(days=1)
PARAMS_BYTES = 64 * 1024
"""Each job has them in its row."""

Overlap = Literal["skip", "allow", "replace"]
CatchUp = Literal["none", "one", "all"]


def _check_zone(name: str) -> None:
    timezones.zone(name)


def _check_params(params: dict[str, Any]) -> dict[str, Any]:
    filling.check_templates(params, SCHEDULE_ROOTS)
    if len(json.dumps(params)) > PARAMS_BYTES:
        raise fault(f"is longer than {PARAMS_BYTES // 1024} KiB: give the job a file")
    return params


class ScheduleSpec(Part):
    """``overlap``: when the schedule's job before has not ended. ``catchUp``: when nobody was there in time."""

    name: Name
    cron: Annotated[str, checked(check_line, maxLength=LONGEST_LINE)]
    timezone: Annotated[str, checked(_check_zone)] = "UTC"
    params: Annotated[dict[str, Any], at_most(1000), AfterValidator(_check_params)] = Field(default_factory=dict)
    overlap: Overlap = "skip"
    catch_up: CatchUp = Field("one", alias="catchUp")
    jitter: Annotated[timedelta, duration_between(timedelta(0), LONGEST_JITTER)] = timedelta(0)

    @property
    def times(self) -> Cron:
        return Cron(self.cron, self.timezone)


def check_distinct(schedules: tuple[ScheduleSpec, ...]) -> tuple[ScheduleSpec, ...]:
    """Refuse two of one name."""
    names = [schedule.name for schedule in schedules]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fault(f"the name {shown(name)} stands twice", at=pointer(index, "name"))
    return schedules


def time_text(planned: datetime) -> str:
    """A planned time as jobs see it: RFC 3339, UTC, whole seconds."""
    return planned.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def params_of(
    params: Mapping[str, Any], name: str, planned: datetime, *, function: str | None, version: int
) -> dict[str, Any]:
    """The params of the job for a planned time; raises ``MissingValue``."""
    values = {
        "schedule": {"time": time_text(planned)},
        "trigger": {"kind": "schedule", "name": name},
        "function": {"name": function, "version": version},
    }
    return filling.fill_in(params, values, SCHEDULE_ROOTS)


def impossible_params(schedule: ScheduleSpec, schema: ParamsSchema) -> Iterator[tuple[str, str]]:
    """Params that the function never takes: the pointer of each into the schedule, and what is wrong.

    One that is missing is not among them: a schema may grow a required one while the schedule is as it was, and then
    each planned time says what is missing.
    """
    sample = datetime(2026, 1, 31, 12, tzinfo=UTC)
    try:
        schema.complete(params_of(schedule.params, schedule.name, sample, function="f", version=1))
    except MissingValue as error:
        yield "/params", str(error)
    except Invalid as error:
        given = tuple(pointer(name) for name in schedule.params)
        for each in error.errors:
            if any(each.pointer == one or each.pointer.startswith(f"{one}/") for one in given):
                yield "/params" + each.pointer, each.message
