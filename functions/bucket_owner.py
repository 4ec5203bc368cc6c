"""Whose bucket it is: what is an orphan to one database may be another one's file.

The object ``rgrid-instance`` says it, and is put by the first that compares the bucket with its rows; but not where
files lie that its database does not know: an installation may be older than the mark.
"""

from __future__ import annotations

import re
from enum import StrEnum

from functions.artifacts import Store
from functions.db import Connection
from functions.errors import NotFound

PAGE = 1000
"""Keys of one listing, by the protocol; and as many files as tell whose they are."""
MARK = "rgrid-instance"
_OURS = re.compile(r"[0-9]+/(?:job_[0-9a-f]{32}/[0-9]+|uploads)/art_[0-9a-f]{32}")

INSTANCE = """
-- instance
SELECT instance::text FROM expiry_cursor
"""

COUNT_KNOWN = """
-- count_known_objects
SELECT count(*) FROM unnest($1::text[]) k (key) WHERE EXISTS (SELECT 1 FROM artifacts WHERE object_key = k.key)
"""


class Owner(StrEnum):
    THIS = "this"
    """The database that was asked."""
    NOBODY = "nobody"
    """There is no mark, and nothing that speaks for another database."""
    ANOTHER = "another"


def is_ours(key: str) -> bool:
    """Whether RGrid makes such keys; others are somebody else's."""
    return _OURS.fullmatch(key) is not None


async def instance(conn: Connection) -> str:
    """What this database calls itself, on things elsewhere that are its own: a UUID."""
    return str(await conn.fetchval(INSTANCE))


async def owner_of(conn: Connection, store: Store) -> Owner:
    """Whose the bucket is; changes nothing. Raises ``Unavailable`` when the store does not answer."""
    mine = (await instance(conn)).encode()
    try:
        async with store.read(MARK) as chunks:
            return Owner.THIS if b"".join([chunk async for chunk in chunks]) == mine else Owner.ANOTHER
    except NotFound:
        keys = await _some_of_ours(store)
    known: int = await conn.fetchval(COUNT_KNOWN, keys)
    # Some orphans of its own an installation may have.
    return Owner.NOBODY if known * 10 >= len(keys) * 9 else Owner.ANOTHER


async def claim(conn: Connection, store: Store) -> bool:
    """Mark the bucket as this database's unless it is another one's; whether it is this one's now."""
    owner = await owner_of(conn, store)
    if owner is Owner.NOBODY:
        await store.put(MARK, (await instance(conn)).encode(), "text/plain")
    return owner is not Owner.ANOTHER


async def _some_of_ours(store: Store) -> list[str]:
    found: list[str] = []
    after = ""
    while len(found) < PAGE:
        page = await store.list_objects(after, PAGE)
        found += [each.key for each in page if is_ours(each.key)]
        if len(page) < PAGE:
            break
        after = page[-1].key
    return found
