"""What tells one delivery of a webhook from another, so that what a sender repeats runs once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from functions import expressions
from functions.expressions import Budget, MissingValue
from functions.verifying import TIMED, Headers
from functions.webhook_bodies import cloud_event_id
from functions.webhook_spec import WebhookSpec

LONGEST = 200
"""Characters of an id that is kept as it is; of a longer one, its hash."""
USUAL_HEADERS = ("webhook-id", "svix-id", "idempotency-key")
TWILIO_IDS = ("MessageSid", "SmsSid", "CallSid")
TWILIO_STATES = ("MessageStatus", "SmsStatus", "CallStatus")


def delivery_id(webhook: WebhookSpec, headers: Headers, values: Mapping[str, Any], verified: str | None) -> str | None:
    """The id under which this request is remembered; None: each of them is a new one.

    ``verified`` is what the scheme said when it verified. Raises ``Malformed`` for a broken CloudEvent.
    """
    event = cloud_event_id(headers, values["body"])
    if webhook.dedupe is not None:
        try:
            return shortened(expressions.text_of(webhook.dedupe, values, Budget(64 * 1024)))
        except MissingValue:
            return None
    in_body = _in_body(webhook.verify, values["body"])
    # What is signed goes before headers that are not: with another one of those, a replay would be a new request.
    found = in_body or verified if webhook.verify in TIMED else verified or in_body
    if found is None and event is not None:
        found = " ".join(event)
    if found is None:
        found = next((headers[name] for name in USUAL_HEADERS if headers.get(name)), None)
    return None if found is None else shortened(found)


def shortened(text: str) -> str | None:
    """Fit for a key of the database; None for nothing."""
    if 0 < len(text) <= LONGEST and text.isprintable():
        return text
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}" if text else None


def _in_body(scheme: str, body: Any) -> str | None:
    if not isinstance(body, dict):
        return None
    if scheme == "twilio":
        sid = next((body[name] for name in TWILIO_IDS if isinstance(body.get(name), str)), None)
        # A message has one id over its life: each of its states is told of.
        state = next((body[name] for name in TWILIO_STATES if isinstance(body.get(name), str)), "")
        return f"{sid} {state}".strip() if sid else None
    key = {"stripe": "id", "slack": "event_id", "discord": "id"}.get(scheme)
    value = body.get(key) if key is not None else None
    return value if isinstance(value, str) and value else None
