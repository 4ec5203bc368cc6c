"""Slack: HMAC-SHA256 over ``v0:timestamp:body``. The id of an event is in its body."""

from __future__ import annotations

from collections.abc import Sequence

from functions.verifying.digests import fingerprint, fresh, from_hex, mac, require_match
from functions.verifying.received import Event, Options, Received, Unverified

HEADER, TIMESTAMP, PREFIX = "x-slack-signature", "x-slack-request-timestamp", "v0="


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str:
    timestamp, text = received.headers.need(TIMESTAMP), received.headers.need(HEADER)
    fresh(timestamp, received.now)
    if not text.startswith(PREFIX):
        raise Unverified(f"the {HEADER} header does not begin with {PREFIX}")
    signed = f"v0:{timestamp}:".encode() + received.body
    require_match([from_hex(text.removeprefix(PREFIX))], [mac(secret, signed) for secret in secrets])
    return fingerprint(signed)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    signature = mac(secret, f"v0:{event.timestamp}:".encode() + event.body).hex()
    return {TIMESTAMP: str(event.timestamp), HEADER: PREFIX + signature}
