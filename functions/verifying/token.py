"""The secret itself in a header: the webhook's, or as a bearer token. It binds no body, so it wants TLS."""

from __future__ import annotations

from collections.abc import Sequence

from functions.verifying.digests import require_match
from functions.verifying.received import Event, Options, Received, Unverified

BEARER = "authorization"


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> None:
    text = received.headers.need(options.header or BEARER)
    if options.header is None:
        scheme, _, text = text.partition(" ")
        if scheme.lower() != "bearer":
            raise Unverified("the Authorization header has no bearer token")
        text = text.strip(" ")
    elif not text.startswith(options.prefix):
        raise Unverified(f"the {options.header} header does not begin with {options.prefix}")
    else:
        text = text.removeprefix(options.prefix)
    require_match([text.encode("latin-1")], secrets)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    name = options.header or BEARER
    prefix = "Bearer " if options.header is None else options.prefix
    return {name: prefix + secret.decode("latin-1"), "webhook-id": event.id}
