"""Loads: jobs with the times at which they come and for which they run, drawn at random; all chance is seeded."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from functions.errors import Invalid
from functions.quantities import parse_duration

SIGMA = 0.8326
"""Of lognormal durations: their standard deviation is as large as their mean."""
TAIL = 1.5
"""Exponent of a heavy tail (Pareto): a mean, but no variance."""
LONGEST = 24 * 3600.0
HOUR, DAY = 3600.0, 86400.0
MONDAY = 1767571200.0
"""2026-01-05T00:00:00Z: when what has no date begins, as UNIX time."""
MOST_JOBS = 1_000_000
FORMS = "poisson:60/h,4m · burst:240/h,3m,10m/1h · diurnal:5-200/h,6m · tail:60/h,4m"


@dataclass(frozen=True, slots=True)
class Job:
    """Times are seconds since the simulation's start; ``kind`` is what jobs that run about as long have in common."""

    at: float
    runs: float
    kind: str = "job"
    slots: int = 1
    memory: int = 0
    account: int = 1
    paid: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs come at ``rate(t)`` a second, never more than ``top``, and run for ``mean`` seconds on average."""

    spec: str
    rate: Callable[[float], float]
    top: float
    mean: float
    heavy: bool = False

    def jobs(self, length: float, seed: int) -> list[Job]:
        """Those of the first ``length`` seconds; raises ``Invalid`` for more than a million."""
        if self.top * length > MOST_JOBS:
            raise Invalid(f"{self.spec}: that would be more than {MOST_JOBS:,} jobs; simulate fewer hours")
        chance = random.Random(f"load {seed}")  # noqa: S311
        mu, least = math.log(self.mean) - SIGMA**2 / 2, self.mean * (TAIL - 1) / TAIL
        jobs: list[Job] = []
        at = chance.expovariate(self.top)
        while at < length:
            if chance.random() * self.top < self.rate(at):
                runs = least * chance.paretovariate(TAIL) if self.heavy else chance.lognormvariate(mu, SIGMA)
                jobs.append(Job(at, min(runs, LONGEST)))
            at += chance.expovariate(self.top)
        return jobs


def parse(spec: str) -> Load:
    """``poisson:60/h,4m``; ``burst:240/h,3m,10m/1h`` (the first 10 minutes of each hour); ``diurnal:5-200/h,6m``
    (least at midnight, most at noon); ``tail:60/h,4m`` (a heavy tail). Raises ``Invalid``."""
    match = re.fullmatch(r"(\w+):(?:([0-9.]+)-)?([0-9.]+)/h,(\w+)(?:,(\w+)/(\w+))?", spec.strip())
    try:
        if match is None:
            raise ValueError
        kind, low, high, mean, on, every = match.groups()
        top, runs = float(high) / HOUR, parse_duration(mean).total_seconds()
        if top <= 0 or runs <= 0 or (low is not None) != (kind == "diurnal") or (on is not None) != (kind == "burst"):
            raise ValueError
        if kind == "burst":
            length, period = parse_duration(on).total_seconds(), parse_duration(every).total_seconds()
            if not 0 < length <= period:
                raise ValueError
            return Load(spec, lambda t: top if t % period < length else 0.0, top, runs)
        if kind == "diurnal":
            least = float(low) / HOUR
            return Load(spec, lambda t: least + (top - least) * (1 - math.cos(2 * math.pi * t / DAY)) / 2, top, runs)
        if kind in ("poisson", "tail"):
            return Load(spec, lambda _: top, top, runs, heavy=kind == "tail")
    except (ValueError, ZeroDivisionError):
        pass
    raise Invalid(f"{spec!r} is no load; loads are {FORMS}")


def in_paid_lane(jobs: list[Job], part: float, deadline: float, seed: int) -> list[Job]:
    """The same jobs, a random ``part`` of them in the lane of paid minutes, to start within ``deadline`` seconds."""
    chance = random.Random(f"lane {seed}")  # noqa: S311
    return [replace(job, paid=True, deadline=job.at + deadline) if chance.random() < part else job for job in jobs]
