"""Faults: what happens to which calls, how often; and fates: what becomes of which servers."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any


@dataclass
class Call:
    """One request, as the emulator saw it. ``status`` is None while it runs and if it got no answer."""

    index: int
    method: str
    path: str
    query: dict[str, list[str]]
    body: Any
    token: str
    at: datetime
    committed: bool = False
    status: int | None = None
    answered: bytes = b""

    @property
    def name(self) -> str | None:
        """The server's name that it asks to create."""
        return self.body.get("name") if isinstance(self.body, dict) else None


@dataclass(frozen=True)
class Answer:
    """Another answer than the true one; with ``commit`` the call is carried out all the same."""

    status: int
    code: str | None = None
    message: str | None = "injected"
    details: Any = None
    html: bool = False
    commit: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """The connection is closed without an answer."""

    commit: bool = True


@dataclass(frozen=True)
class Hang:
    """No answer for so many real seconds, then a closed connection."""

    seconds: float
    commit: bool = True


@dataclass(frozen=True)
class Slow:
    """The true answer, so many real seconds late; ``pieces`` > 1: it trickles over that time."""

    seconds: float
    pieces: int = 1


class Hold:
    """The call waits, carried out already or not yet, until the test lets it go on: for calls that interleave."""

    def __init__(self, *, commit: bool) -> None:
        self.commit = commit
        self.reached = threading.Event()
        self.go_on = threading.Event()


@dataclass(frozen=True)
class Omit:
    """A list of servers lacks some; ``counted``: its total still has them."""

    where: Callable[[dict[str, Any]], bool]
    counted: bool = False


@dataclass(frozen=True)
class Stale:
    """A list of servers as of the last one that was given."""


@dataclass(frozen=True)
class Edit:
    """The true answer, with something in its document changed."""

    change: Callable[[Any], None]


@dataclass(frozen=True)
class Fate:
    """What becomes of a server that a call creates. Times count from its creation, virtual."""

    create_error: str | None = None
    start_error: str | None = None
    initializing_for: timedelta | None = None
    vanishes_after: timedelta | None = None
    off_after: timedelta | None = None
    machine_never: bool = False
    """It is `running`, yet nothing runs on it."""
    machine_after: timedelta = timedelta()
    machine_twice: bool = False
    user_data: Callable[[str], str] | None = None
    """What the machine gets to read in place of what was sent."""
    locked_deletes: int = 0
    forgotten_deletes: int = 0
    """So many deletions are agreed to and not done."""
    lingers_for: timedelta | None = None
    """How long it is still listed after its deletion."""


Effect = Answer | Drop | Hang | Slow | Hold | Omit | Stale | Edit | Fate


@dataclass
class Rule:
    effect: Effect
    method: str | None = None
    path: str = ".*"
    """A regular expression for the whole path after /v1."""
    where: Callable[[Call], bool] = lambda call: True
    times: int | None = 1
    """How many calls it meets; None: all."""
    skip: int = 0
    """Let so many that match pass first."""
    chance: float = 1.0
    since: datetime | None = None
    until: datetime | None = None
    met: int = 0

    def meets(self, call: Call, dice: random.Random) -> bool:
        if self.times is not None and self.met >= self.times:
            return False
        if self.method not in (None, call.method) or not re.fullmatch(self.path, call.path) or not self.where(call):
            return False
        if (self.since and call.at < self.since) or (self.until and call.at >= self.until):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.chance < 1 and dice.random() >= self.chance:
            return False
        self.met += 1
        return True


CREATE = {"method": "POST", "path": "/servers"}
LIST = {"method": "GET", "path": "/servers"}
DELETE = {"method": "DELETE", "path": r"/servers/\d+"}


def first_page(call: Call) -> bool:
    return call.query.get("page", ["1"]) == ["1"]


def later_page(call: Call) -> bool:
    return not first_page(call)


def asks_for(type: str, location: str | None = None) -> Callable[[Call], bool]:
    """A call that would create a server of this type there."""

    def matches(call: Call) -> bool:
        body = call.body if isinstance(call.body, dict) else {}
        return body.get("server_type") == type and location in (None, body.get("location"))

    return matches


class Rules:
    """All that are in force; seeded, so that chances repeat."""

    def __init__(self, seed: int = 1) -> None:
        self._rules: list[Rule] = []
        self._dice = random.Random(seed)

    def add(self, effect: Effect, **matcher: Any) -> Rule:
        rule = Rule(effect, **matcher)
        self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        self._rules.remove(rule)

    def clear(self) -> None:
        self._rules.clear()

    def of(self, call: Call) -> list[Effect]:
        return [rule.effect for rule in self._rules if rule.meets(call, self._dice)]
