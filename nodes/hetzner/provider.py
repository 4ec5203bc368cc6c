"""The provider itself: each method a call or two, their failures put in words that the autoscaler can act on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import hcloud
from hcloud.helpers.labels import LabelValidator
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.primary_ips import BoundPrimaryIP, PrimaryIPsPageResult
from hcloud.server_types import ServerType
from hcloud.servers import Server as ServerRef
from hcloud.servers import ServerCreatePublicNetwork

from nodes.hetzner.breaker import StockBreaker
from nodes.hetzner.calls import ENDPOINT, Calls
from nodes.hetzner.faults import Rejected, limit_of
from nodes.hetzner.fittings import UNIQUENESS, Fitting, Fittings
from nodes.hetzner.reading import Page, page_of, server_of
from nodes.hetzner.shop import Shop
from nodes.offers import Catalogue, Offer
from nodes.provider import (
    NODE_LABEL,
    OWNER_LABEL,
    USER_DATA_BYTES,
    AccountLimit,
    Busy,
    Listing,
    NameTaken,
    OfferRefused,
    Order,
    OutOfStock,
    Provider,
    ProviderError,
    Refused,
    Server,
    Status,
    Uncertain,
)

PAGE = 50
PAGES_AT_ONCE = 3
"""So that a list of many does not take as long as a slow cloud takes for each, and other calls still have a thread."""
NO_STOCK = {"resource_unavailable", "placement_error"}
NO_SUCH_TYPE = {"server_type", "location"}
OUR_FITTINGS = {"ssh_keys", "firewalls"}
STARTING = {"create_server", "start_server"}


class HetznerProvider(Provider):
    """Servers of one project. ``owner`` is the deployment's own mark: what does not carry it is never touched."""

    def __init__(self, calls: Calls, *, owner: str, breaker: StockBreaker | None = None) -> None:
        if not owner or not LabelValidator.validate({OWNER_LABEL: owner}):
            raise ValueError("owner must be a label: letters, digits, - _ . inside, at most 63")
        self._calls = calls
        self._owner = owner
        self._breaker = breaker or StockBreaker()
        self._shop = Shop(calls, self._breaker)
        self._fittings = Fittings(calls, owner)
        self._places: dict[int, tuple[str, str]] = {}  # what each server was bought as
        self._blamed: set[int] = set()

    def now(self) -> datetime:
        return self._calls.now()

    def compare_clock(self, ours: datetime, believed: datetime) -> None:
        self._calls.cloud_clock.compare(ours, believed)

    def said_now(self) -> datetime | None:
        return self._calls.cloud_clock.said()

    def close(self) -> None:
        self._calls.close()

    @property
    def calls_sent(self) -> int:
        return self._calls.budget.calls

    async def prepare(self, image: str, architectures: frozenset[str]) -> tuple[str, ...]:
        await self.check_token()
        warnings = [warning for each in sorted(architectures) if (warning := await self.check_image(image, each))]
        await self._fittings.get()
        return tuple(warnings)

    async def missing_fittings(self) -> tuple[str, ...]:
        """What of firewall and key ``prepare`` would make; makes nothing. Raises ``Refused`` for an open firewall."""
        return await self._fittings.missing()

    async def strangers(self) -> int:
        """How many servers the token's project has that are not this deployment's."""
        selector = f"{OWNER_LABEL}!={self._owner}"
        answer = await self._calls(
            lambda client: page_of(client.servers.get_list(label_selector=selector, page=1, per_page=PAGE))
        )
        return max(answer.total or 0, len(answer.servers))

    async def catalogue(self) -> Catalogue:
        return await self._shop.catalogue()

    async def list_servers(self) -> Listing:
        pages = [await self._calls(self._page_of_servers(1), essential=True)]
        complete = True
        while complete and (last := pages[-1].last or pages[-1].next or 0) > len(pages):
            numbers = range(len(pages) + 1, min(len(pages) + PAGES_AT_ONCE, last) + 1)
            calls = (self._calls(self._page_of_servers(page), essential=True) for page in numbers)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            complete = not any(isinstance(answer, BaseException) for answer in answers)
            for answer in answers:
                if isinstance(answer, Page):
                    pages.append(answer)
                elif not isinstance(answer, ProviderError):
                    raise answer
        # The label is asked for, and looked at once more: on what this says, servers are deleted.
        ours = (each for page in pages for each in page.servers if each.labels.get(OWNER_LABEL) == self._owner)
        found = {each.id: each for each in ours}
        # A deletion between two pages moves the next server from the one to the other, where nobody looks any more.
        totals = {page.total for page in pages}
        alone = totals == {None} and len(pages) == 1  # one that counts nothing is whole if there is no other page
        complete = complete and (alone or totals == {len(found)})
        if complete:
            self._blamed &= found.keys()
            self._places = {each.id: (each.type, each.location) for each in found.values()}
        return Listing(tuple(found.values()), complete, self._calls.now())

    async def create(self, order: Order) -> Server:
        if len(order.user_data.encode()) > USER_DATA_BYTES:
            raise Refused(f"the server's user data has more than {USER_DATA_BYTES} bytes")
        if order.labels.get(OWNER_LABEL) != self._owner or not order.labels.get(NODE_LABEL):
            raise ValueError("an order carries the labels of its owner and its node")
        fitting = await self._fittings.get()
        try:
            bought = await self._calls(_purchase(order, fitting), writes=True)
        except Rejected as error:
            if error.reason == UNIQUENESS:
                return await self._adopt(order)
            raise self._why_not(error, order.offer) from None
        self._breaker.succeeded(order.offer.key)
        self._fittings.proven()
        return self._noted(bought)

    async def failure_of(self, server_id: int) -> str | None:
        try:
            answer = await self._calls(
                lambda client: client.servers.get_actions_list(ServerRef(id=server_id), status=["error"])
            )
        except Rejected as error:
            if error.reason == "not_found":
                return None
            raise
        failed = next((each for each in answer.actions if each.command in STARTING), None)
        if failed is None:
            return None
        place = self._places.get(server_id)
        if place is not None and server_id not in self._blamed:
            self._blamed.add(server_id)
            self._breaker.trip(place, self._calls.now())
        said = failed.error or {"message": "no reason given", "code": "none"}
        return self._calls.clean(f"{failed.command} failed: {said['message']} ({said['code']})")

    async def delete(self, server_id: int) -> None:
        try:
            await self._calls(
                lambda client: client.servers.delete(ServerRef(id=server_id)), writes=True, essential=True
            )
        except Rejected as error:
            if error.reason != "not_found":
                raise
        except Busy:
            # The action that is in the way may be the deletion itself.
            if not await self._is_going(server_id):
                raise

    async def stray_addresses(self) -> tuple[str, ...]:
        strays: list[str] = []
        page: int | None = 1
        while page is not None:
            answer = await self._calls(_page_of_addresses(page))
            strays += [f"{each.name} ({each.ip})" for each in answer.primary_ips if _is_stray(each)]
            page = answer.meta.pagination.next_page if answer.meta.pagination else None
        return tuple(strays)

    async def check_token(self) -> None:
        """Raises ``Refused`` for one that may not write, by a call that changes nothing."""
        try:  # it says nothing: a token that may write is told what is missing
            await self._calls(lambda client: client.request("POST", "/ssh_keys", json={}), writes=True)
        except Rejected as error:
            if error.reason != "invalid_input":
                raise

    async def check_image(self, name: str, architecture: str) -> str | None:
        """A warning, if any; raises ``Refused`` if there is no such image."""
        answer = await self._calls(
            lambda client: client.images.get_list(name=name, architecture=[architecture], include_deprecated=True)
        )
        if not answer.images:
            raise Refused(f"the cloud has no image {name} for {architecture}: choose another")
        ends = answer.images[0].deprecation
        if ends is None or ends.unavailable_after is None:
            return None
        return (
            f"the image {name} for {architecture} can be used until {ends.unavailable_after:%Y-%m-%d}: choose another"
        )

    def _page_of_servers(self, page: int) -> Callable[[hcloud.Client], Page]:
        selector = f"{OWNER_LABEL}={self._owner}"
        return lambda client: page_of(client.servers.get_list(label_selector=selector, page=page, per_page=PAGE))

    async def _adopt(self, order: Order) -> Server:
        """Its name is taken: by an earlier try of ours, whose answer was lost, or by somebody else."""
        answer = await self._calls(lambda client: page_of(client.servers.get_list(name=order.name)))
        found = next((each for each in answer.servers if each.name == order.name), None)
        if found is None:
            raise Uncertain(f"the name {order.name} is taken, and no server with it is listed")
        same = all(found.labels.get(label) == order.labels[label] for label in (OWNER_LABEL, NODE_LABEL))
        if not same or found.status is Status.DELETING:
            raise NameTaken(f"the name {order.name} is another server's")
        return self._noted(found)

    def _noted(self, server: Server) -> Server:
        self._places[server.id] = (server.type, server.location)
        return server

    def _why_not(self, error: Rejected, offer: Offer) -> ProviderError:
        what = f"{offer.type} at {offer.location}"
        if error.reason in NO_STOCK:
            again_at = self._breaker.trip(offer.key, self._calls.now())
            return OutOfStock(f"{what} is out of stock: {error.message}", offer=offer, again_at=again_at)
        if error.reason == "resource_limit_exceeded":
            kind = limit_of(error)
            said = f"the account may have no more {kind}: have its limit raised in the cloud's console; {error.message}"
            return AccountLimit(said, kind=kind)
        if error.reason == "invalid_server_type" or (
            error.reason == "invalid_input" and (error.fields & NO_SUCH_TYPE or "location" in error.message)
        ):
            self._shop.expire()
            again_at = self._breaker.trip(offer.key, self._calls.now())
            return OutOfStock(f"{what} is not sold any more: {error.message}", offer=offer, again_at=again_at)
        now = self._calls.now()
        if (error.reason == "not_found" or error.fields & OUR_FITTINGS) and self._fittings.forget(now):
            return Busy(f"the firewall or the key was removed and will be made anew: {error.message}")
        # What the token, the project or the account may not do at all has a meaning of its own: see ``faults``.
        again_at = self._breaker.trip(offer.key, self._calls.now())
        return OfferRefused(f"{what} cannot be bought: {error.message}", again_at=again_at)

    async def _is_going(self, server_id: int) -> bool:
        try:
            found = await self._calls(lambda client: client.servers.get_by_id(server_id), essential=True)
        except Rejected as error:
            if error.reason == "not_found":
                return True
            raise
        return found.status == Status.DELETING


def _purchase(order: Order, fitting: Fitting) -> Callable[[hcloud.Client], Server]:
    def send(client: hcloud.Client) -> Server:
        answer = client.servers.create(
            name=order.name,
            server_type=ServerType(name=order.offer.type),
            image=Image(name=order.image),
            location=Location(name=order.offer.location),
            ssh_keys=[fitting.key],
            firewalls=[fitting.firewall],
            user_data=order.user_data,
            labels=dict(order.labels),
            public_net=ServerCreatePublicNetwork(enable_ipv4=True, enable_ipv6=True),
        )
        return server_of(answer.server)

    return send


def _page_of_addresses(page: int) -> Callable[[hcloud.Client], PrimaryIPsPageResult]:
    return lambda client: client.primary_ips.get_list(page=page, per_page=PAGE)


def _is_stray(address: BoundPrimaryIP) -> bool:
    return address.type == "ipv4" and address.assignee_id is None


def connect(token: str, *, owner: str, endpoint: str = ENDPOINT) -> HetznerProvider:
    """A provider on the real clock; close it in the end. Sends nothing yet."""
    return HetznerProvider(Calls(token, endpoint=endpoint), owner=owner)
