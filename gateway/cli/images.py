"""Building images from a handful of files by the engine's classic builder: no registry, no BuildKit."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import docker

CONTENT_LABEL = "rgrid.content"


class BuildFailed(Exception):
    """The Dockerfile does not build; the message is the builder's own last line."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in a build context."""

    target: str


Context = Mapping[str, "Path | bytes | Link"]


def build_image(context: Context, tag: str | None = None) -> str:
    """Build ``context`` (each name with its file, bytes or link) and return the image's id.

    It holds a ``Dockerfile``. The same content is built once: its hash is a label of the image. Owners,
    modes and times of the files are not part of the content: every file is root's and executable.
    """
    content = _content_hash(context)
    client = docker.from_env(timeout=300)
    try:
        found = client.api.images(filters={"label": f"{CONTENT_LABEL}={content}"})
        image_id = str(found[0]["Id"]) if found else _build(client, context, content)
        if tag is not None:
            client.api.tag(image_id, tag)
        return image_id
    finally:
        client.close()


def _build(client: Any, context: Context, content: str) -> str:
    with TemporaryFile() as packed:
        _pack(context, packed)
        packed.seek(0)
        answers = client.api.build(
            fileobj=packed,
            custom_context=True,
            rm=True,
            forcerm=True,
            labels={CONTENT_LABEL: content},
            decode=True,
        )
        image_id = None
        for answer in answers:
            if "error" in answer:
                raise BuildFailed(str(answer["error"]).strip())
            image_id = answer.get("aux", {}).get("ID", image_id)
    if image_id is None:
        raise BuildFailed("the builder named no image")
    return str(image_id)


def _pack(context: Context, into: IO[bytes]) -> None:
    with tarfile.open(fileobj=into, mode="w") as archive:
        for name, content in sorted(context.items()):
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(content, Link):
                entry.type = tarfile.SYMTYPE
                entry.linkname = content.target
                archive.addfile(entry)
            elif isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                with content.open("rb") as opened:
                    entry.size = content.stat().st_size
                    archive.addfile(entry, opened)


def _content_hash(context: Context) -> str:
    whole = hashlib.sha256()
    for name, content in sorted(context.items()):
        if isinstance(content, Link):
            kind, digest = "link", hashlib.sha256(content.target.encode()).hexdigest()
        elif isinstance(content, bytes):
            kind, digest = "file", hashlib.sha256(content).hexdigest()
        else:
            with content.open("rb") as opened:
                kind, digest = "file", hashlib.file_digest(opened, "sha256").hexdigest()
        whole.update(f"{kind} {digest} {name}\n".encode())
    return whole.hexdigest()
