"""What a round decides: what the autoscaler stores, and only then does."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from functions.ids import AccountId, NodeId, ProjectId
from nodes.offers import Offer


@dataclass(frozen=True, slots=True)
class Buy:
    """Buy a node, after its first hour, ``offer.hourly``, was reserved: against ``payer``'s budget and all the caps."""

    offer: Offer
    account: AccountId | None
    payer: ProjectId | None
    reason: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """Reserve a node's next hour, which begins while it is busy: ``shares`` adds up to its price. ``until`` is its
    end."""

    node: NodeId
    until: float
    shares: tuple[tuple[ProjectId, Decimal], ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Drain a node and delete it: if a job got there meanwhile, leave it.

    ``failed``: it did not join in time. Delete it whatever its state, and count that against its type and location.
    """

    node: NodeId
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Why jobs wait: ``reason`` as a job shows it, for instance ``capacity cx23@fsn1``, ``booting``, ``budget``.

    ``node`` is the one that they wait for, or ``purchase`` the place in this round's ``buy`` of the one that will be;
    ``next_offer`` what is tried after the current one. ``eta`` is when the first of them should start, None if that is
    not known.
    """

    account: AccountId
    project: ProjectId
    slots: int
    paid: bool
    reason: str
    node: NodeId | None = None
    purchase: int | None = None
    next_offer: Offer | None = None
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """``closed`` has all nodes that are to take no new jobs for now (their budget lapsed, they are to be retired, or
    to make room for another account): it replaces the last round's. ``again_at`` is when to look again if nothing
    changes before."""

    buy: tuple[Buy, ...] = ()
    renew: tuple[Renewal, ...] = ()
    drop: tuple[Drop, ...] = ()
    closed: frozenset[NodeId] = frozenset()
    waits: tuple[Wait, ...] = ()
    again_at: float = float("inf")
