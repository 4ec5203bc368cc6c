"""Starting processes that cannot outlive this one, as another user when wanted, and ending those that a crash
left.

Linux only. A process is named by its pid and start time together, since pids are used again.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class CannotStart(Exception):
    """The message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    gid: int


def service_account(name: str = "rgrid") -> Account:
    """The system user that servers run as which refuse to be root; made on first use. Raises
    ``CannotStart``."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        if (useradd := shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")) is None:
            raise CannotStart(
                f"there is no user {name} and no useradd to make it with: make a system user {name}"
            ) from None
        command = [
            useradd,
            "--system",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            "/usr/sbin/nologin",
        ]
        command += ["--gid", name] if _has_group(name) else ["--user-group"]
        made = subprocess.run([*command, name], capture_output=True, text=True, check=False)
        # Status 9: another process made it in between.
        if made.returncode not in (0, 9):
            said = (made.stderr.strip().splitlines() or [f"status {made.returncode}"])[-1]
            raise CannotStart(f"cannot make the system user {name} ({said}): make it yourself") from None
        found = pwd.getpwnam(name)
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def reachable(account: Account, *paths: Path) -> bool:
    """Whether the user may enter or run every path; folders such as /root are closed to others."""
    return all(
        subprocess.run(
            ["test", "-x", str(path)],
            user=account.uid,
            group=account.gid,
            extra_groups=(),
            cwd="/",
            check=False,
        ).returncode
        == 0
        for path in paths
    )


def hand_over(folder: Path, account: Account) -> None:
    """Make the user the owner of a folder and of all that is in it."""
    for place, _, files in os.walk(folder):
        for path in (Path(place), *(Path(place) / name for name in files)):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    output: int,
    account: Account | None = None,
    read_anywhere: bool = False,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own; it gets ``death_signal`` when this process ends, however it
    ends.

    ``account`` is who it runs as; ``read_anywhere`` lets it pass folders that are closed to that user (it
    keeps the one capability CAP_DAC_READ_SEARCH), as when everything lies below /root. ``output`` takes
    stdout and stderr."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env=dict(env),
        start_new_session=True,
        umask=0o077,
        preexec_fn=_in_the_child(account, read_anywhere, death_signal),  # noqa: PLW1509  this process has one thread
    )


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    account: Account | None = None,
    read_anywhere: bool = False,
) -> tuple[int, list[str]]:
    """Run ``command`` to its end, as ``spawn`` would start it: its exit status and what it said, by line."""
    reading, writing = os.pipe()
    try:
        process = spawn(command, env=env, output=writing, account=account, read_anywhere=read_anywhere)
    except (OSError, subprocess.SubprocessError) as error:
        os.close(reading)
        raise CannotStart(f"cannot start {command[0]}: {error}") from error
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as output:
        said = output.read().decode(errors="replace").strip()
    return process.wait(), said.splitlines()


def _in_the_child(
    account: Account | None, read_anywhere: bool, death_signal: signal.Signals
) -> Callable[[], None]:
    parent = os.getpid()

    def prepare() -> None:
        if account is not None:
            if read_anywhere:
                _prctl(PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
            if read_anywhere:
                _keep_only(CAP_DAC_READ_SEARCH)
        # Last, since a change of user clears it; and the parent may be gone by now.
        _prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _keep_only(capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable; then the same for capabilities from 32 on.
    data = (ctypes.c_uint32 * 6)(*[1 << capability] * 3, 0, 0, 0)
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, value: int, more: int = 0) -> None:
    arguments = [ctypes.c_ulong(number) for number in (value, more, 0, 0)]
    if _libc.prctl(ctypes.c_int(option), *arguments) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that may be gone. ``boot`` and ``started`` (clock ticks since boot) tell it from a later
    one."""

    pid: int
    started: int
    boot: str

    @property
    def alive(self) -> bool:
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """The process that has this pid now; None if there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The second field is the name, in brackets, and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Identity(pid, int(fields[19]), boot)


def end(strays: Iterable[Identity], stop_signal: signal.Signals, *, patience_s: float) -> None:
    """Signal processes that are not this one's children, and kill those still there after ``patience_s``."""
    left = [stray for stray in strays if stray.alive]
    for wanted in (stop_signal, signal.SIGKILL):
        for stray in left:
            _send(stray, wanted)
        deadline = time.monotonic() + (patience_s if wanted is stop_signal else 5)
        while (left := [stray for stray in left if stray.alive]) and time.monotonic() < deadline:
            time.sleep(0.02)


def _send(stray: Identity, wanted: signal.Signals) -> None:
    try:
        handle = os.pidfd_open(stray.pid)
    except ProcessLookupError:
        return
    try:
        if stray.alive:  # asked while the handle is held: the signal cannot reach a later process of this pid
            signal.pidfd_send_signal(handle, wanted)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def working_in(folder: Path) -> list[Identity]:
    """The processes whose working directory is ``folder``: how PostgreSQL's are told apart from others."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append(identify(int(entry.name)))
        except OSError:
            continue
    return [identity for identity in found if identity is not None]
