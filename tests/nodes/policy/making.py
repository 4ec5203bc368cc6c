"""Nodes, jobs and states in few words: ``node(left=300, busy=1)`` has five minutes of its hour left and runs one job."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

from functions.ids import AccountId, NodeId, ProjectId
from nodes.offers import Offer
from nodes.policy.expected import Expected
from nodes.policy.state import HOUR, FleetState, Node, Phase, Queued, Running

NOW = 1_000_000.0
MINUTES = Expected(p50=180.0, p80=360.0)
GIB = 1024**3


def offer(type: str = "cx23", slots: int = 2, hourly: str = "0.0096", **more: Any) -> Offer:
    return Offer(type, "fsn1", slots, slots * 2 * GIB, Decimal(hourly), Decimal(hourly) * 624, **more)


def running(age: float = 60.0, slots: int = 1, project: int = 1, expected: Expected = MINUTES) -> Running:
    return Running(ProjectId(project), slots, NOW - age, expected)


def node(number: int = 1, *, left: float = 1800.0, busy: int = 0, hours: int = 0, **more: Any) -> Node:
    """Its current hour is reserved; ``hours`` is how many it had before this one."""
    created = NOW - hours * HOUR - (HOUR - left)
    given: dict[str, Any] = {
        "offer": offer(),
        "phase": Phase.READY,
        "account": AccountId(1),
        "payer": ProjectId(1),
        "created_at": created,
        "reserved_until": NOW + left,
        "running": tuple(running() for _ in range(busy)),
    }
    return Node(id=NodeId(UUID(int=number)), **(given | more))


def queued(
    count: int = 1, *, slots: int = 1, project: int = 1, account: int = 1, waited: float = 1.0, **more: Any
) -> Queued:
    given: dict[str, Any] = {"memory": 0, "expected": MINUTES} | more
    return Queued(AccountId(account), ProjectId(project), slots, count=count, oldest=NOW - waited, **given)


def state(
    *nodes: Node, queue: tuple[Queued, ...] = (), offers: tuple[Offer, ...] = (offer(),), **more: Any
) -> FleetState:
    return FleetState(nodes=nodes, queue=queue, offers=offers, **more)
