"""What an agent that was killed needs to go on with its jobs: one small JSON file for each lease.

Owns ``<node dir>/leases``. A file is written before the step that it speaks of and replaced atomically. There
is no fsync: after a crash of the machine the containers are gone too, and a file of another boot is only good
for handing the job back.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from nodes.protocol import AttemptReport, JobLease, Timeline

log = structlog.get_logger()

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Ended(BaseModel):
    """How a container's process ended. ``timed_out``: because its time was up."""

    model_config = ConfigDict(frozen=True)

    code: int
    oom_killed: bool
    timed_out: bool = False


class Record(BaseModel):
    """A lease and how far it has got. ``received_s`` is of the monotonic clock of ``boot_id``."""

    model_config = ConfigDict(frozen=True)

    lease: JobLease
    boot_id: str
    received_s: float
    timeline: Timeline = {}
    image_digest: str | None = None
    ended: Ended | None = None
    report: AttemptReport | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.lease.job_id, self.lease.attempt


class Records:
    """The folder of them, 0700, files 0600: a lease's token is in each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, record: Record) -> None:
        path = self._path(*record.key)
        fresh = path.with_suffix(".new")
        write_private(fresh, record.model_dump_json())
        fresh.replace(path)

    def forget(self, key: tuple[str, int]) -> None:
        self._path(*key).unlink(missing_ok=True)

    def load(self) -> list[Record]:
        """All of them; one that cannot be read is dropped, its job comes back when its lease runs out."""
        records = []
        for path in sorted(self._folder.iterdir()):
            try:
                if path.suffix == ".json":
                    records.append(Record.model_validate_json(path.read_bytes()))
                    continue
            except (OSError, ValidationError) as error:
                log.error("lease file unreadable, dropped", file=path.name, error=type(error).__name__)
            path.unlink(missing_ok=True)
        return records

    def _path(self, job_id: str, attempt: int) -> Path:
        if not usable_id(job_id):
            raise ValueError("a job id that is no file name")
        return self._folder / f"{job_id}.{attempt}.json"


def usable_id(job_id: str) -> bool:
    """Whether an id may stand in file names and URLs."""
    return _JOB_ID.fullmatch(job_id) is not None


def without_secrets(lease: JobLease) -> JobLease:
    """What of a lease is needed once its container has started: no params, environment, inputs or command. Of secrets
    the names, since what they hold is masked in the log."""
    image = lease.image.model_copy(update={"login": None, "archive": None})
    names = dict.fromkeys(lease.secrets, "")
    return lease.model_copy(
        update={"params": "{}", "env": {}, "secrets": names, "inputs": [], "command": None, "image": image}
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that only root can read, whatever stood there."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


@cache
def boot_id() -> str:
    """Changes with every start of the machine, as the monotonic clock does."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
