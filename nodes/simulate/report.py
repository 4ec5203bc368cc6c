"""What a run cost, the least that it could have cost, and what the difference was lost to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from nodes.offers import Offer, cost, hours_begun
from nodes.provider import LIST_EMPTY_EVERY, LIST_EVERY
from nodes.simulate.bound import HOUR, Span, hours
from nodes.simulate.engine import Machine, Run


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds; of no jobs, all 0."""

    jobs: int
    p50: float
    p95: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Report:
    """Money is EUR. ``losses`` add up to ``eur - bound``; one that is negative was gained by letting jobs wait."""

    policy: str
    jobs: int
    eur: Decimal
    hours: int
    bound: Decimal
    ratio: float
    losses: Mapping[str, Decimal]
    waits: Waits
    paid_waits: Waits
    late: int
    lost: int
    servers: int
    most_servers: int
    failed_servers: int
    calls_an_hour: float


def report(run: Run, offers: Sequence[Offer]) -> Report:
    """Of a run in a cloud that sells ``offers``."""
    steps = _steps(run, offers)
    eur, bound = steps[-1][1], steps[0][1]
    lived = max(run.ended, 1.0)
    return Report(
        policy=run.policy,
        jobs=len(run.jobs),
        eur=eur,
        hours=sum(billed_hours(machine) for machine in run.machines),
        bound=bound,
        ratio=float(eur / bound) if bound else math.nan,
        losses={name: after - before for (_, before), (name, after) in itertools.pairwise(steps)},
        waits=_waits([at - job.at for job, at in run.starts if not job.paid]),
        paid_waits=_waits([at - job.at for job, at in run.starts if job.paid]),
        late=sum(job.deadline is not None and at > job.deadline for job, at in run.starts),
        lost=run.lost,
        servers=len(run.machines),
        most_servers=run.most_nodes,
        failed_servers=sum(machine.ready is None for machine in run.machines),
        calls_an_hour=(run.calls + _lists(run, lived)) * 3600 / lived,
    )


def _lists(run: Run, lived: float) -> float:
    """Calls for lists of servers: fewer while there is none."""
    served = until = 0.0
    for machine in run.machines:  # in the order of their purchases
        served += max(0.0, machine.gone - max(machine.node.created_at, until))
        until = max(until, machine.gone)
    return served / LIST_EVERY.total_seconds() + (lived - served) / LIST_EMPTY_EVERY.total_seconds()


def _steps(run: Run, offers: Sequence[Offer]) -> list[tuple[str, Decimal]]:
    """From the bound to the bill, one cause more at each step, so that the differences add up.

    The unit of the covers is a lease of the fewest slots that all types are made of, at the least price of a slot:
    with one type that is its node, and the bound exact.
    """
    unit = math.gcd(*(offer.slots for offer in offers))
    price = min(offer.per_slot for offer in offers) * unit
    served = [machine for machine in run.machines if machine.ready is not None]

    def eur(spans: Iterable[Span]) -> Decimal:
        return hours(spans, unit) * price

    booted = [busy_spans(machine, boot=True) for machine in served]
    pooled = eur(span for spans in booted for span in spans)
    alone = sum((eur(spans) for spans in booted), Decimal(0))
    lived = sum((billed_hours(machine) * machine.node.offer.slots for machine in served), 0) * price / unit
    # Of what nodes cost more because none could use another's hours, part was thrown away by deleting them early.
    left = sum((_unused_s(machine) * machine.node.offer.slots for machine in served), 0.0)
    deleted = min(alone - pooled, Decimal(round(left / HOUR, 6)) * price / unit)
    bill = sum((_bill(machine) for machine in served), Decimal(0))
    return [
        ("bound", eur((job.at, job.at + job.runs, job.slots) for job in run.jobs)),
        ("waiting", eur(span for machine in served for span in machine.busy)),
        ("fragmentation", eur(span for machine in served for span in busy_spans(machine, boot=False))),
        ("boot", pooled),
        ("straddle", alone - deleted),
        ("idle", lived),
        ("prices", bill),
        ("failures", bill + sum((_bill(machine) for machine in run.machines if machine.ready is None), Decimal(0))),
    ]


def _unused_s(machine: Machine) -> float:
    """Paid time after the node was gone."""
    return machine.node.created_at + billed_hours(machine) * HOUR - machine.gone


def busy_spans(machine: Machine, *, boot: bool) -> list[Span]:
    """When the node was needed, as a whole: while any job ran on it, and while it booted."""
    merged: list[list[float]] = []
    for start, end, _ in sorted(machine.busy):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    if boot and machine.ready is not None:
        merged.insert(0, [machine.node.created_at, machine.ready])
    return [(start, end, machine.node.offer.slots) for start, end in merged]


def billed_hours(machine: Machine) -> int:
    return hours_begun(timedelta(seconds=machine.gone - machine.node.created_at))


def _bill(machine: Machine) -> Decimal:
    return cost(machine.node.offer, billed_hours(machine))


def _waits(waits: Sequence[float]) -> Waits:
    ordered = sorted(waits)
    if not ordered:
        return Waits(0, 0.0, 0.0, 0.0, 0.0)
    # Of times of millions of seconds, what is behind the milliseconds is rounding.
    at = [round(ordered[min(math.ceil(q * len(ordered)) - 1, len(ordered) - 1)], 3) for q in (0.5, 0.95, 0.99, 1.0)]
    return Waits(len(ordered), *at)
