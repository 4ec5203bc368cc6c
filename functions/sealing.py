"""Seals small secrets for the database with ``RGRID_SECRET_KEY`` (Fernet: AES-128-CBC and HMAC-SHA256)."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from functions.errors import Invalid, Unavailable


class Sealer:
    """``keys`` are Fernet keys, comma-separated: the first one seals, each of them opens.

    A key is rotated by putting the new one in front; the old one goes when nothing sealed with it is left.
    """

    def __init__(self, keys: str) -> None:
        texts = [text for part in keys.split(",") if (text := part.strip())]
        if not texts:
            raise Invalid(
                "RGRID_SECRET_KEY is empty: it takes a Fernet key (32 random bytes, URL-safe base64)"
            )
        try:
            keys_in_order = [Fernet(text) for text in texts]
        except ValueError as error:
            # The message of the library may quote the key.
            raise Invalid(
                "RGRID_SECRET_KEY holds something that is not a Fernet key (32 random bytes, URL-safe base64)"
            ) from error
        self._first = keys_in_order[0]
        self._fernet = MultiFernet(keys_in_order)

    def seal(self, secret: bytes) -> bytes:
        return self._fernet.encrypt(secret)

    def open(self, sealed: bytes) -> bytes:
        """The secret; raises ``Unavailable`` when no key of ours sealed it, or when it was changed since."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise Unavailable(
                "a stored secret does not open with RGRID_SECRET_KEY: the key was changed, or the database "
                "belongs to another installation. Put the old key behind the new one, separated by a comma"
            ) from None

    def resealed(self, sealed: bytes) -> bytes | None:
        """The same secret, sealed with the first key; None if it is already. Raises as ``open``."""
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return self.seal(self.open(sealed))
        return None
