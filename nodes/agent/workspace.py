"""The files of one attempt: a small file system of its own, so that what a job writes has a limit.

``<work>/<job>.<attempt>/`` holds ``disk.img``, an ext4 file system of the job's ``disk`` bytes, and two mounts
of it. ``host`` is the agent's: nothing in it is executed, no link followed (SECURITY §1.5). ``job`` is what
the container gets its /in and /out from: the container inherits a mount's flags, and programs may be run and
links followed there. The agent never reads through ``job``.

``disk`` bounds inputs and /out together; its blocks are reserved when the attempt begins. The number of files
is bounded by the inodes.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from nodes.agent.endings import size
from nodes.agent.failures import AttemptFailed
from nodes.agent.mounts import Flag, bind, mount_image, reserve, unmount
from nodes.agent.state import usable_id
from nodes.agent.tasks import to_the_end
from nodes.protocol import ErrorCode

log = structlog.get_logger()

BYTES_PER_INODE = 16 * 1024
INODES_LEAST, INODES_MOST = 1024, 65_536
SMALLEST_DISK_BYTES = 2 * 1024 * 1024
MKFS_S = 60.0

_HOST_FLAGS = Flag.NOSUID | Flag.NODEV | Flag.NOEXEC | Flag.NOSYMFOLLOW | Flag.NOATIME
_JOB_FLAGS = Flag.NOSUID | Flag.NODEV | Flag.NOATIME
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workspace:
    """Made by ``create`` or ``reopen``; ``destroy`` it. ``in_fd`` and ``out_fd`` are directories of the host's
    mount, opened before the job can touch anything."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` unless its file system is mounted at ``path``."""
        self._path = path
        if not (os.path.ismount(path / "host") and os.path.ismount(path / "job")):
            raise FileNotFoundError(errno.ENOENT, "the job's file system is not mounted", str(path))
        self.in_dir, self.out_dir = path / "job" / "in", path / "job" / "out"
        self.in_fd = os.open(path / "host" / "in", _DIRECTORY)
        try:
            self.out_fd = os.open(path / "host" / "out", _DIRECTORY)
        except OSError:
            os.close(self.in_fd)
            raise
        self._open = True

    @classmethod
    async def create(cls, work: Path, job_id: str, attempt: int, disk_bytes: int, user: int) -> Workspace:
        """/out belongs to ``user``. Raises ``AttemptFailed`` if this machine cannot give what is asked for."""
        path = _path(work, job_id, attempt)
        try:
            return await to_the_end(lambda: cls._create(path, disk_bytes, user), undo=lambda made: made._destroy())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG):
                message = f"the node has no {size(disk_bytes)} of disk left for the job"
            else:
                message = f"the node could not make the job's file system: {error.strerror or error}"
            raise AttemptFailed(ErrorCode.INTERNAL, message) from error

    @classmethod
    async def reopen(cls, work: Path, job_id: str, attempt: int) -> Workspace:
        """That of an attempt that an earlier agent began; raises ``OSError`` if it is gone."""
        path = _path(work, job_id, attempt)
        return await to_the_end(lambda: cls(path), undo=lambda made: made._close())

    async def destroy(self) -> None:
        """May be repeated. Raises ``OSError`` if something is left."""
        await to_the_end(self._destroy)

    def free_bytes(self) -> int:
        state = os.fstatvfs(self.in_fd)
        return state.f_bavail * state.f_frsize

    @classmethod
    def _create(cls, path: Path, disk_bytes: int, user: int) -> Workspace:
        _remove(path)
        try:
            for folder in (path, path / "host", path / "job"):
                folder.mkdir(mode=0o700)
            image = path / "disk.img"
            _make_file_system(image, max(disk_bytes, SMALLEST_DISK_BYTES))
            # Without the lazy zeroing: a fresh image is zero.
            mount_image(image, path / "host", _HOST_FLAGS, "noinit_itable")
            bind(path / "host", path / "job", _JOB_FLAGS)
            for name in ("in", "out"):
                (path / "host" / name).mkdir(mode=0o755)
            made = cls(path)
            for handle in (made.in_fd, made.out_fd):
                os.fchmod(handle, 0o755)  # whatever the umask is
            os.fchown(made.out_fd, user, user)
            return made
        except BaseException:
            _remove(path)
            raise

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.in_fd)
            os.close(self.out_fd)

    def _destroy(self) -> None:
        self._close()
        _remove(self._path)


def remove_leftovers(work: Path, keep: Iterable[tuple[str, int]]) -> int:
    """Remove every workspace but those of the attempts named; returns how many. For the start, when no
    attempt runs."""
    kept = {_path(work, job_id, attempt) for job_id, attempt in keep}
    removed = 0
    for path in sorted(work.iterdir()):
        if path not in kept:
            try:
                _remove(path)
                removed += 1
            except OSError as error:
                log.error("workspace not removed", folder=path.name, error=str(error))
    return removed


async def check_workspaces(work: Path) -> None:
    """Make and remove a small one; raises ``AttemptFailed`` if this machine cannot."""
    await (await Workspace.create(work, "check", 0, SMALLEST_DISK_BYTES, 65532)).destroy()


def mkfs() -> str | None:
    """The program that makes the file systems, wherever a login's PATH ends."""
    return shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")


def _path(work: Path, job_id: str, attempt: int) -> Path:
    if not usable_id(job_id):
        raise ValueError("a job id that is no file name")
    return work / f"{job_id}.{attempt}"


def _make_file_system(image: Path, size_bytes: int) -> None:
    handle = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        reserve(handle, size_bytes)
    finally:
        os.close(handle)
    inodes = min(max(size_bytes // BYTES_PER_INODE, INODES_LEAST), INODES_MOST)
    command = [
        mkfs() or "mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(inodes),
        "-O", "^has_journal,^resize_inode",  # nobody mounts it after a crash
        "-E", "nodiscard,lazy_itable_init=1",  # discarding would give the reserved blocks back
        str(image),
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, timeout=MKFS_S, stdin=subprocess.DEVNULL, check=False)
    if made.returncode != 0:
        words = made.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(errno.EIO, words[-1] if words else "mkfs.ext4 failed")


def _remove(path: Path) -> None:
    """Unmount, then remove the few names that belong there: nothing is walked that a job wrote."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for name in ("job", "host"):
        unmount(path / name)
    (path / "disk.img").unlink(missing_ok=True)
    for folder in (path / "job", path / "host", path):
        with suppress(FileNotFoundError):
            folder.rmdir()
