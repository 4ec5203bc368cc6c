"""``multipart/form-data`` as it streams in: fields one after the other, and no more in memory than has just come."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from functions.errors import Malformed

# It writes a line of its own for each form that breaks a rule, which any client may send.
logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)

MOST_FIELDS = 200
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field begins. ``filename`` None: it is text."""

    name: str
    filename: str | None
    content_type: str


@dataclass(frozen=True, slots=True)
class FieldEnd:
    """Where it ends."""


Piece = Field | bytes | FieldEnd


def boundary_of(request: Request) -> bytes:
    """Raises ``Malformed`` for a form that does not say what stands between its fields."""
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if not boundary or len(boundary) > 70:
        raise Malformed("the Content-Type header of a form names its boundary")
    return boundary


async def read_form(body: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Piece]:
    """A form's fields: each begins with a ``Field``, then bytes come, then a ``FieldEnd``. Raises ``Malformed``."""
    form = _Form(boundary)
    async for chunk in body:
        for piece in form.feed(chunk):
            yield piece
    form.end()


class _Form:
    def __init__(self, boundary: bytes) -> None:
        self._pieces: list[Piece] = []
        self._header = [bytearray(), bytearray()]
        self._headers: dict[str, str] = {}
        self._fields = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._pieces.append(data[start:end]),
                    "on_part_end": lambda: self._pieces.append(FieldEnd()),
                    "on_end": self._on_end,
                },
            )
        except FormParserError:
            raise Malformed("the Content-Type header of a form names its boundary") from None

    def feed(self, chunk: bytes) -> list[Piece]:
        self._pieces.clear()
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise Malformed("the form cannot be read") from None
        return list(self._pieces)

    def end(self) -> None:
        if not self._ended:
            raise Malformed("the form ends before its last boundary")

    def _on_end(self) -> None:
        self._ended = True

    def _on_header_end(self) -> None:
        name, value = (bytes(part).decode("utf-8", "replace") for part in self._header)
        self._headers[name.lower()] = value
        for part in self._header:
            part.clear()

    def _on_headers_finished(self) -> None:
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise Malformed(f"the form has more than {MOST_FIELDS} fields")
        kind, options = parse_options_header(_latin(self._headers.get("content-disposition", "")))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise Malformed("a field of the form has no name")
        if len(name) > LONGEST_NAME or "\0" in name:
            raise Malformed("a field of the form has a name that cannot be used")
        if self._headers.get("content-transfer-encoding", "binary").strip().lower() not in ("binary", "8bit", "7bit"):
            raise Malformed("a field of the form is encoded: send its bytes as they are")
        filename = options.get(b"filename")
        self._pieces.append(
            Field(
                name,
                None if filename is None else filename.decode("utf-8", "replace"),
                self._headers.get("content-type", "application/octet-stream").strip(),
            )
        )


def _latin(text: str) -> str:
    """The header as the parser wants it: one character for each byte."""
    return text.encode().decode("latin-1")
