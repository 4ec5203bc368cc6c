"""Who may become a node. A rented one joins from its server's own address, once; whoever comes second, or from
elsewhere, has a token that was never meant for it, and the operator hears of it.

Nothing here is trusted that a machine says of itself but its token.
"""

from __future__ import annotations

import structlog

from functions import ids
from functions.db import Connection
from functions.errors import Conflict, Forbidden, RGridError, Unavailable
from functions.ids import NodeId
from nodes import node_events, registry, rented, servers
from nodes.protocol import JoinRequest
from nodes.registry import Bidder

log = structlog.get_logger(__name__)

ALARM, TROUBLE = "join_alarm", "boot_trouble"
EVENTS = 10
"""No more of a kind are kept of one node: any holder of its token can cause them."""
SOON_S = 2


async def join(conn: Connection, request: JoinRequest, source: str) -> NodeId | RGridError:
    """Let a machine at the address ``source`` be the node that its token is for; the same request again gets the same
    answer. In a transaction that must be committed for a failure too: its alarm is stored.

    Failures: ``Unauthenticated``, alike for unknown, expired and (where nothing is rented) used tokens; ``Forbidden``
    for a wrong address; ``Conflict`` for the second one with a rented node's token: that server is deleted;
    ``Unavailable`` as long as the cloud has not told the server's address.
    """
    bidder = await registry.bidder(conn, request)
    if bidder is None:
        return registry.token_invalid()
    server = await rented.get(conn, bidder.node)
    if server is None:
        return await _join(conn, request)
    if bidder.used:
        await _alarm(conn, bidder, f"a second machine, at {source}, has its join token")
        # The next round deletes its server: here its row is not touched, since rounds lock that before the node's.
        await node_events.note(conn, bidder.node, servers.OUTLAWED, "its join token was used twice")
        await registry.leave(conn, bidder.node)
        return Conflict("this join token was used before: its server will be deleted", code="join_token_used")
    if server.ipv4 is None:
        return Unavailable(
            "the cloud has not told this server's address yet: try again", code="server_unknown", retry_after_s=SOON_S
        )
    if server.ipv4 != source:
        await _alarm(conn, bidder, f"a machine at {source}, not at {server.ipv4}, has its join token")
        return _wrong_address()
    slots = min(request.slots, server.offer.slots)
    return await _join(conn, request.model_copy(update={"slots": slots}))


async def trouble(conn: Connection, token: str, message: str, source: str) -> RGridError | None:
    """A server cannot become a node and says why: an event of the node. Failures as of ``join``."""
    node = await registry.awaited(conn, token)
    if node is None:
        return registry.token_invalid()
    server = await rented.get(conn, node)
    if server is not None and server.ipv4 not in (None, source):
        return _wrong_address()
    await node_events.note_few(conn, node, TROUBLE, message, most=EVENTS)
    log.warning("a server has trouble to become a node", node=ids.encode(ids.NODE, node))
    return None


async def _join(conn: Connection, request: JoinRequest) -> NodeId | RGridError:
    try:
        async with conn.transaction():
            return await registry.join(conn, request)
    except RGridError as error:
        return error


async def _alarm(conn: Connection, bidder: Bidder, what: str) -> None:
    await node_events.note_few(conn, bidder.node, ALARM, what, most=EVENTS)
    log.error("join alarm", node=ids.encode(ids.NODE, bidder.node), what=what)


def _wrong_address() -> Forbidden:
    return Forbidden(
        "this join token is for a server with another address: is RGRID_TRUSTED_PROXIES set, if a proxy is in between?",
        code="join_address_wrong",
    )
