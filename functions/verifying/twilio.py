"""Twilio: HMAC-SHA1 in base64 over the address that it was given and the form's fields; of a JSON body, its SHA-256 is
in the address."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from functions.verifying.digests import from_base64, mac, require_match
from functions.verifying.received import Event, Options, Received, Unverified

HEADER = "x-twilio-signature"
RETRY = "i-twilio-idempotency-token"
BODY_HASH = "bodySHA256"
FORM = "application/x-www-form-urlencoded"
MOST_FIELDS = 1000


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str | None:
    candidate = from_base64(received.headers.need(HEADER))
    fields = _fields(received)
    signed = [(url + fields).encode() for url in addresses(received.url)]
    require_match([candidate], [mac(secret, each, "sha1") for secret in secrets for each in signed])
    return received.headers.one(RETRY)


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    """Of a form; a JSON body must be announced in the address, see ``with_hash``."""
    is_form = event.headers.get("content-type", "").startswith(FORM)
    try:
        signed = (event.url + (_joined(event.body) if is_form else "")).encode()
    except Unverified as error:
        raise ValueError(str(error)) from None
    return {HEADER: base64.b64encode(mac(secret, signed, "sha1")).decode(), RETRY: event.id}


def with_hash(url: str, body: bytes) -> str:
    """The address of a JSON body."""
    return f"{url}{'&' if '?' in url else '?'}{BODY_HASH}={hashlib.sha256(body).hexdigest()}"


def addresses(url: str) -> Iterator[str]:
    """The address with and without its scheme's usual port: senders sign either."""
    parts = urlsplit(url)
    usual = {"http": "80", "https": "443"}.get(parts.scheme, "")
    host, _, port = parts.netloc.rpartition(":")
    if not host or not port.isdecimal():
        host, port = parts.netloc, usual
    yield urlunsplit(parts._replace(netloc=host)) if port == usual else url
    yield urlunsplit(parts._replace(netloc=f"{host}:{port}")) if port else url


def _fields(received: Received) -> str:
    kind = (received.headers.one("content-type") or "").partition(";")[0].strip().lower()
    query = urlsplit(received.url).query
    hashes = [value for name, value in parse_qsl(query, keep_blank_values=True) if name == BODY_HASH]
    if kind == FORM and not hashes:  # or an empty form would fit the signature of any JSON body
        return _joined(received.body)
    if not hashes and not received.body:
        return ""
    digest = hashlib.sha256(received.body).hexdigest()
    if len(hashes) != 1 or not hmac.compare_digest(hashes[0].encode("utf-8", "replace"), digest.encode()):
        raise Unverified(f"the body is no form, and {BODY_HASH} in the address is not its hash")
    return ""


def _joined(body: bytes) -> str:
    """Names and values one after the other, in the order of names; of a name's equal values one."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Unverified("the form cannot be read") from None
    return "".join(name + value for name, value in sorted(set(pairs)))
