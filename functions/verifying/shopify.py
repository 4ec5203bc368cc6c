"""Shopify: HMAC-SHA256 over the body in base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from functions.verifying.digests import from_base64, mac, require_match
from functions.verifying.received import Event, Options, Received

HEADER, ID = "x-shopify-hmac-sha256", "x-shopify-webhook-id"


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str | None:
    candidate = from_base64(received.headers.need(HEADER))
    require_match([candidate], [mac(secret, received.body) for secret in secrets])
    return received.headers.one(ID)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    signature = base64.b64encode(mac(secret, event.body)).decode()
    return {HEADER: signature, ID: event.id, "x-shopify-topic": "orders/create"}
