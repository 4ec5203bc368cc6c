"""How a request to a named address ends badly: it may not be made, or it did not work."""

from __future__ import annotations

from typing import Literal

Reason = Literal["syntax", "scheme", "port", "address"]
Kind = Literal["dns", "connect", "tls", "timeout", "closed", "protocol", "too_large", "redirects", "status"]


class EgressRefused(Exception):
    """The URL may not be called. The message names no address, or users could read our private DNS with
    it."""

    code = "url_refused"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class EgressFailed(Exception):
    """The URL may be called and gave no usable answer; another try may do. ``address`` is what was
    connected to."""

    code = "egress_failed"

    def __init__(
        self, kind: Kind, message: str, *, status: int | None = None, address: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.address = address
