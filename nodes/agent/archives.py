"""The archive of one image, as ``docker save`` writes it: read with suspicion, written anew for an engine.

Nothing of the archive itself reaches the engine. What does is written here from scratch: the image's configuration
and its layers, under names of ours, without tags, links or anything else. The SHA-256 of the configuration is the
image's id, and each layer must be what the configuration says, so that the id stands for all of the bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import zstandard

from nodes.agent.tars import FOLDER, SYMLINK, BadTar, Entry, entries

MOST_ENTRIES = 2000
"""Of the archive itself; ``docker save`` writes four for a layer and a few more."""
MOST_LAYERS = 127
MOST_FILES = 2_000_000
"""In all layers together."""
MOST_STEPS = 6_000_000
"""Headers and their attributes, in the archive and all layers: about a minute of a core. Few files have attributes."""
INDEX_BYTES = 1024 * 1024
CONFIG_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024

_INDEX = "manifest.json"
_HEX = r"[0-9a-f]{64}"
_KNOWN = re.compile(
    rf"{_INDEX}|repositories|oci-layout|index\.json|blobs|blobs/sha256|blobs/sha256/{_HEX}"
    rf"|{_HEX}|{_HEX}\.json|{_HEX}\.tar|{_HEX}/(?:VERSION|json|layer\.tar)"
)
_DIFF_ID = re.compile(rf"sha256:{_HEX}")


class BadArchive(Exception):
    """Not the archive of one image that may be loaded. The message goes after "the image …"."""


class TooLarge(BadArchive):
    pass


@dataclass(frozen=True, slots=True)
class Layer:
    """``size`` bytes of ``file`` from ``offset`` on: an uncompressed tar whose SHA-256 is ``diff_id``."""

    diff_id: str
    file: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SavedImage:
    """``id`` is ``sha256:…`` of ``config``."""

    id: str
    config: bytes
    layers: tuple[Layer, ...]

    def chunks(self) -> Iterator[bytes]:
        """An archive for the engine: this image alone, without a name. The same image is always the same bytes."""
        config = f"{self.id.removeprefix('sha256:')}.json"
        paths = [f"{layer.diff_id.removeprefix('sha256:')}.tar" for layer in self.layers]
        index = json.dumps([{"Config": config, "RepoTags": None, "Layers": paths}]).encode()
        for name, content in ((_INDEX, index), (config, self.config)):
            yield _header(name, len(content)) + content + _padding(len(content))
        written: set[str] = set()
        for path, layer in zip(paths, self.layers, strict=True):
            if path in written:
                continue
            written.add(path)
            yield _header(path, layer.size)
            with layer.file.open("rb") as file:
                file.seek(layer.offset)
                yield from _exactly(file, layer.size)
            yield _padding(layer.size)
        yield bytes(2 * tarfile.BLOCKSIZE)


def read_archive(path: Path, spool: Path, most_bytes: int, stop: Callable[[], bool] = lambda: False) -> SavedImage:
    """The image in the tar ``path``. Compressed layers are unpacked into ``spool``, a file that need not exist;
    what all layers unpack to is at most ``most_bytes``. Raises ``BadArchive``; ``stop`` makes it end early."""
    steps = _Steps(stop)
    with path.open("rb") as file:
        table = _table(file, steps.step)
        index = _json(_small(file, table, _INDEX, INDEX_BYTES), _INDEX)
        config_name, layer_names = _one_image(index)
        config = _small(file, table, config_name, CONFIG_BYTES)
        diff_ids = _diff_ids(_json(config, "its configuration"))
        if len(diff_ids) != len(layer_names):
            raise BadArchive("has another number of layers than its configuration says")
        reader = _Layers(path, spool, most_bytes, steps)
        layers = tuple(
            reader.read(_entry(table, name), diff_id) for name, diff_id in zip(layer_names, diff_ids, strict=True)
        )
    return SavedImage("sha256:" + hashlib.sha256(config).hexdigest(), config, layers)


class _Steps:
    """Bounds the work on one archive, and ends it when it is given up."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop, self._left = stop, MOST_STEPS

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooLarge("has more headers than a node reads")
        self.go_on()

    def go_on(self) -> None:
        if self._stop():
            raise BadArchive("was given up")


class _Layers:
    """Reads the layers of one archive, each content once."""

    def __init__(self, path: Path, spool: Path, most_bytes: int, steps: _Steps) -> None:
        self._path, self._spool, self._left, self._steps = path, spool, most_bytes, steps
        self._files_left = MOST_FILES
        self._read: dict[str, Layer] = {}

    def read(self, entry: Entry, diff_id: str) -> Layer:
        if (known := self._read.get(diff_id)) is not None:
            return known
        layer = self._plain(entry, diff_id)
        self._check_files(layer)
        self._read[diff_id] = layer
        return layer

    def _plain(self, entry: Entry, diff_id: str) -> Layer:
        """The layer as an uncompressed tar, which is what its id was made of."""
        with self._path.open("rb") as file:
            file.seek(entry.offset)
            magic = file.read(4)
            file.seek(entry.offset)
            stored = _exactly(file, entry.size)
            if not (unpacked := _unpacked(magic, stored)):
                layer = Layer(diff_id, self._path, entry.offset, entry.size)
                digest = self._hashed(stored, None)
            else:
                with self._spool.open("ab") as into:
                    offset = into.tell()
                    digest = self._hashed(unpacked, into)
                    layer = Layer(diff_id, self._spool, offset, into.tell() - offset)
        if digest != diff_id:
            raise BadArchive("has a layer with other bytes than its configuration says")
        return layer

    def _hashed(self, chunks: Iterator[bytes], into: IO[bytes] | None) -> str:
        digest = hashlib.sha256()
        for chunk in chunks:
            self._steps.go_on()
            self._left -= len(chunk)
            if self._left < 0:
                raise TooLarge("unpacks to more than a node takes")
            digest.update(chunk)
            if into is not None:
                into.write(chunk)
        return "sha256:" + digest.hexdigest()

    def _check_files(self, layer: Layer) -> None:
        """No file of it becomes larger than its bytes here, and there are not too many of them."""
        with layer.file.open("rb") as file:
            for _ in _walk(file, layer.offset, layer.size, self._steps.step):
                self._files_left -= 1
                if self._files_left < 0:
                    raise TooLarge("has more files than a node takes")


def _walk(file: IO[bytes], offset: int, size: int, step: Callable[[], None]) -> Iterator[Entry]:
    try:
        yield from entries(file, offset, size, step)
    except BadTar as error:
        raise BadArchive(str(error)) from None


def _table(file: IO[bytes], step: Callable[[], None]) -> dict[str, Entry]:
    """The files of the archive by name. A layer that stands in it twice may be a link to the other one: it is
    followed in this table, and nowhere else."""
    found: dict[str, Entry] = {}
    links: dict[str, str] = {}
    for number, entry in enumerate(_walk(file, 0, file.seek(0, io.SEEK_END), step)):
        name = entry.name.removeprefix("./").rstrip("/")
        if number >= MOST_ENTRIES:
            raise TooLarge(f"has more than {MOST_ENTRIES} entries")
        if not _KNOWN.fullmatch(name):
            raise BadArchive(f"has something in it that docker save does not write: {name[:80]!r}")
        if name in found or name in links:
            raise BadArchive(f"has {name} twice")
        if entry.kind == SYMLINK and name.endswith("/layer.tar"):
            links[name] = _beside(name, entry.link)
        elif entry.is_file:
            found[name] = entry
        elif entry.kind != FOLDER:
            raise BadArchive(f"has a link or a device in it: {name}")
    return found | {name: found[target] for name, target in links.items() if target in found}


def _beside(name: str, link: str) -> str:
    """``a/layer.tar`` with the link ``../b/layer.tar`` is ``b/layer.tar``."""
    match = re.fullmatch(rf"\.\./({_HEX}/layer\.tar)", link)
    if match is None:
        raise BadArchive(f"has a link out of its place: {name}")
    return match[1]


def _entry(table: dict[str, Entry], name: str) -> Entry:
    if (entry := table.get(name)) is None:
        raise BadArchive(f"lacks {name[:100]!r}")
    return entry


def _small(file: IO[bytes], table: dict[str, Entry], name: str, most: int) -> bytes:
    entry = _entry(table, name)
    if entry.size > most:
        raise TooLarge(f"has {entry.size} bytes of {name}")
    file.seek(entry.offset)
    return b"".join(_exactly(file, entry.size))


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadArchive(f"cannot be read: {what} is no JSON") from None


def _one_image(index: Any) -> tuple[str, list[str]]:
    """The names of its configuration and its layers."""
    if not isinstance(index, list) or len(index) != 1:
        raise BadArchive("must be one image: docker save of one")
    image = index[0]
    config, layers = (image.get("Config"), image.get("Layers")) if isinstance(image, dict) else (None, None)
    if not isinstance(config, str) or not isinstance(layers, list) or not all(isinstance(one, str) for one in layers):
        raise BadArchive(f"cannot be read: its {_INDEX} is not as docker save writes it")
    if len(layers) > MOST_LAYERS:
        raise TooLarge(f"has more than {MOST_LAYERS} layers")
    return str(PurePosixPath(config)), [str(PurePosixPath(one)) for one in layers]


def _diff_ids(config: Any) -> list[str]:
    if not isinstance(config, dict) or config.get("os") != "linux":
        raise BadArchive("is not made for Linux")  # for others Docker has no loader, and some releases panic
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    # An image without layers has null, or no such key.
    diff_ids = [] if diff_ids is None else diff_ids
    if not isinstance(diff_ids, list) or not all(isinstance(one, str) and _DIFF_ID.fullmatch(one) for one in diff_ids):
        raise BadArchive("cannot be read: its configuration names no layers")
    return diff_ids


def _unpacked(magic: bytes, stored: Iterator[bytes]) -> Iterator[bytes] | None:
    if magic.startswith(b"\x1f\x8b"):
        return _gunzipped(stored)
    if magic == zstandard.FRAME_HEADER:
        return unzstd(stored)
    return None


def _gunzipped(stored: Iterator[bytes]) -> Iterator[bytes]:
    opened = zlib.decompressobj(31)
    try:
        for chunk in stored:
            rest = chunk
            while rest and not opened.eof:
                yield opened.decompress(rest, CHUNK_BYTES)
                rest = opened.unconsumed_tail
        while not opened.eof and (more := opened.decompress(opened.unconsumed_tail, CHUNK_BYTES)):
            yield more
    except zlib.error:
        raise BadArchive("has a broken layer") from None
    if not opened.eof or opened.unused_data:
        raise BadArchive("has a broken layer")


def unzstd(stored: Iterator[bytes]) -> Iterator[bytes]:
    """In pieces, whatever they unpack to, and in memory that a frame's header cannot ask for more of."""
    source = _Source(stored)
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
            cast("IO[bytes]", source), read_across_frames=True
        ) as reader:
            while chunk := reader.read(CHUNK_BYTES):
                yield chunk
    except zstandard.ZstdError:
        raise BadArchive("is not compressed with zstd, or broken") from None


class _Source(io.RawIOBase):
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        taken, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return taken


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise BadArchive("is cut off")
        size -= len(chunk)
        yield chunk


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
