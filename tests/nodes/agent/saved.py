"""Archives of images as ``docker save`` writes them, and as somebody with bad intentions would."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Entry = tuple[tarfile.TarInfo, bytes]


def tar(entries: Iterable[Entry]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def file(name: str, content: bytes = b"") -> Entry:
    return tarfile.TarInfo(name), content


def special(name: str, kind: bytes, link: str = "") -> Entry:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry, b""


def hexed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Saved:
    """An image of given layers (each the bytes of a tar); change what it is made of before ``archive``."""

    def __init__(self, *layers: bytes, packed: Callable[[bytes], bytes] = bytes) -> None:
        self.config: dict[str, Any] = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hexed(layer)}" for layer in layers]},
        }
        self.layers = {f"{hexed(layer)}.tar": packed(layer) for layer in layers}
        self.names = [f"{hexed(layer)}.tar" for layer in layers]
        self.tags: list[str] | None = None
        self.extra: list[Entry] = []
        self.images = 1

    @property
    def config_bytes(self) -> bytes:
        return json.dumps(self.config).encode()

    @property
    def id(self) -> str:
        return f"sha256:{hexed(self.config_bytes)}"

    def archive(self) -> bytes:
        name = f"{self.id.removeprefix('sha256:')}.json"
        index = [{"Config": name, "RepoTags": self.tags, "Layers": self.names}] * self.images
        entries = [file(name, self.config_bytes), file("manifest.json", json.dumps(index).encode())]
        return tar([*entries, *(file(layer, content) for layer, content in self.layers.items()), *self.extra])

    def write(self, folder: Path) -> Path:
        path = folder / "image.tar"
        path.write_bytes(self.archive())
        return path


def layer(**files: bytes) -> bytes:
    return tar(file(name, content) for name, content in files.items())
