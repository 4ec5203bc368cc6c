"""The cloud that nodes are rented from: whether a purchase would work now, what it would cost, what is there already.

A dozen calls that change nothing; what is missing, the scheduler makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from datetime import UTC, datetime

from gateway.cli.doctor.findings import Finding, State, ok, skipped, warning, wrong
from gateway.cli.doctor.renting import Books
from gateway.settings import Settings
from nodes.hetzner.provider import HetznerProvider, connect
from nodes.offers import Offer, Wanted, wanted
from nodes.provider import CLOCKS_APART, ProviderError, Refused, Server

ANSWER_S = 20
"""For each look, which is a few calls."""
HOURS_A_MONTH = 730
SHOWN = 3
NOBODY = "rgrid-doctor"


async def cloud(settings: Settings, books: Books | None) -> AsyncIterator[Finding]:
    """``books`` is what the database says; without it, nothing is looked up by the deployment's own label."""
    if settings.hcloud_token is None:
        advice = "only the scheduler needs it: run this where RGRID_HCLOUD_TOKEN is set"
        yield skipped("cloud token", "none is set here", advice)
        return
    owner = settings.owner if books is None else books.owner
    provider = connect(
        settings.hcloud_token.get_secret_value(), owner=owner or NOBODY, endpoint=settings.hcloud_endpoint
    )
    try:
        token = await _told("cloud token", _token(provider))
        yield token
        if token.state is not State.OK:
            return
        yield _clock(provider)
        found = await _wanted(provider, settings)
        if isinstance(found, Finding):
            yield found
        else:
            for one in _types(found, settings):
                yield one
            if found.offers:
                yield _worst(found.offers, settings)
            for architecture in sorted({offer.architecture for offer in found.offers}):
                yield await _told("server image", _image(provider, settings.node_image, architecture))
        if owner is not None:
            yield await _told("firewall and key", _fittings(provider))
            yield await _told("cloud project", _project(provider))
        if books is not None:
            yield await _told("cloud servers", _servers(provider, books))
        yield await _told("cloud addresses", _addresses(provider))
    finally:
        provider.close()


async def _told(part: str, look: Awaitable[Finding]) -> Finding:
    """What the look finds, or what the cloud says instead."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await look
    except Refused as error:
        return wrong(part, error.message, "see docs/operations/nodes.md; then restart the scheduler")
    except ProviderError as error:
        return wrong(part, error.message, "try again; RGRID_HCLOUD_ENDPOINT must be within this machine's reach")
    except TimeoutError:
        return wrong(part, f"the cloud does not answer within {ANSWER_S} s", "try again")


async def _token(provider: HetznerProvider) -> Finding:
    await provider.check_token()
    return ok("cloud token", "it works, and may read and write")


def _clock(provider: HetznerProvider) -> Finding:
    part = "cloud clock"
    said = provider.said_now()
    if said is None:
        return warning(part, "the cloud does not say what time it is", "paid hours are counted by this machine's clock")
    apart = abs(said - datetime.now(UTC))
    found = f"{apart.total_seconds():.0f} s from this machine's"
    if apart > CLOCKS_APART:
        return warning(part, found, "set this machine's clock and the database's by NTP: paid hours end by the cloud's")
    return ok(part, found)


async def _wanted(provider: HetznerProvider, settings: Settings) -> Wanted | Finding:
    try:
        async with asyncio.timeout(ANSWER_S):
            catalogue = await provider.catalogue()
    except (ProviderError, TimeoutError) as error:
        said = error.message if isinstance(error, ProviderError) else f"no answer within {ANSWER_S} s"
        return wrong("server types", f"the price list cannot be had: {said}", "try again")
    return wanted(
        catalogue, settings.node_types, ceiling=settings.max_eur_slot_hour, locations=settings.node_locations,
        now=provider.now(),
    )  # fmt: skip


def _types(found: Wanted, settings: Settings) -> Iterator[Finding]:
    """One for each type of the wish, and one for all of it if that is nothing."""
    for name in dict.fromkeys(settings.node_types):
        offers = [offer for offer in found.offers if offer.type == name]
        if offers:
            yield _type(name, offers)
        else:
            advice = "take it out of RGRID_NODE_TYPES, or widen RGRID_NODE_LOCATIONS or RGRID_MAX_EUR_SLOT_HOUR"
            yield skipped(f"type {name}", found.skipped[name], advice)
    if not found.offers:
        yield wrong("server types", "none of RGRID_NODE_TYPES can be bought", "name others; the lines above say why")
    elif not any(offer.available for offer in found.offers):
        yield warning("server types", "all are sold out", "jobs wait until one is back: name more types or locations")


def _type(name: str, offers: Sequence[Offer]) -> Finding:
    """As of now: what a slot costs an hour, and where it can be had."""
    part = f"type {name}"
    here = [offer for offer in offers if offer.available]
    out = ", ".join(offer.location for offer in offers if not offer.available)
    prices = sorted({offer.per_slot for offer in here or offers})
    price = " to ".join(f"{each:.4f}" for each in dict.fromkeys((prices[0], prices[-1])))
    found = f"{offers[0].slots} slots at {price} EUR an hour each"
    if not here:
        return warning(part, f"{found}; sold out at {out}", "name other types or locations beside it")
    found += f", in stock at {', '.join(offer.location for offer in here)}" + (f"; sold out at {out}" if out else "")
    ends = min((offer.gone_after for offer in offers if offer.gone_after is not None), default=None)
    if ends is not None:
        return warning(part, f"{found}; sold until {ends:%Y-%m-%d}", "name its successor in RGRID_NODE_TYPES")
    return ok(part, found)


def _worst(offers: Sequence[Offer], settings: Settings) -> Finding:
    """What the limits allow at most, net."""
    part = "worst case"
    if settings.max_nodes == 0 or settings.max_eur_hour == 0 or settings.max_eur_month == 0:
        return warning(part, "nothing may be bought", "RGRID_MAX_NODES, RGRID_MAX_EUR_HOUR or RGRID_MAX_EUR_MONTH is 0")
    hour = settings.max_nodes * max(offer.hourly for offer in offers)
    hour = hour if settings.max_eur_hour is None else min(hour, settings.max_eur_hour)
    month = hour * HOURS_A_MONTH
    month = month if settings.max_eur_month is None else min(month, settings.max_eur_month)
    return ok(part, f"{settings.max_nodes} servers, {hour:.4f} EUR an hour, {month:.2f} EUR a month of 730 hours")


async def _image(provider: HetznerProvider, image: str, architecture: str) -> Finding:
    part = "server image"
    ending = await provider.check_image(image, architecture)
    if ending is not None:
        return warning(part, ending, "set RGRID_NODE_IMAGE")
    return ok(part, f"{image} for {architecture}")


async def _fittings(provider: HetznerProvider) -> Finding:
    part = "firewall and key"
    missing = await provider.missing_fittings()
    if missing:
        return skipped(part, f"no {' and no '.join(missing)} yet", "the scheduler makes them when it starts")
    return ok(part, "both are there, and nothing is let in")


async def _project(provider: HetznerProvider) -> Finding:
    part = "cloud project"
    others = await provider.strangers()
    if others:
        advice = "give RGrid a project of its own, so that its token can do nothing to them"
        return warning(part, f"servers of others in the token's project: {others}", advice)
    return ok(part, "this deployment's alone")


async def _servers(provider: HetznerProvider, books: Books) -> Finding:
    part = "cloud servers"
    listing = await provider.list_servers()
    # Rows are written before servers are bought: read after the list, they have all of it.
    unknown = await books.unknown(listing.servers)
    found = f"{len(listing.servers)} with the label of {books.owner}, {len(unknown)} unknown to the database"
    if not listing.complete:
        return warning(part, f"{found}; the list has gaps", "try again")
    if unknown:
        advice = "the scheduler deletes them, or says why not: see `rgrid nodes` and docs/operations/nodes.md"
        return warning(part, f"{found}: {_names(unknown)}", advice)
    blocked = [server for server in listing.servers if server.blocked]
    if blocked:
        return warning(part, f"the cloud has blocked the address of {_names(blocked)}", "read its messages to you")
    return ok(part, found)


async def _addresses(provider: HetznerProvider) -> Finding:
    part = "cloud addresses"
    strays = await provider.stray_addresses()
    if strays:
        more = f" and {len(strays) - SHOWN} more" if len(strays) > SHOWN else ""
        return warning(part, f"without a server, and paid for: {', '.join(strays[:SHOWN])}{more}", "delete them")
    return ok(part, "none without a server")


def _names(servers: Sequence[Server]) -> str:
    more = f" and {len(servers) - SHOWN} more" if len(servers) > SHOWN else ""
    return ", ".join(server.name for server in servers[:SHOWN]) + more
