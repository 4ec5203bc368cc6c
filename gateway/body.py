"""Request bodies: bounded in bytes and in time, of a known type, and strictly what was asked for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection

from starlette.requests import ClientDisconnect, Request

from functions.errors import Malformed, TimedOut, TooLarge, UnsupportedMedia

CAP_BYTES = 1024 * 1024
PATIENCE_S = 15.0
JSON = "application/json"

_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_CHARSET = re.compile(r'\s*charset\s*=\s*"?utf-?8"?\s*', re.IGNORECASE)


async def read_raw(
    request: Request,
    cap: int = CAP_BYTES,
    *,
    media_types: Collection[str] = (),
    patience_s: float | None = None,
) -> bytes:
    """The body as it was sent.

    Raises ``UnsupportedMedia`` when ``media_types`` are given and it is none of them, or when it is
    compressed: a few bytes may stand for gigabytes. ``TooLarge`` over ``cap`` bytes, declared or arriving;
    ``TimedOut`` when it is not all here after ``patience_s`` (15 s unless given).
    """
    if media_types:
        found = content_type(request)
        if found not in media_types:
            raise UnsupportedMedia(f"this takes {' or '.join(media_types)}, not {found}")
    _refuse_at_once(request, cap)
    patience_s = PATIENCE_S if patience_s is None else patience_s
    try:
        async with asyncio.timeout(patience_s):
            return await _read(request, cap)
    except TimeoutError:
        raise TimedOut(f"the body did not arrive within {patience_s:g} seconds") from None


async def stream_raw(request: Request, cap: int) -> AsyncIterator[bytes]:
    """The body as it comes, for what is too large to hold: no more is read than is taken from here.

    As ``read_raw``, but ``TimedOut`` is for a client that sends nothing for ``PATIENCE_S``.
    """
    _refuse_at_once(request, cap)
    size, more = 0, True
    while more:
        try:
            async with asyncio.timeout(PATIENCE_S):
                message = await request.receive()
        except TimeoutError:
            raise TimedOut(f"nothing of the body arrived for {PATIENCE_S:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            size += len(chunk)
            if size > cap:
                raise _too_large(cap)
            yield chunk
        more = message.get("more_body", False)


def _refuse_at_once(request: Request, cap: int) -> None:
    for encoding in request.headers.getlist("content-encoding"):
        if encoding.strip().lower() != "identity":
            raise UnsupportedMedia("send the body without a content encoding")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > cap:
        raise _too_large(cap)


async def _read(request: Request, cap: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            size += len(chunk)
            if size > cap:
                raise _too_large(cap)
            chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def content_type(request: Request) -> str:
    """The body's media type in lower case; raises ``UnsupportedMedia`` for none, or for text not in UTF-8."""
    values = request.headers.getlist("content-type")
    if len(values) > 1:
        raise Malformed("there is more than one Content-Type header")
    if not values:
        raise UnsupportedMedia("name the body's type in a Content-Type header")
    media_type, *parameters = values[0].split(";")
    media_type = media_type.strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise UnsupportedMedia("the Content-Type header names no media type")
    for parameter in parameters:
        if parameter.strip().lower().startswith("charset") and not _CHARSET.fullmatch(parameter):
            raise UnsupportedMedia("text must be UTF-8")
    return media_type


def _too_large(cap: int) -> TooLarge:
    return TooLarge(f"the body is larger than {cap} bytes")
