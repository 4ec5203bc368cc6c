"""Any HMAC over the body: the webhook says in which header, with which algorithm, encoding and prefix."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from functions.verifying.digests import from_base64, from_hex, mac, require_match
from functions.verifying.received import Event, Options, Received, Unverified

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
ENCODINGS = ("hex", "base64")


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> None:
    assert options.header is not None
    text = received.headers.need(options.header)
    if not text.startswith(options.prefix):
        raise Unverified(f"the {options.header} header does not begin with {options.prefix}")
    decode = from_hex if options.encoding == "hex" else from_base64
    candidate = decode(text.removeprefix(options.prefix))
    require_match([candidate], [mac(secret, received.body, options.algorithm) for secret in secrets])


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    assert options.header is not None
    digest = mac(secret, event.body, options.algorithm)
    text = digest.hex() if options.encoding == "hex" else base64.b64encode(digest).decode()
    return {options.header: options.prefix + text, "webhook-id": event.id}
