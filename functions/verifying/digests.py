"""Comparing what was sent with what should have been, over bytes and in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence

from functions.verifying.received import Unverified

MOST_CANDIDATES = 32
"""Signatures in one header: a sender that rotates has two or three."""
TOLERANCE_S = 300

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def from_hex(text: str) -> bytes | None:
    """None for what is not hex, and nothing but hex."""
    return bytes.fromhex(text) if _HEX.fullmatch(text) else None


def from_base64(text: str) -> bytes | None:
    """None for what is not base64, padding included."""
    try:
        decoded = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    # Bits behind the last byte would make several texts of one value.
    return decoded if base64.b64encode(decoded).decode() == text else None


def mac(key: bytes, message: bytes, algorithm: str = "sha256") -> bytes:
    return hmac.digest(key, message, algorithm)


def require_match(candidates: Sequence[bytes | None], expected: Iterable[bytes]) -> None:
    """Raise ``Unverified`` unless one of the candidates is one of the expected values.

    All of them are compared, whichever is right: how long it takes tells nothing.
    """
    if len(candidates) > MOST_CANDIDATES:
        raise Unverified(f"there are more than {MOST_CANDIDATES} signatures")
    found = False
    wanted = list(expected)
    for candidate in candidates:
        for each in wanted:
            # Of one length always, whatever was sent.
            found |= hmac.compare_digest(hashlib.sha256(candidate or b"").digest(), hashlib.sha256(each).digest())
    if not found:
        raise Unverified("no signature fits" if any(candidates) else "there is no signature that can be read")


def fresh(text: str, now: float) -> int:
    """A timestamp in seconds; raises ``Unverified`` unless it is within ``TOLERANCE_S`` of now."""
    if not _TIMESTAMP.fullmatch(text):
        raise Unverified("the timestamp is not one in whole seconds")
    if abs(int(now) - int(text)) > TOLERANCE_S:
        raise Unverified(f"the timestamp is more than {TOLERANCE_S} s away from now")
    return int(text)


def fingerprint(signed: bytes) -> str:
    """What a signature covers, timestamp included: the same for however it is written and whatever stands around it."""
    return f"signed:{hashlib.sha256(signed).hexdigest()}"


def pretend(body: bytes) -> None:
    """What a signature costs, for an address that has no webhook: the two take alike."""
    try:
        require_match([b"\0" * 32], [mac(b"nobody", body)])
    except Unverified:
        return
