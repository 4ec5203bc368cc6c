"""The kinds of failure. An error says what happened and carries a stable ``code``; it knows nothing of HTTP.

``gateway/problems.py`` alone turns a kind into a status and a problem document; the command line prints it as one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in a document: ``pointer`` is an RFC 6901 JSON pointer into it ("" is the whole)."""

    pointer: str
    message: str


class RGridError(Exception):
    """Base of every failure that a user may see. The message is one plain sentence that says what to do."""

    code = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class Malformed(RGridError):
    """The request cannot be read at all: not JSON, bad header, bad cursor."""

    code = "malformed"


class Invalid(RGridError):
    """It was read and breaks a rule; ``errors`` points at each place."""

    code = "invalid"


class NotFound(RGridError):
    """No such thing, or it belongs to somebody else: the two must look the same."""

    code = "not_found"


class Conflict(RGridError):
    """The thing is in a state that does not allow this."""

    code = "conflict"


class LeaseLost(Conflict):
    """The job was offered to another node because this lease ran out."""

    code = "lease_lost"


class Unauthenticated(RGridError):
    """No credential, or one that is not valid."""

    code = "unauthenticated"


class Forbidden(RGridError):
    """The credential is valid and may not do this."""

    code = "forbidden"


class TooLarge(RGridError):
    """More bytes than the limit."""

    code = "too_large"


class UnsupportedMedia(RGridError):
    """A content type or encoding that this call does not take."""

    code = "unsupported_media_type"


class TimedOut(RGridError):
    """The client took too long to send its request."""

    code = "request_timeout"


class Unavailable(RGridError):
    """A part that is needed (database, store) does not answer now; the same call may work later."""

    code = "unavailable"
