"""How the price of an hour is divided: exactly, whatever it divides by. Pure.

Those whose jobs ran in an hour pay all of it, by the slots that they filled and for how long: each its part of server
and address, and a like part of what nobody filled. An hour in which nothing ran is paid by whom it was reserved for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from functions.ids import JobId, ProjectId
from nodes.offers import HOUR

NOBODY = ProjectId(0)
"""Who pays for hours that no project caused: warm spares, servers that nobody knew. No project has this id."""
FINEST = -9
"""Amounts are divided to nano-EUR, or to the price's own last digit if that is finer."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What an attempt filled in an hour: its slots times milliseconds."""

    project: ProjectId
    function: UUID | None
    job: JobId
    attempt: int
    slot_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """``server`` and ``ipv4`` are for the time that the attempt filled, ``idle`` for what nobody did. EUR net."""

    project: ProjectId
    function: UUID | None
    job: JobId | None
    attempt: int | None
    slot_ms: int
    server: Decimal
    ipv4: Decimal
    idle: Decimal

    @property
    def amount(self) -> Decimal:
        return self.server + self.ipv4 + self.idle


def receipts(
    server: Decimal,
    ipv4: Decimal,
    *,
    slots: int,
    ran: Sequence[Ran],
    payers: Sequence[tuple[ProjectId, Decimal]],
) -> list[Receipt]:
    """Divide an hour of a node with so many slots; the receipts add up to ``server`` and ``ipv4``.

    ``payers`` are whom it was reserved for, and for how much.
    """
    scale = min(FINEST, _last_digit(server), _last_digit(ipv4))
    servers, addresses = _units(server, scale), _units(ipv4, scale)
    total = servers + addresses
    busy = [each for each in ran if each.slot_ms > 0]
    if not busy:
        whom = [(project, share) for project, share in payers if share > 0] or [(NOBODY, Decimal(1))]
        finest = min(_last_digit(share) for _, share in whom)
        parts = divided(total, [_units(share, finest) for _, share in whom])
        return [
            Receipt(project, None, None, None, 0, Decimal(0), Decimal(0), _money(part, scale))
            for (project, _), part in zip(whom, parts, strict=True)
        ]
    room = slots * int(HOUR.total_seconds() * 1000)
    filled = min(sum(each.slot_ms for each in busy), room)  # clocks differ by moments
    kinds = (servers * filled, addresses * filled, total * (room - filled))
    made = []
    for each, amount in zip(busy, divided(total, [each.slot_ms for each in busy]), strict=True):
        parts = divided(amount, kinds) if total else [0, 0, 0]
        money = [_money(part, scale) for part in parts]
        made.append(Receipt(each.project, each.function, each.job, each.attempt, each.slot_ms, *money))
    return made


def divided(units: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in the proportion of ``weights`` that add up to ``units``: the largest remainders get one more."""
    total = sum(weights)
    parts = [units * weight // total for weight in weights]
    short = units - sum(parts)
    by_remainder = sorted(range(len(weights)), key=lambda index: (-(units * weights[index] % total), index))
    for index in by_remainder[:short]:
        parts[index] += 1
    return parts


def price_of_hour(hourly: Decimal, monthly: Decimal, *, created: datetime, hour: int) -> Decimal:
    """What hour number ``hour`` (from 0) of a server costs: those of a calendar month cost no more than ``monthly``."""
    begins = created + hour * HOUR
    month = begins.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    first = max(0, -((created - month) // HOUR))  # the first hour that begins in this month
    before = hour - first
    return min(hourly * (before + 1), monthly) - min(hourly * before, monthly)


def _last_digit(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)  # it is a number, and finite
    return exponent


def _units(amount: Decimal, scale: int) -> int:
    return int(amount.scaleb(-scale))


def _money(units: int, scale: int) -> Decimal:
    return Decimal(units).scaleb(scale)
