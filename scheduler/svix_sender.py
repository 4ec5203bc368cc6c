"""Hands messages to a Svix server, which signs, sends and repeats them: an application for each project, an endpoint
for each of its callbacks, each message on the channel of the one callback that it is for.

A message's id is its event id there, so that it is taken once however often it is handed over. Addresses that single
jobs were given are sent to as ever: over there each would stay an endpoint for good.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import structlog
from svix.api.application import ApplicationListOptions
from svix.api.endpoint import EndpointListOptions
from svix.api.message import MessageCreateOptions
from svix.api.svix import SvixAsync, SvixOptions
from svix.exceptions import HttpError, HTTPValidationError
from svix.models import (
    ApplicationIn,
    EndpointIn,
    EndpointOut,
    EndpointPatch,
    EndpointSecretRotateIn,
    EventTypeUpsertIn,
    MessageIn,
)

from functions import endpoint_health, ids, signing
from functions.db import Pool
from functions.endpoint_health import EndpointState
from functions.grammar import PROJECT_EVENTS
from functions.ids import EndpointId, ProjectId
from functions.signing import Signer
from scheduler import deliveries, disabling, redelivering
from scheduler.attempts import EXCERPT_BYTES, Carrier, ms_since
from scheduler.deliveries import TEST, Claimed, Exchanged
from scheduler.job_errors import storable
from scheduler.new_deliveries import DISABLED

log = structlog.get_logger(__name__)

TIMEOUT_S = 5.0
DEADLINE_S = 15.0
TAKEN = 202
"""What the log has for a message that Svix has taken: what its receiver says is known there."""
OVERLAP_S = 24 * 3600
PAGE = 100
SERVERS_FAULT = 500
APPLICATION = "rgrid-"
DISABLED_THERE = "Svix has disabled it"
TROUBLE = (HttpError, HTTPValidationError, httpx.HTTPError, ValueError, TimeoutError)
"""All that the client raises; ``ValueError`` for an answer that is not its server's."""


def svix_client(url: str, token: str) -> SvixAsync:
    return SvixAsync(token, SvixOptions(server_url=url.rstrip("/"), timeout=TIMEOUT_S, retry_schedule=[0.1]))


@dataclass(slots=True)
class SvixCarrier:
    """``direct`` carries what goes to addresses of single jobs. Remembers what it has told Svix of endpoints."""

    client: SvixAsync
    direct: Carrier
    pool: Pool
    _types_told: bool = False
    _applications: set[ProjectId] = field(default_factory=set)
    _endpoints: dict[EndpointId, bytes] = field(default_factory=dict)

    async def carry(self, claimed: Claimed, signer: Signer, body: str) -> Exchanged:
        if claimed.endpoint_id is None:
            return await self.direct.carry(claimed, signer, body)
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._tell_of(claimed, claimed.endpoint_id, signer)
                said = await self._hand_over(claimed, claimed.endpoint_id, body)
        except TROUBLE as error:
            # Whatever it is that is wrong, what is remembered may be the reason.
            self._endpoints.pop(claimed.endpoint_id, None)
            self._applications.discard(claimed.project_id)
            return Exchanged(ms_since(started_s), error=_complaint(error), by_receiver=False)
        return Exchanged(ms_since(started_s), status=TAKEN, response=said, by_receiver=False)

    async def close(self) -> None:
        await self.client._httpx_client.aclose()  # the client has no way of its own

    async def _hand_over(self, claimed: Claimed, endpoint: EndpointId, body: str) -> str:
        application, message = _application(claimed.project_id), ids.encode(ids.MESSAGE, claimed.id)
        new = MessageIn(
            event_id=message, event_type=claimed.type, payload=json.loads(body), channels=[_uid(endpoint)]
        )
        try:
            options = MessageCreateOptions(idempotency_key=message)
            made = await self.client.message.create(application, new, options)
        except HttpError as error:
            if error.status_code != 409:
                raise
        else:
            return f"Svix has taken it as {made.id[:100]}"
        # There already: we died before we wrote it down, or somebody asks for it to be sent again.
        async with self.pool.acquire() as conn:
            again = await redelivering.was_taken(conn, claimed.id)
        if not again:
            return "Svix has it already"
        await self.client.message_attempt.resend(application, message, _uid(endpoint))
        return "Svix sends it again"

    async def _tell_of(self, claimed: Claimed, endpoint: EndpointId, signer: Signer) -> None:
        """Have Svix know the endpoint by its address and secret, its application, and the types of events; and that it
        is enabled again, before it is handed something."""
        secret = signing.SECRET_PREFIX + base64.b64encode(signer.secrets[0]).decode()
        async with self.pool.acquire() as conn:
            ours = await endpoint_health.state(conn, claimed.project_id, endpoint)
        known = hashlib.sha256(f"{claimed.url} {secret} {ours and ours.updated_at}".encode()).digest()
        if self._endpoints.get(endpoint) == known:
            return
        if not self._types_told:
            for kind in (*PROJECT_EVENTS, TEST):
                await self.client.event_type.upsert(kind, EventTypeUpsertIn(description=kind))
            self._types_told = True
        application, uid = _application(claimed.project_id), _uid(endpoint)
        if claimed.project_id not in self._applications:
            await self.client.application.get_or_create(ApplicationIn(name=application, uid=application))
            self._applications.add(claimed.project_id)
        try:
            new = EndpointIn(uid=uid, url=claimed.url, channels=[uid], secret=secret)
            await self.client.endpoint.create(application, new)
        except HttpError as error:
            if error.status_code != 409:
                raise
            theirs = await self.client.endpoint.get(application, uid)
            changed = EndpointPatch(url=claimed.url, channels=[uid])
            if theirs.disabled and ours is not None and ours.enabled and theirs.updated_at < ours.updated_at:
                changed.disabled = False
            await self.client.endpoint.patch(application, uid, changed)
            if (await self.client.endpoint.get_secret(application, uid)).key != secret:
                overlap_s = OVERLAP_S if len(signer.secrets) > 1 else 0
                rotated = EndpointSecretRotateIn(key=secret, grace_period_seconds=overlap_s)
                await self.client.endpoint.rotate_secret(application, uid, rotated)
        self._endpoints[endpoint] = known

    async def sync_once(self) -> bool:
        """Have Svix's endpoints follow ours (deleted, disabled, enabled, moved), and ours follow when Svix disables
        one. Always False: all of them in one go."""
        async for project in self._projects():
            async with self.pool.acquire() as conn:
                ours = {each.id: each for each in await endpoint_health.states(conn, project)}
            async for theirs in self._endpoints_of(project):
                found = ids.decode(ids.CALLBACK, theirs.uid or "")
                if found is not None and not _alike(ours.get(EndpointId(found)), theirs):
                    with _one_alone(theirs):
                        await self._follow(project, EndpointId(found), theirs)
        return False

    async def _follow(self, project: ProjectId, endpoint: EndpointId, theirs: EndpointOut) -> None:
        application, uid = _application(project), _uid(endpoint)
        # As it is now: it may have come, or been enabled, since all were read.
        async with self.pool.acquire() as conn:
            ours = await endpoint_health.state(conn, project, endpoint)
        if ours is None:
            await self.client.endpoint.delete(application, uid)
            self._endpoints.pop(endpoint, None)
        elif theirs.disabled and ours.enabled and theirs.updated_at > ours.updated_at:
            async with self.pool.acquire() as conn, conn.transaction():
                if await endpoint_health.disable(conn, project, endpoint, DISABLED_THERE):
                    await disabling.tell(conn, project, endpoint)
                    await deliveries.end_pending(conn, project, endpoint, ours.url, DISABLED)
        elif not _alike(ours, theirs):
            await self.client.endpoint.patch(
                application, uid, EndpointPatch(url=ours.url, disabled=not ours.enabled)
            )
            self._endpoints.pop(endpoint, None)

    async def _projects(self) -> AsyncIterator[ProjectId]:
        iterator: str | None = None
        while True:
            page = await self.client.application.list(ApplicationListOptions(limit=PAGE, iterator=iterator))
            for each in page.data:
                number = (each.uid or "").removeprefix(APPLICATION)
                if each.uid == f"{APPLICATION}{number}" and number.isascii() and number.isdecimal():
                    yield ProjectId(int(number))
            if page.done or page.iterator is None:
                return
            iterator = page.iterator

    async def _endpoints_of(self, project: ProjectId) -> AsyncIterator[EndpointOut]:
        iterator: str | None = None
        while True:
            options = EndpointListOptions(limit=PAGE, iterator=iterator)
            page = await self.client.endpoint.list(_application(project), options)
            for each in page.data:
                yield each
            if page.done or page.iterator is None:
                return
            iterator = page.iterator


@contextmanager
def _one_alone(theirs: EndpointOut) -> Iterator[None]:
    """What Svix refuses of one endpoint, or has no more, must not keep it from hearing of the others."""
    try:
        yield
    except (HttpError, HTTPValidationError) as error:
        if isinstance(error, HttpError) and error.status_code >= SERVERS_FAULT:
            raise
        log.warning("Svix does not follow", callback=theirs.uid, error=_complaint(error))


def _alike(ours: EndpointState | None, theirs: EndpointOut) -> bool:
    return ours is not None and (theirs.url, bool(theirs.disabled)) == (ours.url, not ours.enabled)


def _application(project: ProjectId) -> str:
    return f"{APPLICATION}{project}"


def _uid(endpoint: EndpointId) -> str:
    return ids.encode(ids.CALLBACK, endpoint)


def _complaint(error: Exception) -> str:
    if isinstance(error, HttpError):
        text = f"Svix answered {error.status_code}: {error.detail}"
    elif isinstance(error, HTTPValidationError):
        text = f"Svix answered 422: {error.detail}"
    elif isinstance(error, httpx.HTTPError | TimeoutError):
        text = f"Svix cannot be reached: {type(error).__name__}"
    else:
        text = "Svix gave no proper answer"
    return storable(text[:EXCERPT_BYTES])
