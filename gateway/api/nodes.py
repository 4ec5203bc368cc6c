"""/v1/nodes: the machines that jobs run on, for whoever operates them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids
from functions.errors import NotFound
from functions.ids import NodeId
from gateway.api import paging
from gateway.api.models import NothingMore
from gateway.api.models.nodes import JoinTokenView, NodeEventList, NodeList, NodeView
from gateway.api.paging import PageQuery
from gateway.routes import Route, Scope, caller, read_body, read_query, services
from nodes import fleet, node_events, registry
from nodes.fleet import Fleet
from nodes.offers import HOUR, hours_begun
from scheduler.views import rfc3339

JOIN_WITHIN = timedelta(hours=1)
EVENTS = 1000


class NewNode(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(
        None,
        min_length=1,
        max_length=63,
        pattern=r"^[0-9A-Za-z]([0-9A-Za-z._-]*[0-9A-Za-z])?$",
        description="What lists call it. Default: its host name.",
    )
    slots: int = Field(1, ge=1, le=1024, description="What is shown until it joins and says itself.")


async def list_nodes(request: Request) -> Response:
    """GET /v1/nodes: nodes that may serve the account, the newest first."""
    query, opened = read_query(request, PageQuery), services(request)
    before = paging.start(request, query)
    async with opened.pool.acquire() as conn:
        rows = await registry.list_nodes(
            conn,
            caller(request).account_id,
            limit=query.limit + 1,
            before=None if before is None else NodeId(before),
        )
        state = await fleet.get(conn) if opened.settings.provider != "local" else None
    lease_s, about = opened.settings.lease_s, None if state is None else fleet_view(state)
    return paging.page(request, rows, query, lambda row: node_view(row, lease_s), lambda row: row["id"], fleet=about)


async def show(request: Request) -> Response:
    """GET /v1/nodes/{id}: one node."""
    opened, account = services(request), caller(request).account_id
    async with opened.pool.acquire() as conn:
        row = await registry.get(conn, account, _node_of(request))
    return JSONResponse(node_view(row, opened.settings.lease_s))


async def list_events(request: Request) -> Response:
    """GET /v1/nodes/{id}/events: what happened to a rented node, the oldest first; nothing for one that is not."""
    account, node = caller(request).account_id, _node_of(request)
    async with services(request).pool.acquire() as conn:
        await registry.get(conn, account, node)
        events = await node_events.of_node(conn, account, node, limit=EVENTS)
    return JSONResponse({"data": [{**event, "at": rfc3339(event["at"])} for event in events]})


async def add(request: Request) -> Response:
    """POST /v1/nodes: a token that one machine can join with, once, within an hour."""
    body, who = await read_body(request, NewNode), caller(request)
    async with services(request).pool.acquire() as conn:
        token = await registry.mint_join_token(
            conn,
            name=body.name or "",
            provider="local",
            slots=body.slots,
            account_id=who.account_id,
            ttl=JOIN_WITHIN,
        )
    answer = {
        "id": ids.encode(ids.NODE, token.node_id),
        "join_token": token.token,
        "expires_at": rfc3339(token.expires_at),
    }
    return JSONResponse(answer, 201)


async def drain(request: Request) -> Response:
    """POST /v1/nodes/{id}/drain: give the node no more jobs; those that it has finish or are handed back."""
    await read_body(request, NothingMore)
    opened, account = services(request), caller(request).account_id
    node = _node_of(request)
    async with opened.pool.acquire() as conn:
        await registry.drain(conn, account, node)
        row = await registry.get(conn, account, node)
    return JSONResponse(node_view(row, opened.settings.lease_s))


def _node_of(request: Request) -> NodeId:
    found = ids.decode(ids.NODE, request.path_params["id"])
    if found is None:
        raise NotFound("there is no such node", code="node_not_found")
    return NodeId(found)


def node_view(row: Mapping[str, Any], lease_s: float) -> dict[str, Any]:
    """A node as users see it: ``silent`` is one that is there by its row and has lost its leases by now."""
    facts = json.loads(row["facts"])
    silent = row["state"] in ("ready", "draining") and row["silent_s"] > lease_s
    return {
        "id": ids.encode(ids.NODE, row["id"]),
        "name": row["name"] or str(facts.get("hostname") or ""),
        "provider": row["provider"],
        "state": "silent" if silent else row["state"],
        "slots": row["slots"],
        "running": row["running"],
        "version": row["agent_version"],
        "facts": facts,
        "created_at": rfc3339(row["created_at"]),
        "joined_at": rfc3339(row["joined_at"]),
        "last_seen_at": rfc3339(row["last_seen_at"]),
        "server": None if row["server_state"] is None else server_view(row),
    }


def server_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a rented node costs, and for how long it is paid."""
    created, ended = row["server_created_at"], row["ended_at"]
    lived = None if created is None else max((ended or row["server_now"]) - created, timedelta())
    return {
        "state": row["server_state"],
        "type": row["type"],
        "location": row["location"],
        "hourly": str(row["hourly"]),
        "created_at": rfc3339(created),
        "paid_until": None if lived is None else rfc3339(created + hours_begun(lived) * HOUR),
        "ended_at": rfc3339(ended),
        "error": row["error"],
    }


def fleet_view(state: Fleet) -> dict[str, Any]:
    return {
        "reconciled_at": rfc3339(state.reconciled_at),
        "listed": state.listed,
        "unknown": state.unknown,
        "frozen_until": rfc3339(state.frozen_until),
        "account_limit": state.server_limit,
        "problem": state.problem,
        "problem_at": rfc3339(state.problem_at),
    }


ROUTES = (
    Route("GET", "/v1/nodes", list_nodes, "List nodes", Scope.ADMIN,
          query=PageQuery, answers={200: NodeList}, tag="nodes"),
    Route("POST", "/v1/nodes", add, "Let a machine join", Scope.ADMIN,
          body=NewNode, body_required=False, answers={201: JoinTokenView}, tag="nodes"),
    Route("GET", "/v1/nodes/{id}", show, "Show a node", Scope.ADMIN,
          answers={200: NodeView}, tag="nodes"),
    Route("GET", "/v1/nodes/{id}/events", list_events, "What happened to a node", Scope.ADMIN,
          answers={200: NodeEventList}, tag="nodes"),
    Route("POST", "/v1/nodes/{id}/drain", drain, "Drain a node", Scope.ADMIN,
          body=NothingMore, body_required=False, answers={200: NodeView}, tag="nodes"),
)  # fmt: skip
