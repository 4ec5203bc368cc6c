"""GitHub: HMAC-SHA256 over the body in ``X-Hub-Signature-256``. The id is that of the delivery."""

from __future__ import annotations

from collections.abc import Sequence

from functions.verifying.digests import from_hex, mac, require_match
from functions.verifying.received import Event, Options, Received, Unverified

HEADER, PREFIX, ID = "x-hub-signature-256", "sha256=", "x-github-delivery"


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str | None:
    text = received.headers.need(HEADER)
    if not text.startswith(PREFIX):
        raise Unverified(f"the {HEADER} header does not begin with {PREFIX}")
    require_match([from_hex(text.removeprefix(PREFIX))], [mac(secret, received.body) for secret in secrets])
    return received.headers.one(ID)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    return {HEADER: PREFIX + mac(secret, event.body).hex(), ID: event.id, "x-github-event": "push"}
