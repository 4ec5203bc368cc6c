"""Sends deliveries: many endpoints side by side, each of them a few at a time, the dead ones hardly at all."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

import structlog

from functions import endpoint_health, signing_keys
from functions.db import Connection, Pool
from functions.endpoint_health import Sendable
from functions.errors import RGridError
from functions.grammar import BATCH_COMPLETED
from functions.ids import BatchId, EndpointId, MessageId, ProjectId
from functions.sealing import Sealer
from functions.signing import Signer
from scheduler import batches, deliveries, disabling
from scheduler.attempts import Carrier, next_state
from scheduler.breaker import Breaker, Share, is_trouble, part_of
from scheduler.callbacks import body_of
from scheduler.deliveries import Claimed, Exchanged
from scheduler.new_deliveries import DISABLED
from scheduler.round_records import Records, Tally
from scheduler.turns import LONG, SHORT, Key, Lines, Turns
from scheduler.views import Links, job_object, read_jobs

log = structlog.get_logger(__name__)

IN_ALL = 192
WALK = 500
"""Endpoints looked at in one statement."""
LEASE = timedelta(seconds=30)
"""Outlasts an exchange (15 s) and what is around it; a killed sender's deliveries come back after it."""
BEGIN_S = 10.0
"""How long after the claim an exchange may begin: a later one could outlast the lease, and then it would be made again
and never be counted."""
FRESH = timedelta(seconds=5)
"""Written so lately: clocks of gateways are a little off."""

FORGET_EVERY_S = 1.0
TALLIES = {
    "delivered": Tally.DELIVERIES_TAKEN,
    "pending": Tally.DELIVERIES_FAILED,
    "exhausted": Tally.DELIVERIES_EXHAUSTED,
}
"""By what an attempt makes of its delivery."""
Prepared = tuple[Claimed, Sendable | None, Signer | RGridError, Callable[[], dict[str, Any]] | None]
"""A delivery, its endpoint's row, what signs it, and what makes the object that it tells of."""
TOGETHER_S = 0.025
"""What comes due in so short a time is taken together: a look costs the same for one as for many."""


@dataclass(slots=True)
class Sender:
    """One per process. ``changed`` is called when an exchange has ended: there may be room for the next one."""

    pool: Pool
    carrier: Carrier
    sealer: Sealer
    links: Links
    changed: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    records: Records = field(default_factory=Records)
    _breakers: dict[Key, Breaker] = field(default_factory=dict)
    _shares: dict[ProjectId, Share] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _turns: Turns = field(default_factory=Turns)
    _lines: Lines = field(default_factory=Lines)
    _room_again: set[Key] = field(default_factory=set)
    _forget_at_s: float = float("-inf")
    _looked_s: float = float("-inf")

    async def deliver_once(self) -> bool:
        """Take what is due, as far as there is room, and send it in tasks of its own; whether to look on at once.

        All endpoints are looked at in turn, and again when all were; those that may be sent something stand in line.
        Where that takes several looks, it is begun once a second at most, and what was written lately is looked for
        apart: it does not wait for its turn.
        """
        await asyncio.sleep(self._looked_s + TOGETHER_S - time.monotonic())
        self._looked_s = time.monotonic()
        async with self.pool.acquire() as conn:
            await self._walk(conn)
            if self._turns.long:
                await self._line_up_apart(conn)
            self._room_again.clear()
            wanted = self._next()
            begin_by_s = time.monotonic() + BEGIN_S
            claimed = await deliveries.claim(conn, wanted, lease=LEASE) if wanted else []
        for project, batch in groupby(sorted(claimed, key=lambda each: each.project_id), lambda each: each.project_id):
            prepared = await self._prepared(project, list(batch))
            if time.monotonic() > begin_by_s:
                log.warning("callbacks wait: the database is slow", claimed=len(claimed))
                break
            for each in prepared:
                self._begin(*each)
        self._forget(self.clock())
        return self._turns.under_way and len(self._tasks) < IN_ALL

    async def _walk(self, conn: Connection) -> None:
        """Line up the next endpoints in turn that have something due, if it is time for a look."""
        long = self._lines.of(LONG)
        if not self._turns.begin(self.clock(), long):
            return
        passed_by = long | self._turns.left
        waiting = await deliveries.endpoints_waiting(conn, self._turns.after, limit=WALK, full=passed_by)
        keys = [(each.project_id, each.endpoint) for each in waiting]
        due = [key for key, each in zip(keys, waiting, strict=True) if each.due]
        self._line_up(key for key in due if key[0] not in passed_by)
        last = keys[-1] if len(keys) == WALK else None
        self._turns.looked(last)
        if last is not None and last[0] in self._lines.of(LONG) - passed_by:
            self._turns.leave(last)

    async def _line_up_apart(self, conn: Connection) -> None:
        """Line up what was written lately, and those of whose messages one has just ended."""
        full, since = self._lines.of(SHORT), datetime.now(UTC) - FRESH
        self._line_up(await deliveries.fresh_endpoints(conn, since, limit=WALK, full=full))
        self._line_up(key for key in self._room_again if key[0] not in full)

    def _line_up(self, keys: Iterable[Key]) -> None:
        now_s = self.clock()
        self._lines.join(key for key in keys if (self._breakers.get(key) or Breaker()).free(now_s) > 0)

    def _next(self) -> list[tuple[ProjectId, str, int]]:
        """Who is sent to now, and how many messages each may get."""
        now_s, room, wanted = self.clock(), IN_ALL - len(self._tasks), []
        for project in self._lines.projects(self._in_flight):
            share = self._shares.get(project) or Share()
            left = min(share.free(now_s), part_of(room, share.in_flight))
            while left > 0 and (endpoint := self._lines.take(project)) is not None:
                free = (self._breakers.get((project, endpoint)) or Breaker()).free(now_s)
                most = min(free, share.of_each, left)
                if most > 0:
                    wanted.append((project, endpoint, most))
                    left, room = left - most, room - most
        return wanted

    def _in_flight(self, project: ProjectId) -> int:
        return self._shares[project].in_flight if project in self._shares else 0

    async def _prepared(self, project: ProjectId, batch: Sequence[Claimed]) -> list[Prepared]:
        """Claimed deliveries of one project with what it takes to send them; those that are not sent end here."""
        try:
            async with self.pool.acquire() as conn:
                wanted = {each.endpoint_id for each in batch if each.endpoint_id is not None}
                there = await endpoint_health.for_sending(conn, project, wanted)
                batch = await self._takers(conn, batch, there)
                whose = {(each.endpoint_id, each.secrets) for each in batch}
                signers = await signing_keys.signers(conn, self.sealer, project, there, whose)
                found = await self._subjects(conn, project, batch)
        except Exception as error:  # one project's trouble must not stop the others' callbacks
            log.warning("callbacks cannot be signed", project=project, error=f"{type(error).__name__}: {error}")
            return []
        return [
            (
                each,
                None if each.endpoint_id is None else there[each.endpoint_id],
                signers[each.endpoint_id, each.secrets],
                found.get(each.id),
            )
            for each in batch
        ]

    async def _takers(
        self, conn: Connection, batch: Sequence[Claimed], there: Mapping[EndpointId, Sendable]
    ) -> list[Claimed]:
        """Those whose endpoint takes messages; the others end here. A test is sent to a disabled one as well."""
        left = []
        for each in batch:
            row = None if each.endpoint_id is None else there.get(each.endpoint_id)
            if each.endpoint_id is not None and row is None:
                await deliveries.give_up(conn, each, deliveries.DELETED)
            elif row is not None and row.disabled_reason is not None and each.type != deliveries.TEST:
                await deliveries.give_up(conn, each, DISABLED)
            elif each.gone:
                await deliveries.give_up(conn, each, deliveries.GONE)
            else:
                left.append(each)
        return left

    async def _subjects(
        self, conn: Connection, project: ProjectId, claimed: Sequence[Claimed]
    ) -> dict[MessageId, Callable[[], dict[str, Any]]]:
        """What the deliveries tell of, as objects to be made when they are sent: links in them are fresh then."""
        found: dict[UUID, Callable[[], dict[str, Any]]] = {}
        made = [each for each in claimed if each.payload is None]
        of_batches = {each.job_id for each in made if each.type == BATCH_COMPLETED}
        for batch in await batches.read_all(conn, project, [BatchId(each) for each in of_batches]):
            found[batch.id] = partial(batches.batch_object, batch)
        for record in await read_jobs(conn, project, sorted({each.job_id for each in made} - of_batches)):
            found[record.id] = partial(job_object, record, self.links)
        return {each.id: found[each.job_id] for each in made if each.job_id in found} | {
            each.id: partial(json.loads, each.payload) for each in claimed if each.payload is not None
        }

    def _begin(
        self,
        claimed: Claimed,
        row: Sendable | None,
        signer: Signer | RGridError,
        subject: Callable[[], dict[str, Any]] | None,
    ) -> None:
        key = (claimed.project_id, claimed.endpoint)
        self._breakers.setdefault(key, Breaker()).in_flight += 1
        self._shares.setdefault(claimed.project_id, Share()).in_flight += 1
        task = asyncio.get_running_loop().create_task(self._send(claimed, row, signer, subject))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, claimed))

    def _ended(self, task: asyncio.Task[None], claimed: Claimed) -> None:
        self._tasks.discard(task)
        self._room_again.add((claimed.project_id, claimed.endpoint))
        self._breakers[claimed.project_id, claimed.endpoint].in_flight -= 1
        self._shares[claimed.project_id].in_flight -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            # Unrecorded: it comes back when its lease ends, with the same id.
            log.warning("delivery not recorded", id=str(claimed.id), error=f"{type(error).__name__}: {error}")
        self.changed()

    async def _send(
        self,
        claimed: Claimed,
        row: Sendable | None,
        signer: Signer | RGridError,
        subject: Callable[[], dict[str, Any]] | None,
    ) -> None:
        if subject is None:
            # Its retention is over: there is nothing left to tell.
            exchanged = Exchanged(0, error="the job is not kept any more", unwanted=True, by_receiver=False)
        elif isinstance(signer, RGridError):
            exchanged = Exchanged(0, error=f"not signed, and so not sent: {signer.message}", by_receiver=False)
        else:
            exchanged = await self._carry(claimed, signer, subject)
            trouble, now_s = is_trouble(exchanged), self.clock()
            self._breakers[claimed.project_id, claimed.endpoint].saw(trouble, now_s)
            self._shares[claimed.project_id].saw(trouble, now_s)
        state, pause = next_state(claimed.tries + 1, exchanged, random.random(), claimed.type)  # noqa: S311
        async with self.pool.acquire() as conn:
            if not disabling.says_something(claimed, row, exchanged):
                await deliveries.record(conn, claimed, exchanged, state, pause)
            else:
                async with conn.transaction():
                    ends = await disabling.note(conn, claimed, exchanged)
                    await deliveries.record(conn, claimed, exchanged, state, pause)
                    if ends:
                        await disabling.end_others(conn, claimed)
        self.records.count(TALLIES[state])
        if state == "exhausted":
            log.info("delivery exhausted", id=str(claimed.id), endpoint=claimed.endpoint, status=exchanged.status)

    async def _carry(self, claimed: Claimed, signer: Signer, subject: Callable[[], dict[str, Any]]) -> Exchanged:
        try:
            body = body_of(claimed.type, claimed.occurred_at, subject())
            return await self.carrier.carry(claimed, signer, body)
        except Exception as error:
            # Without an attempt in the log it would be sent again each half minute, for ever.
            log.error("callback broke", id=str(claimed.id), exc_info=error)
            return Exchanged(0, error="it could not be sent: an error of RGrid's", by_receiver=False)

    def _forget(self, now_s: float) -> None:
        """Endpoints and projects of which there is nothing to remember; looked for now and then."""
        if now_s < self._forget_at_s:
            return
        self._forget_at_s = now_s + FORGET_EVERY_S
        for key in [key for key, breaker in self._breakers.items() if breaker.forgettable(now_s)]:
            del self._breakers[key]
        for project in [project for project, share in self._shares.items() if share.forgettable(now_s)]:
            del self._shares[project]

    async def idle(self) -> None:
        """Return once nothing is being sent."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self, *, grace_s: float) -> None:
        """Let exchanges end for a moment, then cut them: those deliveries are sent again, with the same id."""
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
