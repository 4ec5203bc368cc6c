"""Nodes, the servers that are rented for them, and how the fleet stands."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from gateway.api.models import View


class ServerView(View):
    """Of a rented node. ``hourly`` is EUR (net); up to ``paid_until`` its hours are paid for."""

    state: Literal["planned", "creating", "booting", "ready", "draining", "deleting", "gone", "lost", "failed"]
    type: str
    location: str
    hourly: str
    created_at: datetime | None
    paid_until: datetime | None
    ended_at: datetime | None
    error: str | None


class FleetView(View):
    """How the autoscaler stands with the cloud. ``unknown`` of the ``listed`` servers have our label and no row: 0."""

    reconciled_at: datetime | None
    listed: int
    unknown: int
    frozen_until: datetime | None
    account_limit: int | None
    problem: str | None
    problem_at: datetime | None


class NodeEvent(View):
    at: datetime
    type: str
    detail: str | None


class NodeEventList(View):
    data: list[NodeEvent]


class NodeView(View):
    id: str
    name: str
    provider: str
    state: Literal["joining", "ready", "draining", "gone", "silent"]
    slots: int
    running: int
    version: str | None
    facts: dict[str, Any]
    created_at: datetime
    joined_at: datetime | None
    last_seen_at: datetime | None
    server: ServerView | None


class NodeList(View):
    data: list[NodeView]
    next_cursor: str | None
    fleet: FleetView | None


class JoinTokenView(View):
    """``join_token`` is shown this once and works once."""

    id: str
    join_token: str
    expires_at: datetime
