"""Sends deliveries: many endpoints side by side, each of them a few at a time, the dead ones hardly at all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

import structlog
from svix.webhooks import Webhook

from functions import ids
from functions.db import Connection, Pool
from functions.egress import EgressFailed, EgressPolicy, EgressRefused, exchange
from functions.egress.exchange import DEADLINE_S
from functions.grammar import BATCH_COMPLETED
from functions.ids import BatchId, ProjectId
from functions.sealing import Sealer
from scheduler import batches, deliveries
from scheduler.callbacks import body_of
from scheduler.deliveries import Claimed, Exchanged, next_state
from scheduler.views import Links, job_object, read_jobs

log = structlog.get_logger(__name__)

PER_ENDPOINT = 4
PER_PROJECT = 64
"""A project whose every endpoint is dead must leave room for the others."""
IN_ALL = 192
WALK = 500
"""Endpoints looked at in one statement."""
LEASE = timedelta(seconds=30)
"""Outlasts an exchange (15 s) and what is around it; a killed sender's deliveries come back after it."""
EXCERPT_BYTES = 4096
FROM_THE_FIRST = (ProjectId(0), "")

TRUST = 5
"""So many exchanges without any answer, one after the other, and the endpoint counts as dead."""
FIRST_REST_S, LONGEST_REST_S = 10.0, 60.0
FORGET_S = 600.0

PROJECT_KEY = """
-- project_key
SELECT callback_secret FROM projects WHERE id = $1
"""


@dataclass(slots=True)
class _Health:
    """What this process knows of an endpoint. A dead one is tried with a single delivery after each rest."""

    in_flight: int = 0
    failures: int = 0
    resting_until_s: float = 0.0

    def free(self, now_s: float) -> int:
        if self.failures < TRUST:
            return PER_ENDPOINT - self.in_flight
        return 0 if now_s < self.resting_until_s else 1 - self.in_flight

    def saw(self, answered: bool, now_s: float) -> None:
        """A status is an answer, whatever it says: it costs no time, and each delivery has its own schedule."""
        self.failures = 0 if answered else self.failures + 1
        rest_s = min(FIRST_REST_S * 2 ** min(max(self.failures - TRUST, 0), 10), LONGEST_REST_S)
        self.resting_until_s = now_s + rest_s


@dataclass(slots=True)
class Sender:
    """One per process. ``changed`` is called when an exchange has ended: there may be room for the next one."""

    pool: Pool
    policy: EgressPolicy
    sealer: Sealer
    links: Links
    changed: Callable[[], None] = lambda: None
    deadline_s: float = DEADLINE_S
    clock: Callable[[], float] = time.monotonic
    _health: dict[tuple[ProjectId, str], _Health] = field(default_factory=dict)
    _projects: dict[ProjectId, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _after: tuple[ProjectId, str] = FROM_THE_FIRST

    async def deliver_once(self) -> bool:
        """Take what is due, as far as there is room, and send it in tasks of its own; whether to look on at once.

        Endpoints are looked at in turn, from behind the last one that was served when there was too little room.
        """
        began = self._after
        async with self.pool.acquire() as conn:
            waiting = await deliveries.endpoints_waiting(conn, began, limit=WALK)
            wanted, short = self._room_for([(each.project_id, each.endpoint) for each in waiting if each.due])
            claimed = await deliveries.claim(conn, wanted, lease=LEASE) if wanted else []
        for project, batch in groupby(sorted(claimed, key=lambda each: each.project_id), lambda each: each.project_id):
            await self._send_all(project, list(batch))
        if short and wanted:
            self._after = wanted[-1][:2]
        else:
            self._after = (waiting[-1].project_id, waiting[-1].endpoint) if len(waiting) == WALK else FROM_THE_FIRST
        self._forget()
        return (len(waiting) == WALK or began != FROM_THE_FIRST) and len(self._tasks) < IN_ALL

    def _room_for(self, due: Sequence[tuple[ProjectId, str]]) -> tuple[list[tuple[ProjectId, str, int]], bool]:
        """How many deliveries of each endpoint may be sent now; and whether it could take more if there were room."""
        now_s, room, taken, short = self.clock(), IN_ALL - len(self._tasks), dict(self._projects), False
        wanted = []
        for project, endpoint in due:
            free = (self._health.get((project, endpoint)) or _Health()).free(now_s)
            most = min(free, PER_PROJECT - taken.get(project, 0), room)
            short |= most < free
            if most > 0:
                wanted.append((project, endpoint, most))
                taken[project] = taken.get(project, 0) + most
                room -= most
        return wanted, short

    async def _send_all(self, project: ProjectId, batch: Sequence[Claimed]) -> None:
        """Begin to send claimed deliveries of one project."""
        try:
            async with self.pool.acquire() as conn:
                sealed = await conn.fetchval(PROJECT_KEY, project)
                found = await self._subjects(conn, project, batch)
            signer = Webhook(self.sealer.open(sealed).decode())
        except Exception as error:  # one project's trouble must not stop the others' callbacks
            log.warning("callbacks cannot be signed", project=project, error=f"{type(error).__name__}: {error}")
            return
        for each in batch:
            self._begin(each, signer, found.get(each.job_id))

    async def _subjects(
        self, conn: Connection, project: ProjectId, claimed: Sequence[Claimed]
    ) -> dict[UUID, Callable[[], dict[str, Any]]]:
        """What the deliveries tell of, as objects to be made when they are sent: links in them are fresh then."""
        found: dict[UUID, Callable[[], dict[str, Any]]] = {}
        of_batches = {each.job_id for each in claimed if each.type == BATCH_COMPLETED}
        for batch in await batches.read_all(conn, project, [BatchId(each) for each in of_batches]):
            found[batch.id] = partial(batches.batch_object, batch)
        for record in await read_jobs(conn, project, sorted({each.job_id for each in claimed} - of_batches)):
            found[record.id] = partial(job_object, record, self.links)
        return found

    def _begin(self, claimed: Claimed, signer: Webhook, subject: Callable[[], dict[str, Any]] | None) -> None:
        key = (claimed.project_id, claimed.endpoint)
        self._health.setdefault(key, _Health()).in_flight += 1
        self._projects[claimed.project_id] = self._projects.get(claimed.project_id, 0) + 1
        task = asyncio.get_running_loop().create_task(self._send(claimed, signer, subject))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, claimed))

    def _ended(self, task: asyncio.Task[None], claimed: Claimed) -> None:
        self._tasks.discard(task)
        self._health[claimed.project_id, claimed.endpoint].in_flight -= 1
        self._projects[claimed.project_id] -= 1
        if not self._projects[claimed.project_id]:
            del self._projects[claimed.project_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Unrecorded: it comes back when its lease ends, with the same id.
            log.warning("delivery not recorded", id=str(claimed.id), error=f"{type(error).__name__}: {error}")
        self.changed()

    async def _send(self, claimed: Claimed, signer: Webhook, subject: Callable[[], dict[str, Any]] | None) -> None:
        if subject is None:
            # Its retention is over: there is nothing left to tell.
            state, pause, exchanged = "exhausted", timedelta(0), Exchanged(0, error="the job is not kept any more")
        else:
            body = body_of(claimed.type, claimed.occurred_at, subject())
            exchanged = await attempt(self.policy, claimed, signer, body, deadline_s=self.deadline_s)
            state, pause = next_state(claimed.tries + 1, exchanged, random.random())  # noqa: S311
            health = self._health[claimed.project_id, claimed.endpoint]
            health.saw(exchanged.status is not None, self.clock())
        async with self.pool.acquire() as conn:
            await deliveries.record(conn, claimed, exchanged, state, pause)
        if state == "exhausted":
            log.info("delivery exhausted", id=str(claimed.id), endpoint=claimed.endpoint, status=exchanged.status)

    def _forget(self) -> None:
        """Endpoints of which there is nothing to remember."""
        now_s = self.clock()
        for key in [
            key
            for key, health in self._health.items()
            if not health.in_flight and (not health.failures or now_s > health.resting_until_s + FORGET_S)
        ]:
            del self._health[key]

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


async def attempt(
    policy: EgressPolicy, claimed: Claimed, signer: Webhook, body: str, *, deadline_s: float
) -> Exchanged:
    """One signed exchange with the endpoint, whatever comes of it."""
    name, now, started_s = ids.encode(ids.MESSAGE, claimed.id), datetime.now(UTC), time.monotonic()
    headers = {
        "content-type": "application/json",
        "user-agent": "RGrid",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signer.sign(name, now, body),
    }
    try:
        answer = await exchange(policy, "POST", claimed.url, headers, body.encode(), deadline_s=deadline_s)
    except EgressRefused as error:
        return Exchanged(_ms_since(started_s), error=_plain(error.message))
    except EgressFailed as error:
        return Exchanged(_ms_since(started_s), address=error.address, error=_plain(error.message))
    return Exchanged(
        answer.duration_ms,
        address=answer.address,
        status=answer.status,
        error=None if 200 <= answer.status < 300 else _complaint(answer.status),
        response=_plain(answer.body[:EXCERPT_BYTES].decode(errors="replace")),
        retry_after_s=retry_after(answer.headers, now),
    )


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the receiver asks for, as a number or as a date; None if it does not, or makes no sense."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()


def _complaint(status: int) -> str:
    if 300 <= status < 400:
        return f"it answered {status}, and redirects are not followed"
    if status == deliveries.GONE:
        return "it answered 410: it wants no more"
    return f"it answered {status}"


def _ms_since(started_s: float) -> int:
    return round((time.monotonic() - started_s) * 1000)


def _plain(text: str) -> str:
    """PostgreSQL's text holds no NUL, which a stranger's answer may."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
