"""Who asks: API keys of projects and credentials of nodes, both kept as SHA-256 only. Owns ``api_keys``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from functions.db import Connection, Pool
from functions.errors import Forbidden, Malformed, Unauthenticated
from functions.ids import AccountId, NodeId, ProjectId
from gateway.keys import NewKey, digest, make_key, parse

TOKEN = re.compile(r"[!-~]{1,512}")

CACHE_S = 4.0
"""A revoked key works no longer than this, plus one statement."""
CACHE_KEYS = 10_000

FIND_KEY = """
-- find_key
SELECT api_keys.id, api_keys.project_id, projects.slug AS project, projects.account_id, api_keys.scopes,
       extract(epoch FROM api_keys.expires_at - now())::float8 AS left_s
  FROM api_keys JOIN projects ON projects.id = api_keys.project_id
 WHERE api_keys.hash = $1 AND api_keys.revoked_at IS NULL
   AND (api_keys.expires_at IS NULL OR api_keys.expires_at > now())
"""

FIND_NODE = """
-- find_node
SELECT id, account_id, state FROM nodes WHERE credential_hash = $1 AND state IN ('ready', 'draining')
"""

ADD_KEY = """
-- add_key
INSERT INTO api_keys (id, project_id, name, hash, scopes, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
"""


class Scope(StrEnum):
    """What a route asks of its caller. ``NODE`` is no scope of a key: only a node's credential has it."""

    INVOKE = "invoke"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"
    NODE = "node"


IMPLIED = {
    "admin": frozenset({Scope.ADMIN, Scope.WRITE, Scope.READ, Scope.INVOKE}),
    "write": frozenset({Scope.WRITE, Scope.READ, Scope.INVOKE}),
    "read": frozenset({Scope.READ}),
    "invoke": frozenset({Scope.INVOKE}),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """A project's key. ``scopes`` are spelled out (``admin`` has all); ``functions`` may be invoked, too."""

    project_id: ProjectId
    account_id: AccountId
    project: str
    key_id: str
    scopes: frozenset[Scope]
    functions: frozenset[str] = frozenset()

    @property
    def only_own(self) -> bool:
        """Whether this key sees no jobs but those that it asked for itself."""
        return Scope.READ not in self.scopes

    def require(self, scope: Scope, *, function: str | None = None, own: bool = False) -> None:
        """Raise ``Forbidden`` unless the key may; ``function`` is the one that is to be invoked, ``own`` that
        the handler shows a key its own jobs (see ``only_own``)."""
        if scope in self.scopes or (scope is Scope.INVOKE and function in self.functions):
            return
        if own and (self.functions or Scope.INVOKE in self.scopes):
            return
        raise Forbidden(f"this key lacks the scope `{scope}`")


@dataclass(frozen=True, slots=True)
class NodeCaller:
    """A node that has joined. ``account_id`` None serves every account; ``state`` is ready or draining."""

    node_id: NodeId
    account_id: AccountId | None
    state: str


async def add_key(
    conn: Connection,
    project: ProjectId,
    *,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
) -> NewKey:
    """A new key of the project."""
    key = make_key()
    await conn.execute(ADD_KEY, key.id, project, name, key.hash, list(scopes), expires_at)
    return key


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The token of the one ``Authorization`` header; raises ``Unauthenticated``; ``Malformed`` if several."""
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise Unauthenticated("send `Authorization: Bearer <API key>`")
    if len(values) > 1:
        raise Malformed("there is more than one Authorization header")
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not TOKEN.fullmatch(token):
        raise Unauthenticated("send `Authorization: Bearer <API key>`")
    return token


class Keys:
    """Looks up API keys and remembers the valid ones for ``CACHE_S``; others are never remembered."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[bytes, tuple[float, Caller]] = {}

    async def find(self, token: str) -> Caller:
        """Raises ``Unauthenticated``, alike for unknown, revoked and expired keys."""
        hashed = digest(token)
        known = self._known.get(hashed)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        self._known.pop(hashed, None)
        asked_at = time.monotonic()  # before the statement: what it finds is at least this fresh
        async with self._pool.acquire() as conn:
            row = await conn.fetchrow(FIND_KEY, hashed)
        if row is None:
            # Looked up all the same: RGRID_BOOTSTRAP_KEY may be any string, also one that looks like half a key.
            cut = token.startswith("rgk_") and parse(token) is None
            raise Unauthenticated("this key is not valid" + (": was it copied in full?" if cut else ""))
        caller = _caller(row)
        keep_s = CACHE_S if row["left_s"] is None else min(CACHE_S, row["left_s"])
        while len(self._known) >= CACHE_KEYS:
            del self._known[next(iter(self._known))]
        self._known[hashed] = (asked_at + keep_s, caller)
        return caller


def _caller(row: asyncpg.Record) -> Caller:
    granted: list[str] = row["scopes"]
    scopes: frozenset[Scope] = frozenset().union(*(IMPLIED.get(scope, ()) for scope in granted))
    functions = frozenset(scope.removeprefix("invoke:") for scope in granted if scope.startswith("invoke:"))
    return Caller(row["project_id"], row["account_id"], row["project"], row["id"], scopes, functions)


async def find_node(pool: Pool, token: str) -> NodeCaller:
    """The node of a credential, asked of the database every time: a node that is gone is refused at once."""
    async with pool.acquire() as conn:
        row = await conn.fetchrow(FIND_NODE, digest(token))
    if row is None:
        raise Unauthenticated("this node credential is not valid", code="node_credential_invalid")
    return NodeCaller(row["id"], row["account_id"], row["state"])
