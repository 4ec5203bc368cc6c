"""Where servers come from: what the autoscaler asks of a cloud, and how a cloud may fail it.

Every call may be repeated. A name is used for one server ever; who owns it is said by its labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from functions.errors import Unavailable
from nodes.offers import Catalogue, Offer

OWNER_LABEL = "rgrid-owner"
"""The deployment: nothing without our own is ever listed, adopted or deleted."""
NODE_LABEL = "rgrid-node"
EPOCH_LABEL = "rgrid-epoch"
POOL_LABEL = "rgrid-pool"

USER_DATA_BYTES = 32 * 1024
"""The most that a server can be told at its start."""

LIST_EVERY = timedelta(seconds=20)
"""How often a cloud is asked for its servers, for each page of them: the more they are, the more rarely, so that the
calls stay as many."""
LIST_EMPTY_EVERY = timedelta(seconds=60)
"""The same while there is none."""
CLOCKS_APART = timedelta(minutes=2)
"""A clock that differs by more from the cloud's is odd, and a matter for the operator: it is more than what is left of
a paid hour when its server is deleted."""


class Status(StrEnum):
    """What a cloud says of a server. While one is created it is `off` for a moment: that alone is no failure."""

    INITIALIZING = "initializing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    OFF = "off"
    DELETING = "deleting"
    MIGRATING = "migrating"
    REBUILDING = "rebuilding"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Order:
    name: str
    """A host name, the same for every try of one purchase."""
    offer: Offer
    image: str
    user_data: str = field(repr=False)
    labels: Mapping[str, str]
    """Has ``OWNER_LABEL`` and ``NODE_LABEL``: by these a server is known again."""


@dataclass(frozen=True, slots=True)
class Server:
    id: int
    name: str
    status: Status
    created_at: datetime
    """By the cloud's clock; its paid hours are counted from here."""
    type: str
    location: str
    labels: Mapping[str, str]
    ipv4: str | None = None
    locked: bool = False
    """Another action is at work on it."""
    blocked: bool = False
    """Its address was blocked, for instance after a report of abuse."""


@dataclass(frozen=True, slots=True)
class Listing:
    servers: tuple[Server, ...]
    complete: bool
    """Every page was read and they agree. If not, that a server is not here says nothing."""
    server_now: datetime
    """The cloud's clock: the one to compare ``created_at`` with."""


class ProviderError(Unavailable):
    """The cloud did not do it. Messages hold no token."""


class OutOfStock(ProviderError):
    """The cloud has none of this type there now: take the next offer."""

    def __init__(self, message: str, *, offer: Offer, again_at: datetime) -> None:
        super().__init__(message)
        self.offer = offer
        self.again_at = again_at


class Limit(StrEnum):
    SERVERS = "servers"
    ADDRESSES = "addresses"
    CORES = "cores"
    OTHER = "other"


class AccountLimit(ProviderError):
    """The account may have no more of ``kind``; it is raised by its holder only, in days."""

    def __init__(self, message: str, *, kind: Limit) -> None:
        super().__init__(message)
        self.kind = kind


class NameTaken(ProviderError):
    """A server that is not of this order has its name: plan anew, under another; never repeat the call."""


class Uncertain(ProviderError):
    """It may have been done. Look for the server's name in the next complete listing before anything else."""


class RateLimited(ProviderError):
    """Too many calls; not sent, or refused."""

    def __init__(self, message: str, *, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class Busy(ProviderError):
    """Another action is in the way; it was not done, and works at a later round."""


class OfferRefused(ProviderError):
    """The cloud does not sell this offer as it was asked for, and not for want of stock: others may still be had."""

    def __init__(self, message: str, *, again_at: datetime) -> None:
        super().__init__(message)
        self.again_at = again_at


class Refused(ProviderError):
    """It will not work until the operator acts; the message says what to do."""


class Unreachable(ProviderError):
    """The cloud does not answer, or not sensibly; nothing was done."""


class Provider(Protocol):
    """Where servers come from. Each method raises ``ProviderError``s; ``RateLimited``, ``Refused`` and ``Unreachable``
    may come of any, ``Uncertain`` and ``Busy`` of those that change something."""

    def now(self) -> datetime:
        """The cloud's clock, as far as its answers are believed; moments in errors, offers and listings are by it."""
        ...

    def compare_clock(self, ours: datetime, believed: datetime) -> None:
        """What our own clock says, for answers to be held against; and what the cloud's was taken to be by it, to begin
        with."""
        ...

    def said_now(self) -> datetime | None:
        """The cloud's clock by its last answer, believed or not; None before the first."""
        ...

    async def prepare(self, image: str, architectures: frozenset[str]) -> tuple[str, ...]:
        """Check at start what a purchase will need, and make what is missing; returns warnings, plain sentences.

        Raises ``Refused`` when the credential may not write or the image does not exist. Safe to repeat.
        """
        ...

    async def catalogue(self) -> Catalogue:
        """What is sold now, at which price; read from the cloud now and then, else from memory."""
        ...

    async def list_servers(self) -> Listing:
        """All servers of this deployment, in every state."""
        ...

    async def create(self, order: Order) -> Server:
        """Start a server, or return the one that an earlier try of the same order started.

        Raises ``OutOfStock``, ``OfferRefused``, ``AccountLimit``, ``NameTaken``.
        """
        ...

    async def failure_of(self, server_id: int) -> str | None:
        """Why creating or starting it failed; None if nothing did so far, or it is gone. One call to the cloud: ask it
        of a server that stays `off`."""
        ...

    async def delete(self, server_id: int) -> None:
        """Have it deleted; one that is being deleted or gone already is no error. It is gone only when no complete
        listing has it."""
        ...

    async def stray_addresses(self) -> tuple[str, ...]:
        """Addresses that are paid for and belong to no server: an audit for the operator, nothing is deleted."""
        ...
