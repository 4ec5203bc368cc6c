"""Standard Webhooks (and Svix, whose headers begin with svix-): HMAC-SHA256 or ed25519 over ``id.timestamp.body``."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from functions.verifying.digests import MOST_CANDIDATES, fresh, from_base64, mac, require_match
from functions.verifying.received import Event, Options, Received, Unverified

SYMMETRIC, PUBLIC = "whsec_", "whpk_"
KEY_BYTES = range(16, 129)
"""The specification wants 24 to 64; some senders have others."""


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str:
    """The message's id."""
    prefix = "webhook-" if "webhook-signature" in received.headers else "svix-"
    message_id = received.headers.need(prefix + "id")
    timestamp = received.headers.need(prefix + "timestamp")
    signatures = received.headers.need(prefix + "signature").split(" ")
    fresh(timestamp, received.now)
    if len(signatures) > MOST_CANDIDATES:
        raise Unverified(f"there are more than {MOST_CANDIDATES} signatures")
    signed = f"{message_id}.{timestamp}.".encode("latin-1") + received.body
    texts = [secret.decode("utf-8", "replace").strip() for secret in secrets]
    public = [key for text in texts if text.startswith(PUBLIC) and (key := _public(text)) is not None]
    symmetric = [key for text in texts if not text.startswith(PUBLIC) and (key := _symmetric(text)) is not None]
    if not public and not symmetric:
        raise Unverified("no secret is a whsec_ or whpk_ key: set what the sender shows, as it is")
    of_public, of_symmetric = _of(signatures, "v1a"), _of(signatures, "v1")
    if any(_signed(key, each, signed) for key in public for each in of_public):
        return message_id
    require_match(of_symmetric, [mac(key, signed) for key in symmetric])
    return message_id


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    key = _symmetric(secret.decode("utf-8", "replace").strip())
    if key is None:
        raise ValueError("the secret of a standard webhook is whsec_ and base64 behind it")
    signature = mac(key, f"{event.id}.{event.timestamp}.".encode() + event.body)
    return {
        "webhook-id": event.id,
        "webhook-timestamp": str(event.timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


def _of(signatures: Sequence[str], version: str) -> list[bytes | None]:
    """Those of a version, decoded; others may stand beside them."""
    found = (each.split(",") for each in signatures)
    return [from_base64(each[1]) for each in found if len(each) == 2 and each[0] == version]


def _symmetric(text: str) -> bytes | None:
    key = from_base64(text.removeprefix(SYMMETRIC))
    return key if key is not None and len(key) in KEY_BYTES else None


def _public(text: str) -> bytes | None:
    key = from_base64(text.removeprefix(PUBLIC))
    return key if key is not None and len(key) == 32 else None


def _signed(key: bytes, signature: bytes | None, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature or b"", message)
    except (InvalidSignature, ValueError):
        return False
    return True
