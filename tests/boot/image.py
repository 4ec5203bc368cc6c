"""The image of a machine: made once by ``rootfs.sh``, and again when that changes."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

RECIPE = Path(__file__).parent / "rootfs.sh"
TRIES = 3
"""A mirror may be out of reach for a moment, or change under the hands of whoever reads it."""


def machine_image() -> str:
    """The tag of an image whose /lib/systemd/systemd boots as a machine would."""
    tag = f"rgrid-test-machine:{hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12]}"
    if subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=False).returncode == 0:
        return tag
    said = ""
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="rgrid-rootfs-") as folder:
            root = Path(folder, "root")
            made = subprocess.run(["sh", str(RECIPE), str(root)], capture_output=True, text=True, check=False)
            if made.returncode == 0:
                _take_in(root, tag)
                return tag
            said = f"{made.stdout[-2000:]}\n{made.stderr[-2000:]}"
    raise AssertionError(f"no machine could be made: {said}")


def _take_in(root: Path, tag: str) -> None:
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run(["docker", "import", "-", tag], stdin=packed.stdout, check=True, capture_output=True)
    assert packed.returncode == 0
