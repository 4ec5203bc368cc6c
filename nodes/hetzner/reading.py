"""What the client read, as the values that the rest knows.

Called in the thread that made the call, so that a server which lacks something is an answer that was not understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hcloud.servers import BoundServer, ServersPageResult

from nodes.provider import Server, Status


@dataclass(frozen=True, slots=True)
class Page:
    servers: list[Server]
    total: int | None
    next: int | None
    last: int | None


def page_of(answer: ServersPageResult) -> Page:
    pages = answer.meta.pagination
    servers = [server_of(each) for each in answer.servers]
    if pages is None:
        return Page(servers, None, None, None)
    return Page(servers, pages.total_entries, pages.next_page, pages.last_page)


def server_of(bound: BoundServer) -> Server:
    # Fields of its own only: to touch one of another thing's would send a call nobody asked for.
    if bound.id is None or bound.created is None or bound.server_type is None or bound.location is None:
        raise ValueError("a server without id, creation, type or location")
    address = bound.public_net.ipv4 if bound.public_net is not None else None
    return Server(
        id=bound.id,
        name=bound.name or "",
        status=_status(bound.status),
        created_at=moment_of(bound.created),
        type=str(bound.server_type.name),
        location=str(bound.location.name),
        labels=dict(bound.labels or {}),
        ipv4=address.ip if address is not None else None,
        locked=bool(bound.locked),
        blocked=bool(address is not None and address.blocked),
    )


def moment_of(told: datetime) -> datetime:
    """Without a zone it is UTC: compared with ours it would fail every round."""
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)


def _status(text: str | None) -> Status:
    try:
        return Status(text or "")
    except ValueError:
        return Status.UNKNOWN
