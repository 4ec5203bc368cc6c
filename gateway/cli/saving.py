"""Images of this machine's Docker: built of a folder, and saved as a file that nodes load.

The ``docker`` command does the work: it knows the user's context, cache, .dockerignore and builder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.cli.failures import Failed
from nodes.agent.archives import BadArchive, read_archive

MOST_BYTES = 20 * 1024**3
"""Unpacked, as nodes take."""
LEVEL = 3
MEDIA_TYPE = "application/zstd"


@dataclass(frozen=True, slots=True)
class Saved:
    """``path`` holds the image ``id``; the same image is always the same bytes."""

    id: str
    path: Path
    size: int
    unpacked: int


def build(folder: Path, arguments: Sequence[str], into: Path, say: Callable[[str], None]) -> str:
    """Build the folder's Dockerfile, its output on stderr; the image's name for Docker. ``into``: a scratch folder."""
    if not (folder / "Dockerfile").is_file():
        raise Failed(f"{folder}: no Dockerfile here; --no-build deploys the image that the manifest names")
    named = into / "image-id"
    options = [option for argument in arguments for option in ("--build-arg", argument)]
    environment = dict(os.environ)
    if subprocess.run([_docker(), "buildx", "version"], capture_output=True, check=False).returncode != 0:
        environment["DOCKER_BUILDKIT"] = "0"  # the builder that the engine has itself
    else:
        options.append("--provenance=false")  # an image alone, without another one that tells of it
    say(f"building {folder}")
    command = [_docker(), "build", "--iidfile", str(named), *options, str(folder.resolve())]
    # Not on standard output, which is for our own results.
    if subprocess.run(command, env=environment, stdout=2, check=False).returncode != 0:
        raise Failed(f"{folder}: the image does not build")
    return named.read_text().strip()


def save(image: str, into: Path, say: Callable[[str], None]) -> Saved:
    """Save an image that Docker has; ``into``: a scratch folder with room for it."""
    import zstandard

    raw, packed = into / "raw.tar", into / "image.tar.zst"
    say(f"saving {image}")
    done = subprocess.run([_docker(), "save", "--output", str(raw), image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"the image {image} cannot be saved: {_last_line(done.stderr)}")
    try:
        found = read_archive(raw, into / "layers", MOST_BYTES)
    except BadArchive as error:
        raise Failed(f"the image {image} {error}") from None
    unpacked = 0
    with packed.open("wb") as file:
        compressor = zstandard.ZstdCompressor(level=LEVEL, threads=max(1, os.cpu_count() or 1)).compressobj()
        for chunk in found.chunks():
            unpacked += len(chunk)
            file.write(compressor.compress(chunk))
        file.write(compressor.flush())
    raw.unlink()
    return Saved(found.id, packed, packed.stat().st_size, unpacked)


def _docker() -> str:
    found = shutil.which("docker")
    if found is None:
        raise Failed("the docker command is missing: install it (on Debian or Ubuntu: sudo apt-get install docker.io)")
    return found


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["docker said nothing"])[-1]
