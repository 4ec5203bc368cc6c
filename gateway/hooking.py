"""From a webhook's request to its job: what live requests and replays of receipts have in common."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from functions import ids, webhooks
from functions.db import Pool
from functions.errors import Unavailable
from functions.ids import ReceiptId
from functions.s3 import clean_media_type
from functions.sealing import Sealer
from functions.verifying import Headers, hidden_headers
from functions.webhook_bodies import read_content
from functions.webhook_spec import params_of
from functions.webhooks import Address, Called
from gateway.gathering import Gatherer
from gateway.throttling import Throttle
from scheduler import preparing
from scheduler.inputs import check_inputs
from scheduler.preparing import Invocation
from scheduler.queue import NewJob
from scheduler.receipts import INLINE_BYTES, NewReceipt

if TYPE_CHECKING:
    from gateway.services import Services

log = structlog.get_logger(__name__)

OPEN_SECRETS = 1024
REFUSED, REFUSED_PER_S = 20, 3600.0
"""Receipts of requests that were turned away, for each webhook: the others are only counted by the log. In a week there
are fewer of them than ``MOST_OF_A_WEBHOOK``, or strangers could push out all others."""


class Hooks:
    """What a gateway's calls of webhooks share."""

    def __init__(self, pool: Pool, sealer: Sealer) -> None:
        self._pool = pool
        self._sealer = sealer
        # Nothing is remembered of a webhook, so that a change holds at once: but who asks in one moment asks together.
        self._finding = Gatherer(self._find, key=lambda _: None, alone=())
        self._opened: OrderedDict[bytes, bytes | None] = OrderedDict()
        self.taken, self.noted = Throttle(), Throttle()

    async def find(self, address: Address) -> Called | None:
        """The webhook there, if it may be called."""
        return await self._finding.submit(address)

    async def _find(self, addresses: list[Address]) -> list[Called | None]:
        async with self._pool.acquire() as conn:
            found = await webhooks.find_called(conn, list(dict.fromkeys(addresses)))
        return [called if (called := found.get(each)) is not None and called.enabled else None for each in addresses]

    def secrets(self, sealed: Sequence[bytes]) -> list[bytes]:
        """What is in them; those that no key of ours opens are left out."""
        found = []
        for each in sealed:
            if each not in self._opened:
                self._opened[each] = self._open(each)
            found.append(self._opened[each])
            if len(self._opened) > OPEN_SECRETS:
                self._opened.popitem(last=False)
        return [value for value in found if value is not None]

    def _open(self, sealed: bytes) -> bytes | None:
        try:
            return self._sealer.open(sealed)
        except Unavailable:
            log.error("a webhook's secret does not open with RGRID_SECRET_KEY")
            return None

    def notes(self, receipt: NewReceipt) -> bool:
        """Whether a request that was turned away is worth a receipt: whoever floods gets a few."""
        return not self.noted.wait_s(receipt.webhook_id, limit=REFUSED, per_s=REFUSED_PER_S)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a webhook. ``query`` has its parameters, ``body`` its bytes; ``receipt`` is not written yet."""

    called: Called
    headers: Headers
    query: Mapping[str, str]
    body: bytes
    receipt: NewReceipt

    @property
    def trigger(self) -> dict[str, Any]:
        given = {
            "kind": "webhook",
            "name": self.called.spec.name,
            "webhook": ids.encode(ids.WEBHOOK, self.called.id),
            "receipt": ids.encode(ids.RECEIPT, self.receipt.id),
            "delivery": self.receipt.delivery,
            "replay_of": None if self.receipt.replay_of is None else ids.encode(ids.RECEIPT, self.receipt.replay_of),
        }
        return {key: value for key, value in given.items() if value is not None}

    def values(self) -> dict[str, Any]:
        """What look-ups find, the body read; raises as ``read_content``."""
        version = self.called.version
        return {
            "body": read_content(self.called.spec.verify, self.headers, self.body),
            "header": self.headers,
            "query": self.query,
            "trigger": {"kind": "webhook", "name": self.called.spec.name},
            "function": {"name": version.function_name, "version": version.number},
        }


def new_receipt(called: Called, pairs: Sequence[tuple[bytes, bytes]], query: bytes, body: bytes) -> NewReceipt:
    """Of a request; headers that hold a secret are not in it, nor a body that is too large for its row."""
    hidden = hidden_headers(called.spec.verify, called.spec.options)
    headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs)
    return NewReceipt(
        ReceiptId(ids.new_uuid7()),
        called.id,
        called.project_id,
        tuple((name, "[removed]" if name.lower() in hidden else value) for name, value in headers),
        query.decode("latin-1"),
        len(body),
        body if len(body) <= INLINE_BYTES else None,
    )


async def job_of(
    opened: Services, call: Call, values: Mapping[str, Any], *, key: str | None, key_id: str | None = None
) -> NewJob:
    """The job that a request makes; raises ``Invalid``. ``key``: what repeats of it have in common."""
    version = call.called.version
    invocation = Invocation(
        params=params_of(call.called.spec, values, version.params_schema),
        trigger=call.trigger,
        idempotency_key=key,
        body_hash=hashlib.sha256(call.body).digest(),
        key_id=key_id,
        receipt=call.receipt,
    )
    new = preparing.prepare(call.called.project_id, version, invocation, opened.sizing)
    await check_inputs(opened.pool, new, opened.egress)
    return new


def kind_of(call: Call) -> str:
    """The body's media type, fit for the store."""
    return clean_media_type(call.headers.get("content-type", ""))
