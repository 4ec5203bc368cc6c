"""Stripe: HMAC-SHA256 over ``timestamp.body``, both in ``Stripe-Signature``. The id is the event's, in the body."""

from __future__ import annotations

from collections.abc import Sequence

from functions.verifying.digests import fingerprint, fresh, from_hex, mac, require_match
from functions.verifying.received import Event, Options, Received, Unverified

HEADER = "stripe-signature"


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str:
    parts = [part.partition("=") for part in received.headers.need(HEADER).split(",")]
    timestamps = [value for name, _, value in parts if name.strip() == "t"]
    if len(timestamps) != 1:
        raise Unverified(f"the {HEADER} header does not have one timestamp")
    timestamp = timestamps[0]
    fresh(timestamp, received.now)
    candidates = [from_hex(value) for name, _, value in parts if name.strip() == "v1"]
    signed = f"{timestamp}.".encode() + received.body
    require_match(candidates, [mac(secret, signed) for secret in secrets])
    return fingerprint(signed)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    signature = mac(secret, f"{event.timestamp}.".encode() + event.body).hex()
    return {HEADER: f"t={event.timestamp},v1={signature}"}
