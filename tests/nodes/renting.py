"""Rented nodes without a cloud: rows as the autoscaler and an agent leave them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

from functions.db import Connection
from functions.ids import AccountId, NodeId
from gateway.keys import digest
from nodes import registry, servers
from nodes.offers import Offer
from nodes.protocol import JoinRequest
from nodes.provider import Server, Status
from tests.scheduler.factories import SEALER

OFFER = Offer("cx23", "fsn1", 2, 4 * 1024**3, Decimal("0.0096"), Decimal("5.99"))


async def rent(
    conn: Connection, account: int, *, age: timedelta = timedelta(), offer: Offer = OFFER, cloud_id: int = 1
) -> tuple[NodeId, str]:
    """A node that is ready and whose first paid hour began ``age`` ago, and its credential."""
    now, credential = datetime.now(UTC), uuid4().hex * 2
    node = await servers.plan(
        conn, SEALER, offer, owner="test", provider="hetzner", account=AccountId(account), payer=None, reason="queue",
        now=now - age,
    )  # fmt: skip
    token = await servers.ask(conn, SEALER, node, now=now)
    assert token is not None
    name, labels = servers.name_of("test", node), {"rgrid-node": node.hex}
    server = Server(cloud_id, name, Status.RUNNING, now - age, offer.type, offer.location, labels, ipv4="192.0.2.1")
    await servers.see(conn, node, server, now=now, off=False)
    hashed = digest(credential).hex()
    await registry.join(conn, JoinRequest(token=token, credential_sha256=hashed, slots=offer.slots, version="1"))
    await servers.follow_nodes(conn, now=now)
    return node, credential
