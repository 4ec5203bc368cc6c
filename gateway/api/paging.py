"""Pages of lists: how much of one, and where to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.routes import caller, services

Row = TypeVar("Row")


class PageQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=100, description="Entries of one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


def start(request: Request, query: PageQuery) -> UUID | None:
    """Where the page begins: behind this position, or at the top."""
    if query.cursor is None:
        return None
    return services(request).cursors.decode(_list_of(request), query.cursor)


def cursor(request: Request, position: UUID) -> str:
    """What a client sends to go on behind ``position``."""
    return services(request).cursors.encode(_list_of(request), position)


def page(
    request: Request,
    rows: Sequence[Row],
    query: PageQuery,
    view: Callable[[Row], dict[str, Any]],
    position: Callable[[Row], UUID],
    **beside: object,
) -> Response:
    """The answer for ``rows``, of which one more was asked for than the page holds; ``beside`` is about all of them."""
    shown = rows[: query.limit]
    more = len(rows) > query.limit
    return JSONResponse(
        {
            "data": [view(row) for row in shown],
            "next_cursor": cursor(request, position(shown[-1])) if more else None,
            **beside,
        }
    )


def _list_of(request: Request) -> bytes:
    raw_path: bytes = request.scope["raw_path"]
    return b"%d %b" % (caller(request).project_id, raw_path)
