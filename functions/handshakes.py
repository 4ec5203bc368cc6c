"""Questions that senders ask before they send events, and what they want to hear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from functions.verifying import Headers
from functions.webhook_spec import WebhookSpec

PING, EVENTS_PING = 1, 0
"""Types of what only wants to know whether somebody answers: among Discord's interactions, and among its events."""
ED25519 = "x-signature-ed25519"
EVENT = "header.x-github-event"


@dataclass(frozen=True, slots=True)
class Reply:
    """``content`` is sent as JSON; None: there is nothing to say."""

    content: dict[str, Any] | None = None


def reply_to(webhook: WebhookSpec, headers: Headers, body: Any) -> Reply | None:
    """The answer to a handshake, which makes no job; None for an event. The request has been verified."""
    if webhook.verify == "github" and headers.get("x-github-event") == "ping":
        return None if "ping" in webhook.filter.get(EVENT, ()) else Reply()
    if not isinstance(body, dict):
        return None
    if webhook.verify in ("slack", "token", "none") and body.get("type") == "url_verification":
        challenge = body.get("challenge")
        return Reply({"challenge": challenge}) if isinstance(challenge, str) else None
    return _pong(body) if webhook.verify == "discord" or ED25519 in headers else None


def _pong(body: dict[str, Any]) -> Reply | None:
    kind = body.get("type")
    if isinstance(kind, bool):  # which is a number, too
        return None
    if kind == PING and "event" not in body:
        return Reply({"type": PING})
    return Reply() if kind == EVENTS_PING else None
