"""How an API key reads: ``rgk_<id>_<secret><checksum>``.

12 characters name it, 32 are the secret (190 bits) and six a CRC-32 of the rest, all base62, so that scanners
find a key and a typo costs no look-up.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY = re.compile(r"rgk_([0-9A-Za-z]{12})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})")
KEY_IN_URL = re.compile(rb"rgk_[0-9A-Za-z]{12}_")


@dataclass(frozen=True, slots=True)
class NewKey:
    """``text`` is shown this once."""

    id: str
    text: str

    @property
    def hash(self) -> bytes:
        return digest(self.text)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def make_key() -> NewKey:
    name = "".join(secrets.choice(ALPHABET) for _ in range(12))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(32))
    return NewKey(name, f"rgk_{name}_{secret}{_checksum(f'rgk_{name}_{secret}')}")


def parse(text: str) -> str | None:
    """The id in a well-formed key; None for anything else."""
    match = KEY.fullmatch(text)
    if match is None or _checksum(text[:-6]) != match[3]:
        return None
    return match[1]


def _checksum(text: str) -> str:
    value, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits
