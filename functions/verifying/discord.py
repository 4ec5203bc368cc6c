"""Discord: ed25519 over ``timestamp body``; the secret is the application's public key, in hex."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from functions.verifying.digests import fingerprint, fresh, from_hex
from functions.verifying.received import Event, Options, Received, Unverified

HEADER, TIMESTAMP = "x-signature-ed25519", "x-signature-timestamp"


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str:
    timestamp, text = received.headers.need(TIMESTAMP), received.headers.need(HEADER)
    fresh(timestamp, received.now)
    signature = from_hex(text)
    keys = [key for each in secrets if (key := _public(each)) is not None]
    if not keys:
        raise Unverified("the secret is no public key: 64 hex digits, as the application's page shows them")
    signed = timestamp.encode() + received.body
    if signature is None or not any(_signed(key, signature, signed) for key in keys):
        raise Unverified("no signature fits")
    return fingerprint(signed)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    """``secret`` is the private key, in hex: a test has one, Discord keeps its own."""
    key = from_hex(secret.decode("latin-1").strip())
    if key is None or len(key) != 32:
        raise ValueError("a test event is signed with a private ed25519 key: 64 hex digits")
    signature = Ed25519PrivateKey.from_private_bytes(key).sign(str(event.timestamp).encode() + event.body)
    return {TIMESTAMP: str(event.timestamp), HEADER: signature.hex()}


def _public(secret: bytes) -> Ed25519PublicKey | None:
    key = from_hex(secret.decode("latin-1").strip())
    return Ed25519PublicKey.from_public_bytes(key) if key is not None and len(key) == 32 else None


def _signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
