"""What the cloud has and sells, looked at when it is time to: prices, the list of our servers, what is left over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import structlog

from nodes import rented
from nodes.alarms import Alarms
from nodes.fleet import FARTHEST
from nodes.leadership import Leadership
from nodes.offers import HOUR, Catalogue, Offer, wanted
from nodes.provider import (
    CLOCKS_APART,
    LIST_EMPTY_EVERY,
    LIST_EVERY,
    Provider,
    ProviderError,
    RateLimited,
    Refused,
)
from nodes.reconcile import reconcile
from nodes.rented import Rented
from nodes.wish import Wish

log = structlog.get_logger(__name__)

PAGE = 50
LATER = timedelta(seconds=60)
AUDIT_EVERY = timedelta(days=1)


class Survey:
    def __init__(self, provider: Provider, wish: Wish, leadership: Leadership, alarms: Alarms) -> None:
        self._provider = provider
        self._wish = wish
        self._leadership = leadership
        self._alarms = alarms
        self._prepare_at: datetime | None = datetime.min.replace(tzinfo=UTC)
        self._list_at: datetime | None = None
        self._listed = False
        self.unknown: tuple[Offer, ...] = ()
        """What servers of ours cost that have no row, as of the last list: they count against the caps."""
        self._catalogue: Catalogue | None = None  # the last that could be read
        self._unread_since: datetime | None = None  # from when on it may not be gone by any more
        self._notices: Mapping[str, str] = {}
        self._audit_at: datetime | None = None

    def forget(self) -> None:
        """Another one looks after the fleet: what it learns meanwhile is not known here."""
        self._list_at, self._listed = None, False

    def list_now(self) -> None:
        """At the next look, whenever the last list was."""
        self._list_at = None

    async def look(self) -> tuple[Rented, ...]:
        """Whatever is due; servers that are switched off and are to be given up."""
        doubted = self.in_doubt()
        try:
            self._catalogue, self._unread_since = await self._provider.catalogue(), None
        except ProviderError as error:
            # What it says of prices and stock is too old.
            now = self._provider.now()
            self._unread_since = min(self._unread_since or now, now)
            if now - self._unread_since > LATER or isinstance(error, Refused):
                self._alarms.say("offers", f"nothing is bought, as prices cannot be read: {error.message}")
            log.warning("the cloud's catalogue was not read", error=error.message)
        await self._prepare()
        dead = await self._list()
        await self._audit()
        if doubted and not self.in_doubt():
            self._wait_no_more()
        return dead

    def in_doubt(self) -> bool:
        """Whether the cloud says another time than is believed so far. By one of the two a server is older or younger
        than it is, and each that is deleted or bought for that costs an hour: nothing is to be changed meanwhile."""
        said = self._provider.said_now()
        return said is not None and abs(said - self._provider.now()) > CLOCKS_APART

    def _wait_no_more(self) -> None:
        """What was to come at a moment of a clock that was wrong, perhaps hours ahead, comes now."""
        self._list_at = self._audit_at = None
        if self._prepare_at is not None:
            self._prepare_at = datetime.min.replace(tzinfo=UTC)

    def offers(self, now: datetime) -> tuple[Offer, ...]:
        """What may be bought: nothing before the cloud is prepared and all of its servers are known."""
        if self._catalogue is None or self._unread_since is not None:
            return ()
        if self._prepare_at is not None or not self._listed:
            return ()
        wish = self._wish
        found = wanted(self._catalogue, wish.types, ceiling=wish.ceiling, locations=wish.locations, now=now)
        ending = {each.type: f"{each.type} is sold until {each.gone_after}" for each in found.offers if each.gone_after}
        if (notices := {**ending, **found.skipped}) != self._notices:
            self._notices = notices
            for notice in notices.values():
                log.warning("a type of RGRID_NODE_TYPES", notice=notice)
        self._alarms.say("offers", None if found.offers else "no type of RGRID_NODE_TYPES can be bought")
        return found.offers

    async def _prepare(self) -> None:
        """Once, before anything is bought; tried again each minute until it works."""
        if self._prepare_at is None or not _is_due(self._prepare_at, self._provider.now()):
            return
        sold = () if self._catalogue is None else self._catalogue.offers
        kinds = {offer.architecture for offer in sold if offer.type in self._wish.types}
        try:
            warnings = await self._provider.prepare(self._wish.image, frozenset(kinds or {"x86"}))
        except ProviderError as error:
            self._prepare_at = self._provider.now() + LATER
            self._alarms.say("prepare", error.message if isinstance(error, Refused) else None)
            log.warning("the cloud is not ready", error=error.message)
            return
        self._prepare_at = None
        self._alarms.say("prepare", None)
        for warning in warnings:
            log.warning("the image of servers", notice=warning)

    async def _list(self) -> tuple[Rented, ...]:
        began = self._provider.now()
        if self._list_at is not None and not _is_due(self._list_at, began):
            return ()
        self._list_at = began + LIST_EVERY  # also when it fails
        try:
            listing = await self._provider.list_servers()
        except ProviderError as error:
            if isinstance(error, RateLimited):
                self._list_at = max(self._list_at, error.until)
            self._alarms.say("list", error.message if isinstance(error, Refused) else None)
            log.warning("servers not listed", error=error.message)
            return ()
        self._alarms.say("list", None)
        if self.in_doubt():
            return ()
        async with self._leadership.step() as (conn, _):
            found = await reconcile(
                conn,
                listing,
                began=began,
                provider=self._wish.provider,
                catalogue=self._catalogue,
                many=self._wish.delete_unknown,
            )
            any_left = await rented.any_live(conn)
        self._alarms.say("reconcile", found.alarm)
        self._listed = self._listed or listing.complete
        if listing.complete:
            self.unknown = found.left
        pages = max(1, math.ceil(found.servers / PAGE))
        self._list_at = began + (LIST_EVERY * pages if any_left else LIST_EMPTY_EVERY)
        return found.dead

    async def _audit(self) -> None:
        """Once a day: what is paid for and belongs to nothing."""
        now = self._provider.now()
        if self._audit_at is None:
            self._audit_at = now + HOUR
        if not _is_due(self._audit_at, now, farthest=AUDIT_EVERY):
            return
        self._audit_at = now + AUDIT_EVERY
        try:
            strays = await self._provider.stray_addresses()
        except ProviderError as error:
            log.warning("addresses were not looked at", error=error.message)
            return
        said = f"addresses that belong to no server cost money: delete {', '.join(strays)}" if strays else None
        self._alarms.say("addresses", said)


def _is_due(at: datetime, now: datetime, *, farthest: timedelta = FARTHEST) -> bool:
    return not now < at <= now + farthest
