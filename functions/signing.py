"""Signatures of callbacks (Standard Webhooks): ``v1`` is HMAC-SHA256 with a shared secret, ``v1a`` ed25519 with a key
whose public half anybody may know. Values only.

What is signed is ``id.timestamp.body``; a header may carry several signatures, and one that holds is enough.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from functions.errors import Invalid

SECRET_PREFIX, PUBLIC_PREFIX = "whsec_", "whpk_"
SECRET_BYTES = 32
TOLERANCE_S = 300
"""How far the sender's clock may be from the receiver's."""


class SignatureInvalid(Invalid):
    """A message that its keys have not signed, or not lately."""

    code = "signature_invalid"


@dataclass(frozen=True, slots=True)
class Signer:
    """Every key that signs: the current ones, and those that are being replaced. The current ones come first."""

    secrets: tuple[bytes, ...]
    keys: tuple[Ed25519PrivateKey, ...] = ()

    def headers(self, message: str, at: datetime, body: bytes) -> dict[str, str]:
        """What a receiver verifies ``body`` by. ``at`` is when this attempt is made."""
        timestamp = str(int(at.timestamp()))
        content = _content(message, timestamp, body)
        signatures = [f"v1,{_text(_mac(secret, content))}" for secret in self.secrets]
        signatures += [f"v1a,{_text(key.sign(content))}" for key in self.keys]
        return {
            "webhook-id": message,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(signatures),
        }


def new_secret() -> str:
    return SECRET_PREFIX + _text(secrets.token_bytes(SECRET_BYTES))


def secret_bytes(text: str) -> bytes:
    """What a secret signs with: the bytes that ``whsec_`` stands before in base64, or any other text's own.

    Raises ``ValueError`` for ``whsec_`` before what is not base64.
    """
    if not text.startswith(SECRET_PREFIX):
        return text.encode()
    try:
        found = base64.b64decode(text.removeprefix(SECRET_PREFIX).strip(), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("what stands behind whsec_ is not base64") from None
    if not found:
        raise ValueError("nothing stands behind whsec_")
    return found


def new_key() -> bytes:
    """A private ed25519 key, as it is kept."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def private_key(kept: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(kept)


def public_text(kept: bytes) -> str:
    """The public half of a private key: ``whpk_…``."""
    return PUBLIC_PREFIX + _text(private_key(kept).public_key().public_bytes_raw())


def public_pem(kept: bytes) -> str:
    public = private_key(kept).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def verify(
    headers: Mapping[str, str],
    body: bytes,
    keys: Iterable[str],
    *,
    now: datetime | None,
    tolerance_s: float = TOLERANCE_S,
) -> str:
    """Check a message as its receiver does; returns the version of the signature that holds.

    ``headers`` are named in lower case; ``keys`` are secrets and ``whpk_…``; ``now`` None: however old it is. Raises
    ``SignatureInvalid`` for a message that is not to be trusted, ``ValueError`` for a key that is none.
    """
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    if missing := [name for name in names if not headers.get(name)]:
        raise SignatureInvalid(f"there is no {missing[0]} header")
    message, timestamp, given = (headers[name] for name in names)
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise SignatureInvalid("webhook-timestamp is no number of seconds")
    if now is not None and (late_s := abs(now.timestamp() - int(timestamp))) > tolerance_s:
        raise SignatureInvalid(f"webhook-timestamp is {late_s:.0f} s from now, and {tolerance_s:.0f} is the most")
    content = _content(message, timestamp, body)
    signatures = [each.split(",", 1) for each in given.split(" ") if "," in each]
    held = [_holding(key, content, signatures) for key in keys]
    found = next((version for version in held if version is not None), None)
    if found is None:
        raise SignatureInvalid("no signature of the message is by one of these keys")
    return found


def _holding(key: str, content: bytes, signatures: Sequence[Sequence[str]]) -> str | None:
    """The version of the signature by this key, if there is one."""
    if key.startswith(PUBLIC_PREFIX):
        public = _public_key(key)
        return _any("v1a", signatures, lambda signature: _signed(public, signature, content))
    mac = _mac(secret_bytes(key), content)
    return _any("v1", signatures, lambda signature: hmac.compare_digest(mac, signature))


def _any(version: str, signatures: Sequence[Sequence[str]], holds: Callable[[bytes], bool]) -> str | None:
    return version if any(holds(_bytes(text)) for kind, text in signatures if kind == version) else None


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.removeprefix(PUBLIC_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("what stands behind whpk_ is no ed25519 key in base64") from None


def _signed(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _content(message: str, timestamp: str, body: bytes) -> bytes:
    return f"{message}.{timestamp}.".encode() + body


def _mac(secret: bytes, content: bytes) -> bytes:
    return hmac.new(secret, content, hashlib.sha256).digest()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """What is not base64 is equal to no signature."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
