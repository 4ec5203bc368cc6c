"""The hours in which an operator wants warm spares: days and times by the wall clock of a zone. Pure.

``mon-fri 08:00-18:00 Europe/Berlin, sat 22:00-02:00``: what passes midnight belongs to the day on which it begins. Of a
span that the clock skips in spring nothing is left, and what it repeats in autumn comes twice, as on a shop's door.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from functions.documents import shown
from functions.timezones import zone

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60
TIMES = re.compile(r"([0-9]{1,2}):([0-5][0-9])-([0-9]{1,2}):([0-5][0-9])")
FORM = "write for instance mon-fri 08:00-18:00 Europe/Berlin"


@dataclass(frozen=True, slots=True)
class Span:
    """``days`` are those on which it begins, 0 is Monday; ``begins`` and ``ends`` minutes since midnight. One that ends
    before it begins ends on the next day."""

    days: frozenset[int]
    begins: int
    ends: int
    zone: str

    def holds(self, moment: float) -> bool:
        local = datetime.fromtimestamp(moment, zone(self.zone))
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.begins < self.ends:
            return today in self.days and self.begins <= minute < self.ends
        return (today in self.days and minute >= self.begins) or ((today - 1) % 7 in self.days and minute < self.ends)

    def next_after(self, moment: float) -> float:
        """When it begins next."""
        today = datetime.fromtimestamp(moment, zone(self.zone)).date()
        days = (today + timedelta(days=ahead) for ahead in range(8))
        return min(at for day in days if day.weekday() in self.days and (at := self._begins_on(day)) > moment)

    def _begins_on(self, day: date) -> float:
        at = time(self.begins // 60, self.begins % 60)
        return datetime.combine(day, at, zone(self.zone)).timestamp()


@dataclass(frozen=True, slots=True)
class SpareHours:
    """``zero`` is the UNIX time of what the asker calls 0: a simulation has a clock of its own."""

    spans: tuple[Span, ...] = ()
    always: bool = False
    zero: float = 0.0

    def hold(self, now: float) -> bool:
        """Whether spares are wanted now."""
        return self.always or any(span.holds(self.zero + now) for span in self.spans)

    def next_after(self, now: float) -> float:
        """When they are wanted next, if they are not now."""
        begins = [span.next_after(self.zero + now) - self.zero for span in self.spans]
        return min(begins, default=float("inf"))


NEVER = SpareHours()
ALWAYS = SpareHours(always=True)


def parse(text: str) -> SpareHours:
    """What an operator wrote: nothing, ``always``, or spans with commas between them. Raises ``ValueError`` with what
    is wrong, in one line."""
    parts = [part.split() for part in text.split(",") if part.strip()]
    if ["always"] in parts:
        if len(parts) > 1:
            raise ValueError("always leaves nothing for other hours: write it alone")
        return ALWAYS
    return SpareHours(tuple(_span(words) for words in parts))


def _span(words: list[str]) -> Span:
    said, rest = shown(" ".join(words)), list(words)
    days: set[int] = set()
    while rest and not rest[0][0].isdigit():
        days |= _days(rest.pop(0))
    if not rest:
        raise ValueError(f"{said} has no times: {FORM}")
    begins, ends = _times(rest.pop(0))
    name = rest.pop(0) if rest else "UTC"
    zone(name)  # raises for what is none
    if rest:
        raise ValueError(f"{said} goes on after its zone, with {shown(rest[0])}: a comma stands between spans")
    return Span(frozenset(days or range(7)), begins, ends, name)


def _days(word: str) -> set[int]:
    """``sat``, or ``fri-mon``, which is four."""
    first, dash, last = word.partition("-")
    for name in (first, last) if dash else (first,):
        if name.lower() not in DAYS:
            raise ValueError(f"{shown(name)} is no day ({', '.join(DAYS)}): {FORM}")
    begin = DAYS.index(first.lower())
    length = (DAYS.index(last.lower()) - begin) % 7 if dash else 0
    return {(begin + day) % 7 for day in range(length + 1)}


def _times(word: str) -> tuple[int, int]:
    match = TIMES.fullmatch(word)
    if match is None:
        raise ValueError(f"{shown(word)} is no pair of times: write 08:00-18:00")
    hour, minute, last_hour, last_minute = map(int, match.groups())
    begins, ends = hour * 60 + minute, last_hour * 60 + last_minute
    if begins >= DAY or ends > DAY:
        raise ValueError(f"{shown(word)}: a day has the times 00:00 to 24:00")
    if begins == ends:
        raise ValueError(f"{shown(word)} begins when it ends: write 00:00-24:00 for a whole day")
    return begins, ends
