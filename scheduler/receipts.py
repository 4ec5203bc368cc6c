"""What came in at webhooks, and what became of it. Owns ``webhook_receipts``.

The receipt of a request that makes a job is written by ``queue.enqueue``, in the statement that holds the job and the
sender's id; all others are written here. They are kept for ``RGRID_RETENTION_WEBHOOKS``, ``MOST_OF_A_WEBHOOK`` of each.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from functions import artifacts, ids, uploads
from functions.artifacts import Store
from functions.db import Connection, Pool, Row
from functions.errors import Conflict, NotFound
from functions.ids import ArtifactId, JobId, ProjectId, ReceiptId, WebhookId
from functions.uploads import Announced, Upload

INLINE_BYTES = 64 * 1024
UNVERIFIED_BYTES = 4 * 1024
"""Of a body that nobody vouches for, and of its headers, no more is kept: strangers must not fill the database."""
MOST_OF_A_WEBHOOK = 10_000
FIRST = UUID(int=0)
"""Where the round that forgets begins."""

ADD_RECEIPT = """
-- add_receipt
INSERT INTO webhook_receipts (id, webhook_id, project_id, verdict, job_id, head, body)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""

LIST_RECEIPTS = """
-- list_receipts
SELECT id, webhook_id, project_id, verdict, job_id, head, NULL::bytea AS body, at FROM webhook_receipts
 WHERE webhook_id = $1 AND project_id = $2 AND id < coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
   AND ($5::text IS NULL OR verdict = $5)
 ORDER BY id DESC
 LIMIT $3
"""

GET_RECEIPT = """
-- get_receipt
SELECT id, webhook_id, project_id, verdict, job_id, head, body, at FROM webhook_receipts
 WHERE webhook_id = $1 AND project_id = $2 AND id = $3
"""

NEXT_WEBHOOK = """
-- next_webhook_with_receipts
SELECT webhook_id FROM webhook_receipts WHERE webhook_id >= $1 ORDER BY webhook_id LIMIT 1
"""

# Ids are in the order of time: old ones are the first of the index, and nothing else is read.
FORGET_RECEIPTS = """
-- forget_receipts
DELETE FROM webhook_receipts
 WHERE webhook_id = $1 AND id = ANY (ARRAY(
    SELECT id FROM webhook_receipts
     WHERE webhook_id = $1
       AND id < greatest($2::uuid, (SELECT id FROM webhook_receipts WHERE webhook_id = $1
                                     ORDER BY id DESC OFFSET $3::int - 1 LIMIT 1))
     ORDER BY id LIMIT $4))
"""


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    """It made a job."""
    REPEATED = "repeated"
    """The sender had sent it before: the first one's job."""
    FILTERED = "filtered"
    ANSWERED = "answered"
    """A handshake."""
    REFUSED = "refused"
    """Nobody with a secret has sent it."""
    INVALID = "invalid"
    """It was verified, and no job can be made of it."""
    REJECTED = "rejected"
    """A limit of the function or of the webhook was reached."""


@dataclass(frozen=True, slots=True)
class NewReceipt:
    """``headers`` have no secrets any more. ``body`` is None where it is too large for the row."""

    id: ReceiptId
    webhook_id: WebhookId
    project_id: ProjectId
    headers: tuple[tuple[str, str], ...]
    query: str
    size: int
    body: bytes | None
    artifact: str | None = None
    delivery: str | None = None
    reason: str | None = None
    replay_of: ReceiptId | None = None

    @property
    def head(self) -> str:
        """As JSON text."""
        head = {
            "headers": self.headers,
            "query": self.query,
            "size": self.size,
            "artifact": self.artifact,
            "delivery": self.delivery,
            "reason": self.reason,
            "replay_of": None if self.replay_of is None else ids.encode(ids.RECEIPT, self.replay_of),
        }
        return json.dumps({key: value for key, value in head.items() if value is not None}, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Receipt:
    """``body`` is None in a list, where it lies in the store and where it was not kept."""

    id: ReceiptId
    webhook_id: WebhookId
    project_id: ProjectId
    verdict: Verdict
    job_id: JobId | None
    head: dict[str, Any]
    body: bytes | None
    at: datetime

    @property
    def verified(self) -> bool:
        return self.verdict is not Verdict.REFUSED


async def kept(
    pool: Pool, store: Store, receipt: NewReceipt, body: bytes, content_type: str
) -> tuple[NewReceipt, Upload | None]:
    """The receipt with its body: in its row already, or in the store if it is large, where it goes with the uploads.

    ``discard`` that file if the receipt is not written after all.
    """
    if receipt.body is not None:
        return receipt, None
    digest = hashlib.sha256(body).hexdigest()
    announced = Announced("webhook-body", content_type, len(body), digest)
    async with pool.acquire() as conn:
        upload = await uploads.announce(conn, receipt.project_id, None, announced)
    await store.put(upload.object_key, body, upload.content_type)
    async with pool.acquire() as conn:
        upload = await uploads.complete(conn, upload, size=len(body), sha256=digest, shared=False)
    return replace(receipt, artifact=upload.uri), upload


def of_stranger(receipt: NewReceipt, body: bytes) -> NewReceipt:
    """The receipt of a request that was not verified: its beginning, and the headers that there is room for."""
    left, headers = UNVERIFIED_BYTES, []
    for name, value in receipt.headers:
        if (size := len(name) + len(value)) <= left:
            headers.append((name, value))
            left -= size
    return replace(
        receipt, headers=tuple(headers), query=receipt.query[:UNVERIFIED_BYTES], body=body[:UNVERIFIED_BYTES]
    )


async def body_of(pool: Pool, store: Store, receipt: Receipt) -> bytes:
    """The request's body; raises ``Conflict`` when it is kept no longer, or never was."""
    if receipt.body is not None and len(receipt.body) == receipt.head["size"]:
        return receipt.body
    found = ids.decode(ids.ARTIFACT, str(receipt.head.get("artifact", "")).removeprefix("artifact:"))
    if found is None:
        raise _not_kept()
    async with pool.acquire() as conn:
        try:
            file = await artifacts.get(conn, receipt.project_id, ArtifactId(found))
        except NotFound:
            raise _not_kept() from None
    async with store.read(file.object_key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def record(conn: Connection, receipt: NewReceipt, verdict: Verdict, job: JobId | None = None) -> None:
    """Write down a request that made no job, or was answered with an earlier one."""
    await conn.execute(
        ADD_RECEIPT, receipt.id, receipt.webhook_id, receipt.project_id, verdict, job, receipt.head, receipt.body
    )


async def list_receipts(
    conn: Connection,
    project: ProjectId,
    webhook: WebhookId,
    *,
    limit: int,
    before: ReceiptId | None,
    verdict: Verdict | None = None,
) -> list[Receipt]:
    """Newest first, those before ``before``, without their bodies."""
    return [_receipt(row) for row in await conn.fetch(LIST_RECEIPTS, webhook, project, limit, before, verdict)]


async def get(conn: Connection, project: ProjectId, webhook: WebhookId, receipt: ReceiptId) -> Receipt:
    """Raises ``NotFound``."""
    row = await conn.fetchrow(GET_RECEIPT, webhook, project, receipt)
    if row is None:
        raise not_found()
    return _receipt(row)


async def forget_once(
    conn: Connection, at: UUID, *, older_than: datetime, limit: int, most: int = MOST_OF_A_WEBHOOK
) -> tuple[int, UUID]:
    """Delete up to ``limit`` receipts of one webhook, the first from ``at`` on: those that are too old or too many.

    Returns how many, and where to go on: ``FIRST`` when all webhooks have had their turn.
    """
    webhook = await conn.fetchval(NEXT_WEBHOOK, at)
    if webhook is None:
        return 0, FIRST
    gone = int((await conn.execute(FORGET_RECEIPTS, webhook, _first_at(older_than), most, limit)).split()[-1])
    return gone, webhook if gone == limit else UUID(int=webhook.int + 1)


def not_found() -> NotFound:
    return NotFound("there is no such receipt", code="receipt_not_found")


def _not_kept() -> Conflict:
    return Conflict("the body of this request was not kept, or not for so long", code="receipt_not_verified")


def _first_at(at: datetime) -> UUID:
    """Before all ids that are made from then on."""
    return UUID(int=max(round(at.timestamp() * 1000), 0) << 80)


def _receipt(row: Row) -> Receipt:
    return Receipt(
        row["id"], row["webhook_id"], row["project_id"], Verdict(row["verdict"]), row["job_id"],
        json.loads(row["head"]), row["body"], row["at"],
    )  # fmt: skip
