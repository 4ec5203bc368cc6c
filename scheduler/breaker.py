"""How many messages an endpoint may be sent at once: a few, one now and then while it seems dead; and how many all of a
project may. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.deliveries import Exchanged

AT_ONCE = 4
TRUST = 5
"""So many failures, one after the other, and the endpoint counts as dead: the breaker opens."""
FIRST_REST_S, LONGEST_REST_S = 10.0, 60.0
FORGET_S = 600.0
PER_PROJECT = 64
"""A project whose every endpoint is slow must leave room for the others."""
IN_VAIN = 20
"""So many troubles of a project, one after the other, and it is slowed down: thousands of endpoints that refuse at once
would keep the sender busy without ever having many under way."""
PER_PROJECT_IN_VAIN, PROJECT_REST_S = 8, 0.25
OVERLOADED = frozenset({429, 502, 503, 504})
SLOW_MS = 2000


def part_of(room: int, in_flight: int) -> int:
    """How many more messages a project that has so many under way may have of the room that is left: however many
    projects take all that they get, each has no more than is left then, and so there is some for the next one."""
    return max((room - in_flight + 1) // 2, 0)


def is_trouble(exchanged: Exchanged) -> bool:
    """Whether an attempt says that its endpoint is not there, or not up to it.

    Another error that comes quickly is an answer: it costs no time, and each delivery has its own schedule.
    """
    if exchanged.taken:
        return False
    return exchanged.status is None or exchanged.status in OVERLOADED or exchanged.duration_ms > SLOW_MS


@dataclass(slots=True)
class Breaker:
    """What this process knows of an endpoint. A dead one is tried with a single delivery after each rest."""

    in_flight: int = 0
    failures: int = 0
    resting_until_s: float = 0.0

    def free(self, now_s: float) -> int:
        """How many more messages may be sent now."""
        if self.failures < TRUST:
            return AT_ONCE - self.in_flight
        return 0 if now_s < self.resting_until_s else 1 - self.in_flight

    def saw(self, trouble: bool, now_s: float) -> None:
        self.failures = self.failures + 1 if trouble else 0
        rest_s = min(FIRST_REST_S * 2 ** min(max(self.failures - TRUST, 0), 10), LONGEST_REST_S)
        self.resting_until_s = now_s + rest_s

    def forgettable(self, now_s: float) -> bool:
        return not self.in_flight and (not self.failures or now_s > self.resting_until_s + FORGET_S)


@dataclass(slots=True)
class Share:
    """What this process knows of a project."""

    in_flight: int = 0
    in_vain: int = 0
    resting_until_s: float = 0.0

    def free(self, now_s: float) -> int:
        """How many more of its messages may be sent now."""
        if self.in_vain < IN_VAIN:
            return PER_PROJECT - self.in_flight
        return 0 if now_s < self.resting_until_s else PER_PROJECT_IN_VAIN - self.in_flight

    @property
    def of_each(self) -> int:
        """The most of these that one endpoint may have."""
        return AT_ONCE if self.in_vain < IN_VAIN else 1

    def saw(self, trouble: bool, now_s: float) -> None:
        self.in_vain = self.in_vain + 1 if trouble else 0
        self.resting_until_s = now_s + PROJECT_REST_S

    def forgettable(self, now_s: float) -> bool:
        return not self.in_flight and (not self.in_vain or now_s > self.resting_until_s + FORGET_S)
