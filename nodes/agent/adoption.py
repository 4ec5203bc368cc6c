"""What a starting agent does with what it finds of an earlier one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nodes.agent.state import Record
from nodes.protocol import Stage


class FoundContainer(Protocol):
    """A container of this node, as its labels tell."""

    @property
    def container_id(self) -> str: ...
    @property
    def job_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def running(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Adopted:
    """An attempt to go on with. ``container_id`` None: it has ended and is removed, its outputs are there."""

    record: Record
    container_id: str | None
    running: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """``hand_back``: leases whose work did not get far enough, or did not survive. ``remove``: containers
    that nobody waits for, by id."""

    adopt: list[Adopted]
    hand_back: list[Record]
    remove: list[str]


def plan(records: Iterable[Record], found: Iterable[FoundContainer], boot_id: str) -> Plan:
    """Match leases with containers. Only work whose container has started is gone on with: anything earlier
    is cheaper to start again, maybe elsewhere."""
    containers = {(container.job_id, container.attempt): container for container in found}
    adopt, hand_back = [], []
    for record in records:
        container = containers.get(record.key)
        if record.boot_id == boot_id and _has_work(record, container):
            containers.pop(record.key, None)
            adopt.append(
                Adopted(
                    record,
                    None if container is None else container.container_id,
                    container is not None and container.running,
                )
            )
        else:
            hand_back.append(record)
    return Plan(adopt, hand_back, [container.container_id for container in containers.values()])


def _has_work(record: Record, container: FoundContainer | None) -> bool:
    if record.report is not None or record.ended is not None:
        return True
    # Killed between starting the container and noting it: running says that it was started.
    return container is not None and (container.running or Stage.STARTED in record.timeline)
