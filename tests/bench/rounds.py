"""What every benchmark shares: interleaved rounds, medians over them, and a table that people can read."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ROUNDS = 3


@dataclass
class Measured:
    """One figure of several parties, each measured once a round, one party after the other."""

    title: str
    unit: str
    rounds: list[dict[str, float]] = field(default_factory=list)

    def median(self, party: str) -> float:
        return statistics.median(values[party] for values in self.rounds)

    def ratio(self, party: str, to: str) -> float:
        """The median over the rounds of ``party / to``: both of one round share the machine's mood."""
        return statistics.median(values[party] / values[to] for values in self.rounds)

    def as_json(self) -> dict[str, object]:
        return {"title": self.title, "unit": self.unit, "rounds": self.rounds}


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def table(measured: Measured, *, base: str) -> str:
    """A line for each party: median, spread over the rounds, ratio to ``base``."""
    parties = list(measured.rounds[0])
    width = max(len(party) for party in parties)
    lines = [f"{measured.title} ({measured.unit}, median of {len(measured.rounds)} interleaved rounds)"]
    for party in parties:
        values = [values[party] for values in measured.rounds]
        spread = f"{min(values):,.6g} to {max(values):,.6g}"
        ratio = "" if party == base else f"{measured.ratio(party, base):.2f} x {base}"
        lines.append(f"  {party:<{width}}  {measured.median(party):>12,.6g}   {spread:<24} {ratio}".rstrip())
    return "\n".join(lines)


def machine() -> Mapping[str, object]:
    """What figures are worthless without."""
    return {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "kernel": os.uname().release}
