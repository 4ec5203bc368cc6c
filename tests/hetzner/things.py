"""The things that exist in the emulated cloud."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Any, Protocol

from tests.hetzner.goods import Image, Kind
from tests.hetzner.rules import Fate

S = timedelta(seconds=1)


class Fault(Exception):
    """An error answer of the API."""

    def __init__(self, status: int, code: str, message: str | None, details: Any = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.details = status, code, message, details


@dataclass
class Action:
    id: int
    command: str
    started: datetime
    resources: list[tuple[int, str]]
    status: str = "running"
    finished: datetime | None = None
    error: tuple[str, str] | None = None


@dataclass
class Address:
    id: int
    name: str
    ip: str
    type: str
    location: str
    created: datetime
    server: int | None = None
    auto_delete: bool = True
    blocked: bool = False


@dataclass
class Key:
    id: int
    name: str
    public_key: str
    fingerprint: str
    labels: dict[str, str]
    created: datetime


@dataclass
class Firewall:
    id: int
    name: str
    rules: list[dict[str, Any]]
    labels: dict[str, str]
    created: datetime


@dataclass
class Machine:
    """What a server is to whoever runs a real machine for it."""

    server_id: int
    name: str
    ipv4: str | None
    user_data: str
    labels: dict[str, str]
    type: str
    location: str


class Machines(Protocol):
    """Called outside the cloud's lock, one call after the other: start a thread for what takes long."""

    def start(self, machine: Machine) -> None: ...
    def stop(self, machine: Machine) -> None: ...


class NoMachines:
    def start(self, machine: Machine) -> None: ...
    def stop(self, machine: Machine) -> None: ...


@dataclass
class Server:
    id: int
    name: str
    kind: Kind
    location: str
    image: Image | None
    labels: dict[str, str]
    user_data: str
    created: datetime
    fate: Fate = field(default_factory=Fate)
    status: str = "initializing"
    ipv4: Address | None = None
    ipv6: Address | None = None
    firewalls: list[int] = field(default_factory=list)
    protected: bool = False
    started: bool = False
    """A machine runs for it."""
    password_mailed: bool = False
    deletes_refused: int = 0
    deletes_forgotten: int = 0

    @property
    def machine(self) -> Machine:
        ip = self.ipv4.ip if self.ipv4 else None
        told = self.fate.user_data(self.user_data) if self.fate.user_data else self.user_data
        return Machine(self.id, self.name, ip, told, dict(self.labels), self.kind.name, self.location)


@dataclass
class Timings:
    initializing: timedelta = 4 * S
    off: timedelta = 1 * S
    starting: timedelta = 6 * S
    firewall: timedelta = 2 * S
    deleting: timedelta = 5 * S
    power: timedelta = 3 * S
    shutdown: timedelta = 20 * S


def addresses() -> Iterator[str]:
    """Out of the network that is set apart for benchmarks."""
    first = int(IPv4Address("198.18.0.1"))
    return (str(IPv4Address(first + index)) for index in range(2**17 - 2))
