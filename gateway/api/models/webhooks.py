"""Webhooks, and the requests that came in."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gateway.api.models import View


class HookAnswer(View):
    """The job that the sender's first delivery of this id made."""

    id: str


class HandshakeAnswer(BaseModel):
    """What a sender that asks before it sends wants to hear: its `challenge`, or the `type` of a ping."""

    model_config = ConfigDict(extra="allow")


class WebhookRateView(View):
    limit: int
    per: str


class WebhookView(View):
    """A webhook. ``secret`` names project secrets; ``origin`` says who takes it away: an apply, or a call."""

    id: str
    function: str
    name: str
    url: str
    origin: Literal["manifest", "api"]
    enabled: bool
    verify: str
    secret: list[str]
    header: str | None
    algorithm: str | None
    encoding: str | None
    prefix: str | None
    filter: dict[str, list[Any]]
    params: dict[str, Any] | None
    dedupe: str | None
    rate: WebhookRateView | None
    created_at: datetime
    updated_at: datetime


class WebhookList(View):
    data: list[WebhookView]
    next_cursor: str | None


Verdict = Literal["accepted", "repeated", "filtered", "answered", "refused", "invalid", "rejected"]


class ReceiptSummary(View):
    """A request that came in. ``delivery`` is the sender's id of it, ``job`` what it made or had made."""

    id: str
    webhook: str
    verdict: Verdict
    reason: str | None
    job: str | None
    delivery: str | None
    replay_of: str | None
    size: int
    at: datetime


class ReceiptList(View):
    data: list[ReceiptSummary]
    next_cursor: str | None


class ReceiptView(ReceiptSummary):
    """``headers`` in the order in which they came, without secrets. ``body`` is its text, or ``body_base64`` of bytes
    that are none; both null: it was not kept. ``truncated``: only its beginning was."""

    headers: list[list[str]]
    query: str
    body: str | None
    body_base64: str | None
    truncated: bool
