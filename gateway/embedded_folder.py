"""The data directory of ``rgrid up``: what is where in it, its lock, and the keys made at the first start.

config.json   keys and the store's port, 0600: whoever reads it owns the instance
lock          held while `rgrid up` runs; gone after
run/          which processes run, and PostgreSQL's socket
logs/         one file for each process, and one older one
postgres/     the database    s3/  the objects    node/  the node's credential, leases and work
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gateway.embedded_postgres import LONGEST_SOCKET_FOLDER
from gateway.spawning import CannotStart

PASSABLE = 0o711
"""Others may pass through, PostgreSQL's user to its data, but not look around."""
FREE_BYTES = 1024**3
"""Less than this on the disk, and PostgreSQL's log alone may fill it."""


@dataclass(frozen=True, slots=True)
class Keys:
    secret_key: str
    s3_key_id: str
    s3_secret: str
    s3_port: int
    api_key: str


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "lock"
        self.config = path / "config.json"
        self.run = path / "run"
        self.logs = path / "logs"
        self.postgres = path / "postgres"
        self.s3 = path / "s3"
        self.node = path / "node"

    @property
    def socket_folder(self) -> Path:
        inside = self.run / "postgres"
        if len(os.fsencode(inside)) <= LONGEST_SOCKET_FOLDER:
            return inside
        return Path("/run") / f"rgrid-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]}"

    def holder(self) -> str | None:
        """Who runs on this folder now, as it wrote into the lock; None if nobody does."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), self.lock.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "another process"
        return None

    def url(self) -> str | None:
        """Where the instance that runs on this folder is reached; None if none does. Raises ``PermissionError``."""
        return (self.holder() or "").rpartition(" ")[2] or None

    def stored_keys(self) -> Keys | None:
        """None before the first start. Raises ``PermissionError``, and ``CannotStart`` if they are damaged."""
        try:
            return Keys(**json.loads(self.config.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CannotStart(f"{self.config} cannot be read ({error}): restore it from a backup") from None

    @contextmanager
    def claimed(self, who: str) -> Iterator[None]:
        """Make the folder where it is missing and hold its lock. Raises ``CannotStart``, and then leaves no
        trace."""
        made: list[Path] = []
        try:
            lock = self._take_lock(made)
        except BaseException:
            self._unmake(made)
            raise
        try:
            os.ftruncate(lock, 0)
            os.write(lock, who.encode())
            yield
        finally:
            # While it is held: whoever waits for this file would find it gone and make a new one.
            self.lock.unlink(missing_ok=True)
            os.close(lock)
            if not self.config.exists():
                self._unmake(made)

    def _take_lock(self, made: list[Path]) -> int:
        try:
            for missing in reversed([path for path in (self.path, *self.path.parents) if not path.exists()]):
                missing.mkdir()
                made.append(missing)
                missing.chmod(PASSABLE if missing == self.path else 0o755)  # whatever the umask is
            self._check_contents()
            if (free := shutil.disk_usage(self.path).free) < FREE_BYTES:
                raise CannotStart(
                    f"only {free // 1024**2} MiB are free on the disk of {self.path} and RGrid needs 1 GiB: "
                    "free some, or choose another place with --data-dir"
                )
            while True:
                lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    raise CannotStart(f"rgrid up already runs on {self.path}: {self.holder()}") from None
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), self.lock.stat()):
                        return lock
                os.close(lock)  # the file was removed by who held it before
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CannotStart(
                f"cannot write to {self.path} ({reason}): choose another place with --data-dir"
            ) from error

    def _check_contents(self) -> None:
        ours = {self.lock.name, self.run.name, self.logs.name, "lost+found"}
        if not self.config.exists() and any(path.name not in ours for path in self.path.iterdir()):
            raise CannotStart(f"{self.path} holds something else: choose an empty folder with --data-dir")

    def _unmake(self, made: list[Path]) -> None:
        if made:
            shutil.rmtree(made[0], ignore_errors=True)

    def keys(
        self, *, free_port: Callable[[], int], make_api_key: Callable[[], str], own_key: str | None = None
    ) -> Keys:
        """The stored keys, made at the first start. A user's own API key is kept with them: it stays the instance's
        when a later start is not given it again."""
        if (stored := self.stored_keys()) is not None:
            if own_key and own_key != stored.api_key:
                stored = replace(stored, api_key=own_key)
                self.keep(stored)
            return stored
        keys = Keys(
            secret_key=base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            s3_key_id=f"RGRID{secrets.token_hex(8).upper()}",
            s3_secret=secrets.token_hex(24),
            s3_port=free_port(),
            api_key=own_key or make_api_key(),
        )
        self.keep(keys)
        return keys

    def keep(self, keys: Keys) -> None:
        fresh = self.config.with_suffix(".new")
        with fresh.open("w") as opened:
            os.fchmod(opened.fileno(), 0o600)
            json.dump(asdict(keys), opened, indent=1)
            opened.flush()
            os.fsync(opened.fileno())
        fresh.replace(self.config)
