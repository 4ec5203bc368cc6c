"""Cursors of lists: a position with a MAC over it and over the list that gave it, so that one that was changed, or that
belongs to another list or project, is refused rather than read as something else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from uuid import UUID

from functions.errors import Malformed

MAC_BYTES = 14
"""With the position's 16 this makes 30, which base64 writes without padding."""


class Cursors:
    """``secret`` is the same in every gateway of an instance."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"rgrid cursors\0" + secret).digest()

    def encode(self, of: bytes, position: UUID) -> str:
        return base64.urlsafe_b64encode(position.bytes + self._mac(of, position.bytes)).decode()

    def decode(self, of: bytes, text: str) -> UUID:
        """The position; raises ``Malformed`` unless ``encode`` made this text for this list."""
        try:
            position = UUID(bytes=base64.urlsafe_b64decode(text.encode("ascii"))[:16])
        except ValueError:
            position = UUID(int=0)
        # Compared as text: more than one text decodes to the same bytes.
        if not hmac.compare_digest(self.encode(of, position).encode(), text.encode()):
            raise Malformed("this cursor is not one of this list: start without one", code="cursor_invalid")
        return position

    def _mac(self, of: bytes, position: bytes) -> bytes:
        return hmac.digest(self._key, b"%d\0%b%b" % (len(of), of, position), "sha256")[:MAC_BYTES]
