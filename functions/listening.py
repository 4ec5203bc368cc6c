"""Who hears of an event: the endpoints of a project, as far as that is decided by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.ids import EndpointId, FunctionId, ProjectId

LISTENERS = """
-- listeners
SELECT id, function_id, url, events, functions, disabled_at IS NULL AS enabled FROM callback_endpoints
 WHERE project_id = $1 AND coalesce(function_id, '00000000-0000-0000-0000-000000000000') = ANY ($2::uuid[])
"""

PROJECT_WIDE = UUID(int=0)
"""In place of a function, for endpoints that are of none."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An endpoint as far as it decides what is told to it. ``function_id`` is that of the manifest that names it."""

    id: EndpointId
    function_id: FunctionId | None
    url: str
    events: tuple[str, ...]
    functions: tuple[str, ...] | None
    enabled: bool

    def wants(self, kind: str, function: str | None) -> bool:
        """Whether an endpoint of the project hears of this event of a function's, or of a job without one."""
        return kind in self.events and (self.functions is None or function in self.functions)


async def listeners(conn: Connection, project: ProjectId, functions: Iterable[FunctionId | None]) -> list[Listener]:
    """The project's endpoints and those of these functions, disabled ones included, in no set order."""
    wanted = {PROJECT_WIDE, *(function for function in functions if function is not None)}
    return [listener(row) for row in await conn.fetch(LISTENERS, project, list(wanted))]


def listener(row: Mapping[str, Any]) -> Listener:
    """Of a row, or of one that a statement has made JSON of."""
    function, asked = row["function_id"], row["functions"]
    return Listener(
        EndpointId(_uuid(row["id"])),
        None if function is None else FunctionId(_uuid(function)),
        row["url"],
        tuple(row["events"]),
        None if asked is None else tuple(asked),
        row["enabled"],
    )


def _uuid(value: UUID | str) -> UUID:
    return UUID(value) if isinstance(value, str) else value
