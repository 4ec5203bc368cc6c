"""What the policy looks at: the fleet, the queue and the market at one moment, as plain values.

Times are seconds of one clock (UNIX time by the cloud's clock, since it bills by it; seconds of a simulation), spans
are seconds, money is EUR net. Nothing in here is ever changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from functions.ids import AccountId, NodeId, ProjectId
from nodes.offers import Offer
from nodes.policy.expected import Expected
from nodes.policy.spare_hours import NEVER, SpareHours

HOUR = 3600.0
NEAR_S = HOUR
"""Paid jobs whose deadlines are so near stand in groups by these; those that are further off need not be told apart."""


class Phase(StrEnum):
    """Where a node is in its life. What exists at the cloud, or may, counts towards caps; READY alone runs new jobs."""

    PLANNED = "planned"
    CREATING = "creating"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DELETING = "deleting"


COMING = frozenset((Phase.PLANNED, Phase.CREATING, Phase.BOOTING))


@dataclass(frozen=True, slots=True)
class Running:
    """A job on a node. ``expected`` is of its class: function, else project, else everything."""

    project: ProjectId
    slots: int
    started_at: float
    expected: Expected
    paid: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """``account`` is whom the node serves alone, None for everybody; ``payer`` the project for which it was bought.
    ``offer`` has the slots that the node has, which may be fewer than were sold.

    ``created_at`` is the cloud's ``created``, from which hours count; before it is known, when the purchase was
    planned. ``reserved_until`` is the end of the last hour that budgets were charged for. A node that is not
    ``rented`` (a local one) is capacity that costs nothing and is never dropped. A ``closed`` node takes no new jobs:
    see ``Decision``.
    """

    id: NodeId
    offer: Offer
    phase: Phase
    account: AccountId | None
    payer: ProjectId | None
    created_at: float
    reserved_until: float
    running: tuple[Running, ...] = ()
    rented: bool = True
    closed: bool = False

    @property
    def free(self) -> int:
        """Slots that nothing runs in."""
        return self.offer.slots - sum(job.slots for job in self.running)

    def paid_left(self, now: float) -> float:
        """Seconds to the end of the hour that has begun: in (0, 3600]. What runs on past it costs a further hour."""
        return HOUR - (now - self.created_at) % HOUR if self.rented else float("inf")


@dataclass(frozen=True, slots=True)
class Queued:
    """Jobs of one project that are alike and could start now: not gated, delayed or paused.

    ``slots`` and ``memory`` (bytes) are of one job. ``oldest`` is since when the first of them waits. ``paid`` jobs
    wait for paid minutes, and force a node so that they start by ``deadline``, which is that of the first of them:
    jobs whose deadlines are far apart stand in several groups.
    """

    account: AccountId
    project: ProjectId
    slots: int
    memory: int
    count: int
    oldest: float
    expected: Expected
    paid: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class FleetState:
    """Everything a round knows.

    ``offers`` is what may be bought (``nodes.offers.wanted``), out of stock or not. ``boot_s`` is how long nine of
    ten creations of a type at a location (``Offer.key``) took until the node had joined, where that is known.
    ``frozen_until`` and ``server_limit`` are learned from the cloud's refusals (403): buy nothing until then, and
    have no more servers than that. ``sunk`` is what servers cost an hour that are gone before the hour that is paid for
    is over, and those that are there and not in ``nodes``: there are ``unknown`` of these.
    ``budgets`` is what projects may still spend, all reservations taken off; a project that is not in it has no budget.
    ``month_left`` is the same for all of them together. ``used`` has
    slot-seconds that accounts used of late; ``arrivals`` the slots that jobs call for that come to them per second, for
    warm spares.
    """

    nodes: tuple[Node, ...]
    queue: tuple[Queued, ...]
    offers: tuple[Offer, ...]
    boot_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    frozen_until: float = 0.0
    server_limit: int | None = None
    sunk: Decimal = Decimal(0)
    unknown: int = 0
    budgets: Mapping[ProjectId, Decimal] = field(default_factory=dict)
    month_left: Decimal | None = None
    used: Mapping[AccountId, float] = field(default_factory=dict)
    arrivals: Mapping[AccountId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caps:
    """What the operator allows: servers at a time, EUR per hour of all of them together, EUR per slot and hour of
    one."""

    nodes: int
    hourly: Decimal | None = None
    ceiling: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How the policy trades money for waiting. Spans are seconds."""

    exclusive: bool = True
    """A node serves one account while it lives."""
    round_s: float = 2.0
    """About how often a round comes."""
    apart_s: float = 0.5
    """A job for which there is no room wakes the next round at once, but not sooner than this after the last one."""
    boot_s: float = 60.0
    """From a purchase until the node has joined, where nothing is known of its type and location yet."""
    boot_deadline: float = 360.0
    """After this long, or three usual boots if that is longer, a node that has not joined is given up."""
    delete_s: float = 20.0
    """How long a deletion takes at the most, but for one in a hundred."""
    thrift: float = 1 / 3
    """Jobs trust to so many slots that fewer become free within a boot with this probability: 0 buys at once, 1 is
    cheap."""
    patience: float = 1.0
    """A job that has waited for so many boots, since what it trusted to did not come true, gets a node."""
    spares: SpareHours = NEVER
    """When warm spares are kept, so many slots that a job finds none with probability ``spare_risk``."""
    spare_risk: float = 0.05
    lifetime: float = 86400.0
    """A node that is never idle is retired after this, at the end of an hour."""

    @property
    def margin(self) -> float:
        """How long before its hour's end an idle node is dropped, so that the deletion surely falls into that hour."""
        return max(120.0, 2 * self.round_s + self.delete_s + 60)
