"""Names for asyncpg's types, which are generic for type checkers only (``Pool[Record]`` fails at run time).

Import with ``from __future__ import annotations`` in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    type_Record = asyncpg.Record
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

Row = Any
"""A row as asyncpg returns it: by name (``row["id"]``) or position."""
