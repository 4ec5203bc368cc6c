"""The headers of a tar that a stranger wrote, one by one.

A tar is read as Docker's own reader does (Go's archive/tar), and no header costs more than its bytes: Python's tarfile
matches extended headers with regular expressions that take minutes for some, during which nothing else here would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512
EXTENDED_BYTES = 1024 * 1024
"""Of one header's longer names and attributes, which are held in memory."""
_WITHOUT_CONTENT = frozenset(b"123456")
"""Links, devices, folders, pipes: whatever size they claim, no bytes follow."""
FILE, OLD_FILE, SYMLINK, FOLDER = b"0", b"\0", b"2", b"5"
_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"


class BadTar(Exception):
    """It cannot be read, or has something that nothing of ours needs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """``size`` bytes from ``offset`` on, counted from the file's begin."""

    name: str
    kind: bytes
    link: str
    offset: int
    size: int

    @property
    def is_file(self) -> bool:
        return self.kind in (FILE, OLD_FILE)


def entries(file: IO[bytes], offset: int, size: int, step: Callable[[], None] = lambda: None) -> Iterator[Entry]:
    """Of the tar in that part of the file; the file may be read elsewhere between two of them. Sparse files are
    refused: they unpack to more than what is here.

    ``step`` is called for every header and every attribute in one, all that costs time: it may raise to end this.
    """
    at, end = offset, offset + size
    longer: dict[str, bytes] = {}
    seen: set[bytes] = set()
    while at < end:
        step()
        block = _read(file, at, BLOCK, end)
        if not block.strip(b"\0"):
            return
        at += BLOCK
        kind, length = _checked(block), _number(block[124:136])
        if kind in (_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _GLOBAL) and length > EXTENDED_BYTES:
            raise BadTar("has a header that is too large")
        if kind in (_LONG_NAME, _LONG_LINK, _ATTRIBUTES):
            if kind in seen:
                raise BadTar("has two headers of one kind for a file")
            seen.add(kind)
            data = _read(file, at, length, end)
            longer |= _attributes(data, step) if kind == _ATTRIBUTES else {
                "name" if kind == _LONG_NAME else "link": data.split(b"\0")[0]
            }  # fmt: skip
            at += length + -length % BLOCK
            continue
        if kind == _SPARSE:
            raise BadTar("has sparse files in it")
        if "size" in longer and kind != _GLOBAL:
            length = _decimal(longer["size"])
        name = longer.get("name") or longer.get("path") or _name(block)
        link = longer.get("link") or longer.get("linkpath") or block[157:257].split(b"\0")[0]
        if kind == OLD_FILE and name.endswith(b"/"):
            kind = FOLDER  # as archives had it before there were kinds
        if kind[0] in _WITHOUT_CONTENT:
            length = 0
        if at + length > end:
            raise BadTar("is cut off")
        yield Entry(_text(name), kind, _text(link), at, length)
        at += length + -length % BLOCK
        longer, seen = {}, set()


def _read(file: IO[bytes], at: int, length: int, end: int) -> bytes:
    if at + length > end:
        raise BadTar("is cut off")
    file.seek(at)
    data = file.read(length)
    if len(data) != length:
        raise BadTar("is cut off")
    return data


def _checked(block: bytes) -> bytes:
    """The kind of entry, if the header's checksum is right."""
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != _number(block[148:156]):
        raise BadTar("has a broken header")
    return block[156:157]


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise BadTar("has a broken header")
    return value


def _decimal(value: bytes) -> int:
    if len(value) > 20 or not value.isdigit():
        raise BadTar("has a broken header")
    return int(value)


def _attributes(data: bytes, step: Callable[[], None]) -> dict[str, bytes]:
    """Records ``<length> <key>=<value>\\n``, the length being that of the record."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        step()
        space = data.find(b" ", at, at + 10)
        length = _decimal(data[at:space]) if space > at else 0
        key, equals, value = data[space + 1 : at + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(data) - at:
            raise BadTar("has a broken header")
        if key.startswith(b"GNU.sparse"):
            raise BadTar("has sparse files in it")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = value[:-1]
        at += length
    return found


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
