from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from nodes.policy.spare_hours import ALWAYS, NEVER, parse

OFFICE = "mon-fri 08:00-18:00 Europe/Berlin"


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


# 2026-11-23 is a Monday. Berlin's clocks go forward on 29 March 2026 at 02:00, and back on 25 October at 03:00.
@pytest.mark.parametrize(
    ("hours", "moment", "held"),
    [
        ("", "2026-11-23T12:00Z", False),
        (" , ", "2026-11-23T12:00Z", False),
        ("always", "2026-11-23T12:00Z", True),
        # Days, and the first and the last minute, by the zone's clock
        (OFFICE, "2026-11-23T07:59:59+01:00", False),
        (OFFICE, "2026-11-23T08:00+01:00", True),
        (OFFICE, "2026-11-27T17:59:59+01:00", True),
        (OFFICE, "2026-11-27T18:00+01:00", False),
        (OFFICE, "2026-11-28T12:00+01:00", False),
        (OFFICE, "2026-11-29T12:00+01:00", False),
        (OFFICE, "2026-07-01T06:00Z", True),
        (OFFICE, "2026-12-01T06:59Z", False),
        ("8:00-18:00", "2026-11-28T08:00Z", True),
        ("8:00-18:00", "2026-11-28T07:59Z", False),
        ("mon wed 08:00-18:00", "2026-11-25T09:00Z", True),
        ("mon wed 08:00-18:00", "2026-11-24T09:00Z", False),
        ("SAT-Sat 00:00-24:00", "2026-11-28T23:59:59Z", True),
        ("sat 00:00-24:00", "2026-11-29T00:00Z", False),
        ("sat-mon 10:00-11:00", "2026-11-29T10:30Z", True),
        ("sat-mon 10:00-11:00", "2026-11-23T10:30Z", True),
        ("sat-mon 10:00-11:00", "2026-11-24T10:30Z", False),
        ("sat-mon 10:00-11:00", "2026-11-27T10:30Z", False),
        # The zone's Monday begins while it is Sunday in UTC
        ("mon 00:00-24:00 Asia/Tokyo", "2026-11-22T15:00Z", True),
        ("mon 00:00-24:00 Asia/Tokyo", "2026-11-22T14:59Z", False),
        # Past midnight: it is Friday's
        ("fri 22:00-06:00", "2026-11-27T22:00Z", True),
        ("fri 22:00-06:00", "2026-11-28T05:59Z", True),
        ("fri 22:00-06:00", "2026-11-28T06:00Z", False),
        ("fri 22:00-06:00", "2026-11-28T22:00Z", False),
        ("fri 22:00-06:00", "2026-11-27T05:00Z", False),
        ("sun 22:00-02:00", "2026-11-23T01:00Z", True),
        ("fri 22:00-00:00", "2026-11-27T23:59Z", True),
        ("fri 22:00-00:00", "2026-11-28T00:00Z", False),
        # One of several
        (f"{OFFICE}, sat 09:00-12:00", "2026-11-28T09:00Z", True),
        (f"{OFFICE}, sat 09:00-12:00", "2026-11-23T09:00+01:00", True),
        (f"{OFFICE}, sat 09:00-12:00", "2026-11-28T12:00Z", False),
        # What the clock skips is not there: half past one is followed by three
        ("sun 01:30-02:30 Europe/Berlin", "2026-03-29T00:59:59Z", True),
        ("sun 01:30-02:30 Europe/Berlin", "2026-03-29T01:00Z", False),
        ("sun 02:15-04:00 Europe/Berlin", "2026-03-29T01:00Z", True),
        ("sun 02:15-04:00 Europe/Berlin", "2026-03-29T02:00Z", False),
        # What it repeats comes twice
        ("sun 02:30-03:00 Europe/Berlin", "2026-10-25T00:30Z", True),
        ("sun 02:30-03:00 Europe/Berlin", "2026-10-25T01:00Z", False),
        ("sun 02:30-03:00 Europe/Berlin", "2026-10-25T01:30Z", True),
        ("sat 22:00-04:00 Europe/Berlin", "2026-10-25T02:59Z", True),
        ("sat 22:00-04:00 Europe/Berlin", "2026-10-25T03:00Z", False),
    ],
)
def test_hours_go_by_the_clock_and_the_days_of_their_zone(hours: str, moment: str, held: bool) -> None:
    assert parse(hours).hold(at(moment)) is held


@pytest.mark.parametrize(
    ("hours", "moment", "begins"),
    [
        (OFFICE, "2026-11-23T07:00+01:00", "2026-11-23T08:00+01:00"),
        (OFFICE, "2026-11-23T08:00+01:00", "2026-11-24T08:00+01:00"),
        (OFFICE, "2026-11-27T19:00+01:00", "2026-11-30T08:00+01:00"),
        ("fri 22:00-06:00", "2026-11-27T23:00Z", "2026-12-04T22:00Z"),
        (f"{OFFICE}, sat 09:00-12:00", "2026-11-27T19:00+01:00", "2026-11-28T09:00Z"),
        ("09:00-10:00 Europe/Berlin", "2026-03-28T09:00+01:00", "2026-03-29T09:00+02:00"),
    ],
)
def test_the_next_beginning_is_known(hours: str, moment: str, begins: str) -> None:
    assert parse(hours).next_after(at(moment)) == at(begins)


def test_what_is_always_or_never_does_not_begin() -> None:
    assert (parse(""), parse("always")) == (NEVER, ALWAYS)
    assert NEVER.next_after(0) == ALWAYS.next_after(0) == float("inf")


def test_a_simulation_counts_from_a_moment_of_its_own() -> None:
    hours = replace(parse("mon 08:00-09:00"), zero=at("2026-11-23T00:00Z"))
    assert [hours.hold(hour * 3600.0) for hour in (7, 8, 9, 8 + 7 * 24)] == [False, True, False, True]
    assert hours.next_after(0) == 8 * 3600.0


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        ("never", "“never” is no day"),
        ("mon-fri", "“mon-fri” has no times: write for instance mon-fri 08:00-18:00 Europe/Berlin"),
        ("Europe/Berlin", "“Europe/Berlin” is no day"),
        ("mo 08:00-18:00", "“mo” is no day"),
        ("mon- 08:00-18:00", "“” is no day"),
        ("mon-tue-wed 08:00-18:00", "“tue-wed” is no day"),
        ("mon 8-18", "“8-18” is no pair of times: write 08:00-18:00"),
        ("mon 08:00 - 18:00", "“08:00” is no pair of times"),
        ("mon 08:60-18:00", "“08:60-18:00” is no pair of times"),
        ("24:00-25:00", "a day has the times 00:00 to 24:00"),
        ("08:00-24:01", "a day has the times 00:00 to 24:00"),
        ("08:00-08:00", "begins when it ends: write 00:00-24:00"),
        ("08:00-18:00 Berlin", "there is no time zone “Berlin”: did you mean Europe/Berlin?"),
        ("08:00-18:00 ../../etc/passwd", "there is no time zone"),
        ("08:00-18:00 UTC sat 09:00-12:00", "with “sat”: a comma stands between spans"),
        ("always, sat 09:00-12:00", "write it alone"),
        (f"{OFFICE}, fry 08:00-18:00", "“fry” is no day"),
    ],
)
def test_what_means_nothing_is_named_in_one_line(hours: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as found:
        parse(hours)
    assert said in str(found.value)
    assert "\n" not in str(found.value)
