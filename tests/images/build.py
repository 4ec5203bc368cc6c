"""Images for tests, built from scratch around static binaries, without a registry. Each is built once."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gateway.cli.images import Link, build_image


@cache
def busybox() -> str:
    """The id of an image with /bin/busybox and a link for each applet (sh, cat, sleep, dd, nc, …)."""
    return build_image(_busybox_files() | {"Dockerfile": b'FROM scratch\nCOPY rootfs/ /\nCMD ["/bin/sh"]\n'})


@cache
def ffmpeg() -> str:
    """The id of an image with /bin/ffmpeg, and busybox for what surrounds it."""
    return build_image(
        _busybox_files()
        | {"Dockerfile": b"FROM scratch\nCOPY rootfs/ /\n", "rootfs/bin/ffmpeg": ffmpeg_binary()}
    )


def image(dockerfile: str, **files: bytes) -> str:
    """The id of an image of one's own, for example with a USER, a VOLUME or a HEALTHCHECK, on top of busybox.

    ``dockerfile`` follows ``FROM scratch`` and the copying of busybox; ``files`` can be COPYed.
    """
    head = b"FROM scratch\nCOPY rootfs/ /\n"
    return build_image(_busybox_files() | files | {"Dockerfile": head + dockerfile.encode()})


def ffmpeg_binary() -> Path:
    """The static ffmpeg that the package imageio-ffmpeg carries."""
    spec = find_spec("imageio_ffmpeg")
    assert spec is not None and spec.origin is not None, "imageio-ffmpeg is not installed: make setup"
    return next((Path(spec.origin).parent / "binaries").glob("ffmpeg-linux*"))


def _busybox_files() -> dict[str, Path | bytes | Link]:
    found = shutil.which("busybox")
    if found is None:
        raise RuntimeError("busybox is missing: apt-get install busybox-static")
    binary = Path(found).resolve()
    applets = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout.split()
    files: dict[str, Path | bytes | Link] = {"rootfs/bin/busybox": binary}
    files.update({f"rootfs/bin/{name}": Link("busybox") for name in applets if name != "busybox"})
    return files
