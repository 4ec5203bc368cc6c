"""Sends deliveries: many endpoints side by side, each of them a few at a time, the dead ones hardly at all."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

import structlog

from functions import endpoints, signing_keys
from functions.db import Connection, Pool
from functions.endpoints import Sendable
from functions.errors import RGridError
from functions.grammar import BATCH_COMPLETED
from functions.ids import BatchId, EndpointId, MessageId, ProjectId
from functions.sealing import Sealer
from functions.signing import Signer
from scheduler import batches, deliveries, disabling
from scheduler.attempts import Carrier, next_state
from scheduler.breaker import Breaker, Share, is_trouble
from scheduler.callbacks import body_of
from scheduler.deliveries import Claimed, Exchanged
from scheduler.turns import Key, Turns
from scheduler.views import Links, job_object, read_jobs

log = structlog.get_logger(__name__)

IN_ALL = 192
WALK = 500
"""Endpoints looked at in one statement."""
LEASE = timedelta(seconds=30)
"""Outlasts an exchange (15 s) and what is around it; a killed sender's deliveries come back after it."""
FRESH = timedelta(seconds=5)
"""Written so lately: clocks of gateways are a little off."""

FORGET_EVERY_S = 1.0
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
    _breakers: dict[Key, Breaker] = field(default_factory=dict)
    _shares: dict[ProjectId, Share] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _turns: Turns = field(default_factory=Turns)
    _room_again: set[Key] = field(default_factory=set)
    _forget_at_s: float = float("-inf")
    _looked_s: float = float("-inf")

    async def deliver_once(self) -> bool:
        """Take what is due, as far as there is room, and send it in tasks of its own; whether to look on at once.

        All endpoints are looked at in turn, and again when all were. Where that takes several looks, it is begun
        once a second at most, and what was written lately is looked for apart: it does not wait for its turn.
        """
        await asyncio.sleep(self._looked_s + TOGETHER_S - time.monotonic())
        self._looked_s = time.monotonic()
        now_s = self.clock()
        full = [project for project, share in self._shares.items() if share.free(now_s) <= 0]
        async with self.pool.acquire() as conn:
            in_turn = await self._walk(conn, full) if self._turns.begin(now_s) else []
            apart: set[Key] = set()
            if self._turns.long:
                since = datetime.now(UTC) - FRESH
                apart = {*await deliveries.fresh_endpoints(conn, since, limit=WALK, full=full), *self._room_again}
            self._room_again.clear()
            # A set has no order: none of them is always the first.
            wanted, waits, room = self._room_for([*in_turn, *apart.difference(in_turn)])
            claimed = await deliveries.claim(conn, wanted, lease=LEASE) if wanted else []
        for project, batch in groupby(sorted(claimed, key=lambda each: each.project_id), lambda each: each.project_id):
            await self._send_all(project, list(batch))
        served = {(project, endpoint) for project, endpoint, _ in wanted}
        if waits and (behind := [key for key in in_turn if key in served]):
            if not room:
                self._turns.go_on_behind(behind[-1])
            elif behind := [key for key in behind if key[0] in waits]:
                self._turns.begin_behind(behind[-1])
        self._forget(now_s)
        return self._turns.under_way and len(self._tasks) < IN_ALL

    async def _walk(self, conn: Connection, full: Collection[ProjectId]) -> list[Key]:
        """The next endpoints in turn that have something due."""
        waiting = await deliveries.endpoints_waiting(conn, self._turns.after, limit=WALK, full=full)
        keys = [(each.project_id, each.endpoint) for each in waiting]
        self._turns.looked(keys[-1] if len(keys) == WALK else None)
        return [key for key, each in zip(keys, waiting, strict=True) if each.due]

    def _room_for(self, due: Sequence[Key]) -> tuple[list[tuple[ProjectId, str, int]], set[ProjectId], int]:
        """How many deliveries of each endpoint may be sent now, the projects that could take more if there were room,
        and the room that is left."""
        now_s, room, waits = self.clock(), IN_ALL - len(self._tasks), set()
        left: dict[ProjectId, int] = {}
        wanted = []
        for project, endpoint in due:
            share = self._shares.get(project) or Share()
            of_project = left.setdefault(project, share.free(now_s))
            free = (self._breakers.get((project, endpoint)) or Breaker()).free(now_s)
            most = min(free, share.of_each, of_project, room)
            if most < free:
                waits.add(project)
            if most > 0:
                wanted.append((project, endpoint, most))
                left[project] -= most
                room -= most
        return wanted, waits, room

    async def _send_all(self, project: ProjectId, batch: Sequence[Claimed]) -> None:
        """Begin to send claimed deliveries of one project."""
        try:
            async with self.pool.acquire() as conn:
                wanted = {each.endpoint_id for each in batch if each.endpoint_id is not None}
                there = await endpoints.for_sending(conn, project, wanted)
                batch = await self._takers(conn, batch, there)
                whose = {(each.endpoint_id, each.secrets) for each in batch}
                signers = await signing_keys.signers(conn, self.sealer, project, there, whose)
                found = await self._subjects(conn, project, batch)
        except Exception as error:  # one project's trouble must not stop the others' callbacks
            log.warning("callbacks cannot be signed", project=project, error=f"{type(error).__name__}: {error}")
            return
        for each in batch:
            row = None if each.endpoint_id is None else there[each.endpoint_id]
            self._begin(each, row, signers[each.endpoint_id, each.secrets], found.get(each.id))

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
                await deliveries.give_up(conn, each, deliveries.DISABLED)
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
            body = body_of(claimed.type, claimed.occurred_at, subject())
            exchanged = await self.carrier.carry(claimed, signer, body)
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
        if state == "exhausted":
            log.info("delivery exhausted", id=str(claimed.id), endpoint=claimed.endpoint, status=exchanged.status)

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
