"""What holds of a fleet at every moment: no server without a row, no more of them nor dearer ones than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

from functions.db import Pool
from nodes.provider import OWNER_LABEL
from nodes.wish import Wish
from tests.hetzner.rules import Call
from tests.hetzner.server import Emulator
from tests.hetzner.things import Server

UNKNOWN_FOR = timedelta(minutes=5)
"""The longest that one of ours may be there without a row: its grace, and the lists around it."""
STANDS = "SELECT state FROM servers WHERE name = $1 AND ended_at IS NULL"
KNOWN = "SELECT cloud_id, name FROM servers WHERE ended_at IS NULL"
SAID = """
SELECT problem FROM fleet UNION ALL SELECT error FROM servers UNION ALL SELECT detail FROM node_events
UNION ALL SELECT reason FROM node_waits
"""


class Watch:
    """Sees every call to the cloud. ``broken`` is what should not have been, in words."""

    def __init__(self, cloud: Emulator, pool: Pool, wish: Callable[[], Wish]) -> None:
        self._cloud, self._pool, self._wish = cloud, pool, wish
        self._loop = asyncio.get_running_loop()
        self._unknown_since: dict[str, datetime] = {}
        self.strangers: set[int] = set()
        """Servers that are not the fleet's, whatever their labels say."""
        self.broken: list[str] = []

    def __call__(self, call: Call, phase: str) -> None:
        """For ``Emulator.on_call``: in the thread that answers."""
        if (call.method, call.path) != ("POST", "/servers"):
            return
        if phase == "before":
            asking = asyncio.run_coroutine_threadsafe(self._pool.fetchval(STANDS, call.name), self._loop)
            if (state := asking.result(10)) != "creating":
                self.broken.append(f"{call.name} was bought while its row was {state}")
        elif call.committed:
            self._check_caps(call)

    def _check_caps(self, call: Call) -> None:
        caps, now = self._wish().caps, self._cloud.now
        if len(self._ours()) > caps.nodes:
            self.broken.append(f"{call.name} is one more server than {caps.nodes}")
        if caps.hourly is None:
            return
        lines = [line for line in self._cloud.cloud.bill.lines if line.server not in {None, *self.strangers}]
        an_hour = sum((line.price_at(now).hourly for line in lines if line.paid_until(now) > now), Decimal(0))
        if an_hour > caps.hourly:
            self.broken.append(f"with {call.name} an hour costs {an_hour}, more than {caps.hourly}")

    def _ours(self) -> list[Server]:
        owner, there = self._wish().owner, list(self._cloud.cloud.servers.values())
        return [each for each in there if each.labels.get(OWNER_LABEL) == owner and each.id not in self.strangers]

    async def check(self) -> None:
        """Between two rounds."""
        assert self.broken == []
        rows = await self._pool.fetch(KNOWN)
        ids, names = {row["cloud_id"] for row in rows}, {row["name"] for row in rows}
        unknown = {each.name for each in self._ours() if each.id not in ids and each.name not in names}
        now = self._cloud.now
        self._unknown_since = {name: self._unknown_since.get(name, now) for name in unknown}
        assert all(now - since < UNKNOWN_FOR for since in self._unknown_since.values()), self._unknown_since

    async def check_words(self) -> None:
        """Nothing that anybody may read has the token, or its beginning."""
        said = [text for row in await self._pool.fetch(SAID) if (text := row[0]) is not None]
        assert all(self._cloud.token[:8] not in text for text in said), said
