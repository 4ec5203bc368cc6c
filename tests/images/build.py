"""Images for tests, built from scratch around static binaries, without a registry. Each is built once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
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


PYTHON = "rgrid-test-python:1"
"""Stands in for python:3.12-slim of the templates' Dockerfiles."""
_NOT_NEEDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo",
     "pydoc_data", "__pycache__"}
)  # fmt: skip
_MODULES = frozenset(
    {"_bz2", "_ctypes", "_hashlib", "_lzma", "_sqlite3", "_ssl", "_uuid", "zlib", "pyexpat", "unicodedata"}
)
"""Extension modules that need more than the C library, of those that are wanted; all others must not."""


@cache
def python() -> str:
    """The id of an image with this machine's own CPython and its standard library, and no shell; tagged ``PYTHON``."""
    binary = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    home = f"rootfs/usr/local/lib/{library.name}"
    files: dict[str, Path | bytes | Link] = {"rootfs/usr/local/bin/python3": binary}
    needed = _libraries(binary)
    for path in library.rglob("*"):
        parts = path.relative_to(library).parts
        if _NOT_NEEDED & set(parts) or parts[0].startswith("config-") or not path.is_file():
            continue
        if path.suffix == ".so":
            libraries = _libraries(path)
            if path.name.partition(".")[0] not in _MODULES and not libraries.keys() <= needed.keys() | {"libm.so.6"}:
                continue
            needed |= libraries
        files[f"{home}/{'/'.join(parts)}"] = path
    for name, path in needed.items():
        files[f"rootfs{path}" if name.startswith("ld-") else f"rootfs/usr/local/lib/{name}"] = path
    dockerfile = (
        "FROM scratch\nCOPY rootfs/ /\n"
        "ENV PATH=/usr/local/bin PYTHONHOME=/usr/local LD_LIBRARY_PATH=/usr/local/lib PYTHONDONTWRITEBYTECODE=1\n"
    )
    return build_image(files | {"Dockerfile": dockerfile.encode()}, PYTHON)


def _libraries(binary: Path) -> dict[str, Path]:
    """What the loader needs for it: name → file."""
    listed = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True).stdout
    found: dict[str, Path] = {}
    for line in listed.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow and rest.startswith("/"):
            found[name] = Path(rest.split(" (")[0])
        elif name.startswith("/"):
            loader = name.split(" (")[0]
            found[Path(loader).name] = Path(loader)
    return found
