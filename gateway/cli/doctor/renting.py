"""What rented nodes need of this deployment: an address that they reach, the agent's files, and a scheduler that looks
after them. No call to the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, ip_address
from urllib.parse import urlsplit

import asyncpg
import httpx

from functions.db import Connection
from functions.egress import is_public
from functions.egress.lookup import system_resolver
from functions.errors import RGridError
from gateway.autoscaling import owner_of
from gateway.cli.doctor.findings import Finding, ok, skipped, warning, wrong
from gateway.settings import Settings
from nodes import fleet
from nodes.agent.facts import agent_version
from nodes.agent_files import AgentFiles
from nodes.fleet import Fleet
from nodes.provider import Server
from nodes.rented import live

ANSWER_S = 5
ROUND_LATE, LIST_LATE = timedelta(minutes=2), timedelta(minutes=10)
"""There is a round every few seconds, and a list every minute or, of a thousand servers, every few."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the database says. ``ours_now`` and ``cloud_now`` are what its clock and the cloud's say, by its rows."""

    conn: Connection
    owner: str
    fleet: Fleet
    ours_now: datetime
    cloud_now: datetime

    async def unknown(self, listed: Sequence[Server]) -> list[Server]:
        """Those without a row."""
        rows = await live(self.conn)
        names, ids = {row.name for row in rows}, {row.cloud_id for row in rows}
        return [server for server in listed if server.name not in names and server.id not in ids]


@asynccontextmanager
async def opened_books(settings: Settings) -> AsyncIterator[Books | None]:
    """None where the database does not answer or has no such tables yet; others say so."""
    try:
        conn = await asyncpg.connect(
            settings.database_url.get_secret_value(), timeout=ANSWER_S, command_timeout=ANSWER_S
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError):
        yield None
        return
    try:
        yield await _read(conn, settings)
    finally:
        await conn.close(timeout=ANSWER_S)


async def _read(conn: Connection, settings: Settings) -> Books | None:
    try:
        ours, cloud = await fleet.clocks(conn)
        return Books(conn, await owner_of(conn, settings), await fleet.get(conn), ours, cloud)
    except (OSError, asyncpg.PostgresError, TypeError):
        return None


async def renting(settings: Settings, books: Books | None) -> AsyncIterator[Finding]:
    yield await public_url(settings.public_url)
    yield await _agent(settings)
    if books is not None:
        yield _scheduler(books)
        yield _account_limit(books, settings.max_nodes)


async def public_url(url: str | None) -> Finding:
    """As far as can be told from here: servers call from outside, over IPv4."""
    part = "public url"
    advice = "set RGRID_PUBLIC_URL to an https address that the internet reaches"
    if url is None:
        return wrong(part, "none is set", advice)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        async with asyncio.timeout(ANSWER_S):
            found = {ip_address(text) for text in await system_resolver(host, 443)}
    except (OSError, TimeoutError, ValueError):
        return wrong(part, f"{url}: its host is not found", advice)
    addresses = sorted(address for address in found if isinstance(address, IPv4Address))
    if not addresses:
        return wrong(part, f"{host} has no IPv4 address", advice)
    inside = [address for address in addresses if not is_public(address)]
    if inside:
        return wrong(part, f"{host} leads to {inside[0]}, which is not reached from outside", advice)
    if parts.scheme != "https":
        return warning(part, f"{url} is not encrypted", "nodes send their credential there: use https")
    return ok(part, f"{url} leads to {', '.join(map(str, addresses))}")


async def _agent(settings: Settings) -> Finding:
    """Built, of this release, and the same at the gateway."""
    part = "agent files"
    try:
        built = AgentFiles.load(settings.agent_folder)
    except RGridError as error:
        return wrong(part, error.message, "run `make agent`")
    if not built.files:
        return wrong(part, f"none in {settings.agent_folder}", "run `make agent`, or set RGRID_AGENT_DIR")
    found = f"{built.version} for {', '.join(sorted(built.files))}"
    if built.version != agent_version():
        return warning(part, f"{found}; this is rgrid {agent_version()}", "run `make agent`")
    served = await _served(settings.base_url)
    if served is None:
        return ok(part, f"{found}; the gateway does not answer there")
    if served != {target: file.sha256 for target, file in built.files.items()}:
        advice = "give gateways and schedulers the same RGRID_AGENT_DIR, and restart them"
        return wrong(part, f"{found}, but the gateway has others", advice)
    return ok(part, f"{found}, as the gateway has them")


async def _served(base_url: str) -> dict[str, str] | None:
    """What the gateway offers: hash by target; None if it does not answer."""
    try:
        async with httpx.AsyncClient(timeout=ANSWER_S) as http:
            answer = (await http.get(f"{base_url}/node/v1/agent")).raise_for_status().json()
        return {target: file["sha256"] for target, file in answer["files"].items()}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
        return None


def _scheduler(books: Books) -> Finding:
    part = "fleet"
    state = books.fleet
    if state.told_at is None or state.reconciled_at is None:
        return skipped(part, "no scheduler has looked after it yet", "start `rgrid scheduler` with these settings")
    round_age, list_age = (max(timedelta(), books.ours_now - at) for at in (state.told_at, state.reconciled_at))
    found = f"last round {round_age.total_seconds():.0f} s ago, last whole list {list_age.total_seconds():.0f} s ago"
    if round_age > ROUND_LATE:
        return wrong(part, found, "is a scheduler running, with RGRID_PROVIDER=hetzner? Its log says more")
    if state.problem is not None:
        return wrong(part, state.problem, "see docs/operations/nodes.md")
    if list_age > LIST_LATE:
        return wrong(part, found, "the cloud does not answer, or only in parts: the scheduler's log says more")
    return ok(part, found)


def _account_limit(books: Books, wanted: int) -> Finding:
    """The cloud says it only by refusing."""
    part = "account limit"
    limit = books.fleet.limit(books.cloud_now)
    if limit is not None and limit < wanted:
        until = books.fleet.limit_until
        assert until is not None
        left_min = (until - books.cloud_now).total_seconds() / 60
        found = f"no more than {limit} servers, as a refusal taught; tried again in {left_min:.0f} min"
        return warning(part, found, "have it raised in the cloud's console, or lower RGRID_MAX_NODES")
    return ok(part, f"not met lately; RGRID_MAX_NODES is {wanted}")
