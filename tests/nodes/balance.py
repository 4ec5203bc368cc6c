"""Holds our books against the cloud's bill: to the last digit."""

from __future__ import annotations

from collections.abc import Set
from decimal import Decimal

from functions.db import Pool
from nodes import ledger
from tests.hetzner.server import Emulator

# Hours that are reserved and have not begun are on no bill.
LEDGER = """
SELECT coalesce(sum(server + server_hours.ipv4), 0) FROM server_hours JOIN servers USING (node_id)
 WHERE created_at IS NOT NULL AND (hour = 0 OR created_at + hour * interval '1 hour' < $1)
"""
SETTLED = "SELECT coalesce(sum(server + ipv4), 0) FROM server_hours WHERE settled_at IS NOT NULL"
RECEIPTS = "SELECT coalesce(sum(server + ipv4 + idle), 0) FROM receipts"
USAGE = "SELECT coalesce(sum(cost), 0) FROM usage_days"
UNEVEN = """
SELECT node_id, hour FROM server_hours LEFT JOIN receipts USING (node_id, hour) WHERE settled_at IS NOT NULL
 GROUP BY node_id, hour
HAVING min(server_hours.server + server_hours.ipv4) <> coalesce(sum(receipts.server + receipts.ipv4 + idle), 0)
"""


async def check_books(cloud: Emulator, pool: Pool, *, strangers: Set[int] = frozenset()) -> Decimal:
    """Settle what can be, and assert that receipts, ledger and bill are one sum; what the bill comes to.

    ``strangers`` are servers that are not the fleet's.
    """
    now = cloud.now + cloud.clock.date_shift  # as the cloud itself says
    async with pool.acquire() as conn:
        while True:
            async with conn.transaction():
                ahead = await conn.fetchval("SELECT $1::timestamptz - now()", now)
                if not await ledger.settle(conn, now, ahead=ahead, limit=10):
                    break
        lines = [line for line in cloud.cloud.bill.lines if line.server not in {None, *strangers}]
        bill = sum((line.cost(cloud.now) for line in lines), Decimal(0))
        assert await conn.fetchval(LEDGER, now) == bill
        settled = await conn.fetchval(SETTLED)
        assert await conn.fetchval(RECEIPTS) == await conn.fetchval(USAGE) == settled
        assert await conn.fetch(UNEVEN) == []
    return bill
