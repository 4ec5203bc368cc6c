"""When a cron line fires in a time zone. Values only. croniter steps over the minutes of a wall clock; what the line's
values are, and what a change of the clocks does to them, is decided here. (croniter 7 reads ``5-5`` as all values, and
counts steps anew where a span goes round.)

A planned time is the first moment at which the zone's wall clock has reached a minute that the line names. So a minute
that the clock skips runs at the next one that exists, and one that comes twice runs the first time only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from functions import timezones
from functions.documents import shown

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
COUNTS = (60, 24, 31, 12, 7)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
NAMES = {3: MONTHS, 4: WEEKDAYS}
LONGEST_LINE = 256
MOST_AT_ONCE = 1000
"""Planned times that ``up_to`` looks back for."""
MINUTE = timedelta(minutes=1)

_VALUE = "[0-9]{1,2}|[a-z]{3}"
_PART = re.compile(rf"(?:\*|(?P<first>{_VALUE})(?:-(?P<last>{_VALUE}))?)(?:/(?P<step>[0-9]{{1,2}}))?")
_NTH = re.compile(rf"({_VALUE})#([1-5])")
_A_LEAP_YEAR = datetime(2024, 1, 1)


def check_line(line: str) -> None:
    """Raise ``ValueError``, in plain words, for a line that cannot be read or never fires."""
    try:
        _steps(line, _A_LEAP_YEAR).get_next(datetime)
    except CroniterBadDateError:
        raise ValueError("never fires: there is no such date") from None


def _steps(line: str, wall: datetime) -> croniter:
    plain, either_day = _plain(line)
    return croniter(plain, wall, day_or=either_day)


@dataclass(frozen=True, slots=True)
class Cron:
    """A line that ``check_line`` lets pass, and the name of a zone. Times in and out are aware; out they are UTC."""

    line: str
    timezone: str

    def after(self, at: datetime) -> datetime | None:
        """The first planned time that is later than ``at``; None if there is none."""
        return _after(self.line, self.timezone, at)

    def upcoming(self, at: datetime, count: int) -> list[datetime]:
        """The next ``count`` planned times."""
        found: list[datetime] = []
        following = self.after(at)
        while following is not None and len(found) < count:
            found.append(following)
            following = self.after(following)
        return found

    def up_to(self, until: datetime, *, since: datetime, most: int = MOST_AT_ONCE) -> tuple[datetime, ...]:
        """The last planned times (``most`` at most) from ``since`` to ``until``, both included, in order."""
        # After a downtime many schedules ask for the same times: seconds would only keep them apart.
        return _up_to(self.line, self.timezone, since, until.replace(second=0, microsecond=0), most)


@lru_cache(maxsize=4096)
def _plain(line: str) -> tuple[str, bool]:
    """The line as croniter cannot mistake it: lists of numbers, ``*`` where all values are meant. And whether one of
    the two fields for days is enough: as in Vixie's cron, unless one of them begins with ``*``."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"is longer than {LONGEST_LINE} characters")
    if not line.isascii() or not line.isprintable():
        raise ValueError("has a character that no cron line has")
    line = line.lower().strip()
    if line.startswith("@"):
        if line not in ALIASES:
            raise ValueError(f"there is no {shown(line)}: write five fields, or one of {', '.join(ALIASES)}")
        return ALIASES[line], False
    fields = line.split()
    if len(fields) == 6:
        raise ValueError("has six fields: a schedule has no seconds, leave that field out")
    if len(fields) != 5:
        raise ValueError(f"needs five fields ({', '.join(FIELDS)}) and has {len(fields)}")
    if "#" in fields[4] and fields[2] != "*":
        raise ValueError("#, a weekday of the month, goes with * as the day of the month only")
    plain = [_plain_field(number, field) for number, field in enumerate(fields)]
    either_day = not (fields[2].startswith("*") or fields[4].startswith("*"))
    if either_day and "*" in (plain[2], plain[4]):
        plain[2] = plain[4] = "*"
    return " ".join(plain), either_day


def _plain_field(number: int, field: str) -> str:
    if number == 2 and field == "l":
        return field
    parts = field.split(",")
    if number == 4 and "#" in field:
        return ",".join(_nth_weekday(part) for part in parts)
    values = sorted({value for part in parts for value in _values(number, part)})
    return "*" if len(values) == COUNTS[number] else ",".join(map(str, values))


def _nth_weekday(part: str) -> str:
    found = _NTH.fullmatch(part)
    if found is None:
        raise ValueError(f"{shown(part)} is no {FIELDS[4]}: write mon#1 for the first Monday of a month")
    return f"{_value(4, found[1]) % 7}#{found[2]}"


def _values(number: int, part: str) -> list[int]:
    """The values of one part of a field; a span whose end is before its begin goes round."""
    name, (least, most) = FIELDS[number], BOUNDS[number]
    found = _PART.fullmatch(part)
    if found is None:
        raise ValueError(f"{shown(part)} is no {name}")
    step = int(found["step"] or 1)
    if not 1 <= step <= most:
        raise ValueError(f"{shown(part)}: a step of the {name} is between 1 and {most}")
    count = COUNTS[number]
    if found["first"] is None:
        offsets = range(0, count, step)
        first = least
    else:
        first = last = _value(number, found["first"])
        if found["last"] is not None:
            last = _value(number, found["last"])
        elif found["step"] is not None:
            last = least + count - 1
        if number == 4 and first == 7:
            # Sunday is 0 as well: only as the end of a span it comes after Saturday.
            first, last = 0, 0 if last == 7 else last
        offsets = range(0, (last - first if last >= first else last - first + count) + 1, step)
    return [least + (first - least + offset) % count for offset in offsets]


def _value(number: int, text: str) -> int:
    name, (least, most), names = FIELDS[number], BOUNDS[number], NAMES.get(number, ())
    if text in names:
        return names.index(text) + least
    if not (text.isdecimal() and least <= int(text) <= most):
        raise ValueError(f"{shown(text)} is no {name}: {least} to {most}")
    return int(text)


@lru_cache(maxsize=8192)
def _after(line: str, timezone: str, at: datetime) -> datetime | None:
    zone = timezones.zone(timezone)
    steps = _steps(line, _wall(at, zone))
    try:
        # While the clock repeats minutes, those that it has had are stepped over.
        while (found := _reached(steps.get_next(datetime), zone)) <= at:
            pass
    except CroniterBadDateError:
        return None
    return found


@lru_cache(maxsize=256)
def _up_to(line: str, timezone: str, since: datetime, until: datetime, most: int) -> tuple[datetime, ...]:
    zone = timezones.zone(timezone)
    found: list[datetime] = []
    # In a repeated hour the clock has been further on than it is.
    local = until.astimezone(zone)
    ahead = max(_offset(local.replace(fold=0)) - _offset(local), timedelta(0))
    steps = _steps(line, _wall(until, zone) + ahead + MINUTE)
    while len(found) < most:
        try:
            at = _reached(steps.get_prev(datetime), zone)
        except CroniterBadDateError:
            break
        if at < since:
            break
        if at <= until and (not found or at < found[-1]):
            found.append(at)
    return tuple(reversed(found))


def _wall(at: datetime, zone: ZoneInfo) -> datetime:
    """What a clock on the wall shows, to the minute: without a zone, which croniter then knows nothing of."""
    return at.astimezone(zone).replace(second=0, microsecond=0, tzinfo=None)


def _reached(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first moment (UTC) at which the clock has come to ``wall`` or behind it."""
    local = wall.replace(tzinfo=zone, fold=0)
    at = local.astimezone(UTC)
    if at.astimezone(zone).replace(tzinfo=None) == wall:
        return at
    # It is skipped: ``fold`` 0 has the rules from before, 1 those from after. Between the two lies the change.
    low, high, later = local.replace(fold=1).astimezone(UTC), at, _offset(local.replace(fold=1))
    while high - low > MINUTE:
        middle = low + max((high - low) // MINUTE // 2, 1) * MINUTE
        if _offset(middle.astimezone(zone)) == later:
            high = middle
        else:
            low = middle
    return high


def _offset(local: datetime) -> timedelta:
    offset = local.utcoffset()
    assert offset is not None
    return offset
