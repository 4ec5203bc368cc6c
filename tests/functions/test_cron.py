"""Cron lines: which are taken, and when they fire, held against a clock that goes minute by minute."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions import timezones
from functions.cron import BOUNDS, MINUTE, MONTHS, WEEKDAYS, Cron, _plain, check_line

ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia",
    "Africa/Casablanca", "America/Sao_Paulo", "Asia/Beirut", "America/Havana", "Antarctica/Troll", "Europe/Dublin",
    "Asia/Kathmandu", "Africa/Cairo", "America/Nuuk",
)  # fmt: skip


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


# What a line means, read without croniter.


def values_of(field: int, text: str) -> set[int]:
    """The values that one field names; of weekdays, 0 to 6."""
    names: tuple[str, ...] = {3: MONTHS, 4: WEEKDAYS}.get(field, ())
    least, most = BOUNDS[field]
    ring = list(range(least, most + (field != 4)))

    def number(word: str) -> int:
        return (names.index(word) + least if word in names else int(word)) % (7 if field == 4 else 100)

    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, dash, high = span.partition("-")
        if low == "*":
            walked = ring
        elif not dash and not step:
            walked = [number(low)]
        elif field == 4 and high == "7" and low in ("0", "sun"):
            walked = [*ring, 0]
        else:
            begin = ring.index(number(low))
            turned = ring[begin:] + ring[:begin]
            walked = turned[: turned.index(number(high)) + 1] if dash else ring[begin:]
        found |= set(walked[:: int(step or 1)])
    return found


class Reference:
    def __init__(self, line: str) -> None:
        minute, hour, self.day, month, self.weekday = line.lower().split()
        self.minutes, self.hours = values_of(0, minute), values_of(1, hour)
        self.months = values_of(3, month)
        self.days = set() if "l" in self.day else values_of(2, self.day)
        self.weekdays = set() if "#" in self.weekday else values_of(4, self.weekday)
        self._on = lru_cache(maxsize=5000)(self._on_day)

    def names(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and wall.hour in self.hours and self._on(wall.year, wall.month, wall.day)

    def _on_day(self, year: int, month: int, day: int) -> bool:
        if month not in self.months:
            return False
        weekday = (calendar.weekday(year, month, day) + 1) % 7
        by_day = day in self.days or ("l" in self.day and day == calendar.monthrange(year, month)[1])
        if "#" in self.weekday:
            return any(
                weekday == min(values_of(4, name)) and (day - 1) // 7 + 1 == int(nth)
                for name, nth in (each.split("#") for each in self.weekday.split(","))
            )
        by_weekday = weekday in self.weekdays
        if self.day.startswith("*") or self.weekday.startswith("*"):
            return by_day and by_weekday
        return by_day or by_weekday


def walls(
    zone_name: str, start: datetime, end: datetime, step: timedelta = MINUTE
) -> Iterator[tuple[datetime, list[datetime]]]:
    """Each minute from ``start`` to ``end``, and the minutes of the wall clock that it is the first to come to; in a
    longer ``step`` all the same, so that it is for lines that name multiples of it only."""
    zone, at = timezones.zone(zone_name), start
    highest = max((start - n * MINUTE).astimezone(zone).replace(tzinfo=None) for n in range(step // MINUTE, 4 * 60, step // MINUTE))
    while at <= end:
        wall = at.astimezone(zone).replace(tzinfo=None)
        fresh = []
        while highest < wall:
            highest += step
            fresh.append(highest)
        yield at, fresh
        at += step


def fired(line: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    reference = Reference(line)
    return [at for at, fresh in walls(zone, start, end) if any(reference.names(wall) for wall in fresh)]


def through(line: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """What ``after`` says, from ``start`` (not counted) to ``end``, step by step."""
    cron, found = Cron(line, zone), list[datetime]()
    at = cron.after(start)
    while at is not None and at <= end:
        found.append(at)
        at = cron.after(at)
    return found


# Lines and moments at random, the moments near a change of the clocks.


@lru_cache(maxsize=1)
def changes() -> list[tuple[str, datetime]]:
    """When clocks change in those zones, to the hour, from 2005 to 2030."""
    found = []
    for name in ZONES:
        zone, before = timezones.zone(name), None
        for day in range(26 * 365):
            at = utc(2005, 1, 1) + timedelta(days=day)
            offset = at.astimezone(zone).utcoffset()
            if before is not None and offset != before:
                hours = (at - timedelta(hours=n) for n in range(25))
                found.append((name, next(hour for hour in hours if hour.astimezone(zone).utcoffset() == before)))
            before = offset
    return found


def span(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    return st.builds(lambda a, b: f"{a}-{b}", number, number)


def parts(field: int) -> st.SearchStrategy[str]:
    least, most = BOUNDS[field]
    names = {3: MONTHS, 4: WEEKDAYS}.get(field)
    single = st.integers(least, most).map(str)
    if names:
        single |= st.sampled_from(names)
    step = st.integers(1, most)
    part = single | span(least, most) | st.builds(lambda s, n: f"{s}/{n}", st.just("*") | single | span(least, most), step)
    return st.lists(part, min_size=1, max_size=3).map(",".join)


def field(number: int) -> st.SearchStrategy[str]:
    return st.just("*") | parts(number)


plain = st.tuples(*(field(number) for number in range(5))).map(" ".join)
last_days = st.tuples(field(0), field(1), st.just("l") | st.just("L"), st.just("*"), st.just("*")).map(" ".join)
nth = st.tuples(
    field(0), field(1), st.just("*"), st.just("*"), st.builds(lambda d, n: f"{d}#{n}", st.integers(0, 6), st.integers(1, 5))
).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(plain | last_days | nth, st.data())
def test_a_line_fires_when_a_clock_that_goes_minute_by_minute_comes_to_it(line: str, data: st.DataObject) -> None:
    zone, change = data.draw(st.sampled_from(changes()))
    try:
        check_line(line)
    except ValueError as error:
        assert "never fires" in str(error)
        return
    start = change - timedelta(minutes=data.draw(st.integers(-60, 4 * 60)))
    end = start + timedelta(minutes=data.draw(st.integers(1, 12 * 60)))
    expected = fired(line, zone, start, end)
    assert through(line, zone, start - MINUTE, end) == expected
    assert list(Cron(line, zone).up_to(end, since=start)) == expected[-1000:]
    assert list(Cron(line, zone).up_to(end, since=start, most=2)) == expected[-2:]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_a_whole_year_of_quarter_hours(zone: str) -> None:
    lines = [
        "30 2 * * *", "0 3 * * *", "*/15 1-3 * * sun", "15 1 29 2 *", "0 0 l * *", "0 0 31 * *", "45 23 30 * *",
        "0 9 * * mon#1", "0 9 13 * fri", "15 2,3 */10 3,4,10,11 *", "0 0 * * 0",
    ]  # fmt: skip
    start, end, quarter = utc(2028, 1, 1), utc(2028, 12, 31), 15 * MINUTE
    meant = {line: Reference(line) for line in lines}
    expected: dict[str, list[datetime]] = {line: [] for line in lines}
    for at, fresh in walls(zone, start, end, quarter):
        for line, reference in meant.items():
            if any(reference.names(wall) for wall in fresh):
                expected[line].append(at)
    for line in lines:
        assert through(line, zone, start - MINUTE, end) == expected[line], line
        assert expected[line], line


@pytest.mark.parametrize("field", range(5))
def test_every_span_of_a_field_is_read_as_it_is_meant(field: int) -> None:
    least, most = BOUNDS[field]
    ends = range(least, most + 1, 1 if most < 13 else 5)
    for text in (f"{a}-{b}{step}" for a in ends for b in ends for step in ("", "/2", "/5")):
        fields = ["*"] * 5
        fields[field] = text
        read = _plain(" ".join(fields))[0].split()[field]
        every = set(range(least, most + (field != 4)))
        assert (every if read == "*" else set(map(int, read.split(",")))) == values_of(field, text), text


# What the rules come to, written out.


@pytest.mark.parametrize(
    ("line", "zone", "after", "expected"),
    [
        # Forward: 02:00 is 03:00. What is skipped runs at 03:00, once, also beside what is meant to.
        ("30 2 * * *", "Europe/Berlin", utc(2026, 3, 28, 12), [utc(2026, 3, 29, 1), utc(2026, 3, 30, 0, 30)]),
        ("*/10 2 * * *", "Europe/Berlin", utc(2026, 3, 28, 12), [utc(2026, 3, 29, 1), utc(2026, 3, 30, 0)]),
        ("0,30 2,3 * * *", "Europe/Berlin", utc(2026, 3, 29, 0, 59), [utc(2026, 3, 29, 1), utc(2026, 3, 29, 1, 30)]),
        ("@hourly", "Europe/Berlin", utc(2026, 3, 29, 0), [utc(2026, 3, 29, 1), utc(2026, 3, 29, 2)]),
        # Back: 02:30 comes twice, and the first time counts.
        ("30 2 * * *", "Europe/Berlin", utc(2026, 10, 24, 12), [utc(2026, 10, 25, 0, 30), utc(2026, 10, 26, 1, 30)]),
        ("30 2 * * *", "Europe/Berlin", utc(2026, 10, 25, 1, 15), [utc(2026, 10, 26, 1, 30)]),
        ("@hourly", "Europe/Berlin", utc(2026, 10, 25, 0), [utc(2026, 10, 25, 2), utc(2026, 10, 25, 3)]),
        # Half an hour, at midnight, and a whole day that Samoa never had.
        ("15 2 * * *", "Australia/Lord_Howe", utc(2026, 10, 3), [utc(2026, 10, 3, 15, 30), utc(2026, 10, 4, 15, 15)]),
        ("0 0 * * *", "Asia/Beirut", utc(2026, 3, 28), [utc(2026, 3, 28, 22), utc(2026, 3, 29, 21)]),
        ("0 9 30 12 *", "Pacific/Apia", utc(2011, 12, 1), [utc(2011, 12, 30, 10), utc(2012, 12, 29, 19)]),
        # The calendar.
        ("0 12 29 2 *", "UTC", utc(2026, 1, 1), [utc(2028, 2, 29, 12), utc(2032, 2, 29, 12)]),
        ("0 12 29 2 *", "UTC", utc(2096, 3, 1), [utc(2104, 2, 29, 12)]),
        ("0 0 31 * *", "UTC", utc(2026, 1, 31), [utc(2026, 3, 31), utc(2026, 5, 31)]),
        ("0 0 L * *", "UTC", utc(2027, 12, 31), [utc(2028, 1, 31), utc(2028, 2, 29), utc(2028, 3, 31)]),
        ("0 0 13 * fri", "UTC", utc(2026, 2, 1), [utc(2026, 2, 6), utc(2026, 2, 13), utc(2026, 2, 20)]),
        ("0 0 * * 7", "UTC", utc(2026, 3, 1), [utc(2026, 3, 8)]),
        ("0 9 * * mon#1", "UTC", utc(2026, 3, 3), [utc(2026, 4, 6, 9)]),
        # Two fields for days: either, unless one begins with *. A span of all values is a field like others.
        ("0 0 1-31 * fri", "UTC", utc(2026, 2, 1), [utc(2026, 2, 2), utc(2026, 2, 3)]),
        ("0 0 13 * 0-6", "UTC", utc(2026, 2, 1), [utc(2026, 2, 2), utc(2026, 2, 3)]),
        ("0 0 * * fri", "UTC", utc(2026, 2, 1), [utc(2026, 2, 6), utc(2026, 2, 13)]),
        ("0 0 13 * *", "UTC", utc(2026, 2, 1), [utc(2026, 2, 13), utc(2026, 3, 13)]),
        ("0 0 */2 * fri", "UTC", utc(2026, 2, 1), [utc(2026, 2, 13), utc(2026, 2, 27)]),
        ("0 0 1-31/2 * fri", "UTC", utc(2026, 2, 1), [utc(2026, 2, 3), utc(2026, 2, 5), utc(2026, 2, 6)]),
        ("0 0 13 * */5", "UTC", utc(2026, 2, 1), [utc(2026, 2, 13), utc(2026, 3, 13), utc(2026, 9, 13)]),
        ("0 0 29 2 */7", "UTC", utc(2026, 1, 1), [utc(2032, 2, 29), utc(2060, 2, 29), utc(2088, 2, 29)]),
        ("0 0 L * fri", "UTC", utc(2026, 2, 22), [utc(2026, 2, 27), utc(2026, 2, 28)]),
    ],
)
def test_planned_times(line: str, zone: str, after: datetime, expected: list[datetime]) -> None:
    check_line(line)
    assert Cron(line, zone).upcoming(after, len(expected)) == expected


def test_a_planned_time_is_later_than_what_it_is_asked_for_to_the_microsecond() -> None:
    cron, noon = Cron("0 12 * * *", "UTC"), utc(2026, 5, 1, 12)
    tick = timedelta(microseconds=1)
    assert cron.after(noon - tick) == noon
    assert cron.after(noon) == cron.after(noon + tick) == utc(2026, 5, 2, 12)
    assert cron.up_to(noon + tick, since=noon) == (noon,)
    assert cron.up_to(noon - tick, since=noon - timedelta(days=1)) == (utc(2026, 4, 30, 12),)


def test_the_last_of_a_year_of_minutes_are_found_without_going_through_it() -> None:
    found = Cron("* * * * *", "Europe/Berlin").up_to(utc(2026, 5, 1), since=utc(2025, 5, 1))
    assert (len(found), found[0], found[-1]) == (1000, utc(2026, 4, 30, 7, 21), utc(2026, 5, 1))


@pytest.mark.parametrize("line", ["@hourly", "@Daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually",
                                  "0 22-2 * * fri-mon", "00 01 * JAN,dec Sun", "1/5 * * * *", "\t0  3 * * *"])  # fmt: skip
def test_lines_that_are_taken(line: str) -> None:
    check_line(line.strip())
    assert Cron(line.strip(), "UTC").after(utc(2026, 1, 1)) is not None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 3 * * * *", "no seconds"), ("* * * * * * *", "has 7"), ("* * * *", "has 4"), ("", "has 0"),
        ("@reboot", "five fields, or one of"), ("@every 5m", "five fields, or one of"),
        ("0 0 30 2 *", "never fires"), ("0 0 31 2,4,6,9,11 *", "never fires"), ("0 0 30-31 feb *", "never fires"),
        ("0 0 30 2 */2", "never fires"),
        ("60 * * * *", "no minute"), ("0 24 * * *", "no hour"), ("0 0 0 * *", "no day of the month"),
        ("0 0 32 * *", "no day of the month"), ("0 0 * 13 *", "no month"), ("0 0 * * 8", "no day of the week"),
        ("0 0 * * xyz", "no day of the week"), ("-1 * * * *", "no minute"), ("1,,2 * * * *", "no minute"),
        ("1, * * * *", "no minute"), ("1.5 * * * *", "no minute"), ("*/0 * * * *", "a step"), ("*/70 * * * *", "a step"),
        ("H * * * *", "no minute"), ("R * * * *", "no minute"), ("? * * * *", "no minute"), ("0 0 15w * *", "no day"),
        ("0 0 lw * *", "no day"), ("0 0 * * l5", "no day"), ("0 0 * * mon#6", "no day"), ("0 0 13 * mon#1", "goes with"),
        ("0 0 L,15 * *", "no day"), ("0 0 \u0663 * *", "character"), ("0 3 * *\n*", "character"), ("0 3 * * *\0", "character"),
        ("*," * 200 + "* * * * *", "longer"),
    ],
)  # fmt: skip
def test_lines_that_are_refused_say_why(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_line(line)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="0123456789*/-,#lLwhHrR?@ monsuja\t\n\0é", max_size=40))
def test_whatever_is_no_line_is_a_value_error(line: str) -> None:
    try:
        check_line(line)
    except ValueError:
        return
    assert Cron(line, "Europe/Berlin").after(utc(2026, 1, 1)) is not None


@pytest.mark.parametrize("name", ["Europe/Berln", "europe/berlin", "", "../UTC", "/etc/passwd", "Europe", "CEST", "UTC\0", "zones"])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        timezones.zone(name)


def test_every_zone_of_the_package_can_be_read() -> None:
    assert {"Europe/Berlin", "UTC", "America/Argentina/Ushuaia"} <= timezones.names()
    for name in timezones.names():
        assert Cron("0 3 * * *", name).after(utc(2026, 1, 1)) is not None
