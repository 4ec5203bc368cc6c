"""Receipts of webhooks: what a round forgets."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from functions import ids
from functions.db import Connection
from functions.ids import ProjectId, ReceiptId, WebhookId
from scheduler import receipts
from scheduler.receipts import FIRST, NewReceipt, Verdict

PROJECT = ProjectId(1)
NEVER = datetime(2020, 1, 1, tzinfo=UTC)


async def make(conn: Connection, webhook: WebhookId, number: int) -> list[ReceiptId]:
    """The oldest first."""
    made = []
    for _ in range(number):
        receipt = NewReceipt(ReceiptId(ids.new_uuid7()), webhook, PROJECT, (("a", "b"),), "", 2, b"{}")
        await receipts.record(conn, receipt, Verdict.FILTERED)
        made.append(receipt.id)
    return made


async def forget(conn: Connection, older_than: datetime, most: int) -> int:
    """All rounds; how many receipts went."""
    total, at = 0, FIRST
    while True:
        count, at = await receipts.forget_once(conn, at, older_than=older_than, limit=2, most=most)
        total += count
        if at == FIRST:
            return total


async def left(conn: Connection, webhook: WebhookId) -> list[ReceiptId]:
    found = await receipts.list_receipts(conn, PROJECT, webhook, limit=100, before=None)
    return [each.id for each in reversed(found)]


async def test_those_go_that_are_too_many_for_their_webhook_and_the_oldest_of_them_first(conn: Connection) -> None:
    webhooks = [WebhookId(UUID(int=number)) for number in (1, 2, 2**127)]
    made = [await make(conn, webhook, number) for webhook, number in zip(webhooks, (5, 3, 8), strict=True)]
    assert await forget(conn, NEVER, 8) == 0
    assert await forget(conn, NEVER, 3) == 2 + 0 + 5
    assert [await left(conn, webhook) for webhook in webhooks] == [each[-3:] for each in made]
    assert await forget(conn, NEVER, 3) == 0


async def test_those_go_that_are_too_old(conn: Connection) -> None:
    webhook = WebhookId(ids.new_uuid7())
    old, fresh = await make(conn, webhook, 3), await make(conn, webhook, 1)
    middle = ids.made_at(fresh[0])
    assert await forget(conn, middle, 100) <= 3  # one of the same millisecond may stay
    assert set(fresh) <= set(await left(conn, webhook)) <= set(old + fresh)
    assert await forget(conn, datetime.now(UTC) + timedelta(seconds=1), 100) >= 1
    assert await left(conn, webhook) == []


async def test_a_receipt_is_its_projects_only(conn: Connection) -> None:
    webhook = WebhookId(ids.new_uuid7())
    (receipt,) = await make(conn, webhook, 1)
    assert (await receipts.get(conn, PROJECT, webhook, receipt)).head["headers"] == [["a", "b"]]
    assert await receipts.list_receipts(conn, ProjectId(2), webhook, limit=1, before=None) == []
    other = NewReceipt(receipt, webhook, PROJECT, (), "", 0, None)
    assert replace(other, reason="x").head == '{"headers":[],"query":"","size":0,"reason":"x"}'
