"""Keeps a few processes running: starts them in order, again when they die, ends them in order and in time.

One thread, no event loop and few imports, since it is resident for as long as RGrid runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gateway import spawning
from gateway.spawning import Account, CannotStart, Identity

STEADY_S = 30.0
"""Who ran this long is started again at once when it dies; who did not waits, longer each time."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
USAGE = 2
"""The exit status of a process that does not understand its settings: another try cannot help."""
LOG_CAP_BYTES = 16 * 1024**2
LOG_CHECK_S = 10.0


class Stopped(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process to keep running. ``before_start`` clears what a crash of it leaves; it may raise
    ``CannotStart``."""

    name: str
    command: Callable[[], Sequence[str]]
    env: Callable[[], Mapping[str, str]]
    account: Account | None = None
    read_anywhere: bool = False
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    before_start: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _Run:
    """What is known about a part: running (``process``), waiting to start again (``due_s``), or ended for
    good."""

    part: Part
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    due_s: float | None = None
    deaths: int = 0
    exit_code: int | None = None
    log_read: int = 0
    identity: Identity | None = field(default=None)


class Supervisor:
    """Use as a context manager: whatever is still running at its end is killed.

    ``folder`` holds ``children.json``, by which a later start finds what this one left when it was killed;
    ``logs`` a file for each part. ``say`` gets one line for everything worth a look."""

    def __init__(self, folder: Path, logs: Path, say: Callable[[str], None], *, follow: bool = False) -> None:
        self._records = folder / "children.json"
        self._logs = logs
        self._say = say
        self._follow = follow
        self._runs: dict[str, _Run] = {}
        self._stop_requests: list[float] = []
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._logs_due_s = 0.0
        self._under_way = False

    def __enter__(self) -> Supervisor:
        # A signal interrupts the wait in `tend` through this pipe, whenever it comes.
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(asked, self._ask_to_stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*self._runs, patience_s=0)
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._waker)

    def _ask_to_stop(self, *_: object) -> None:
        # A terminal and a parent may both pass on the same Ctrl-C: those count as one.
        if not self._stop_requests or time.monotonic() - self._stop_requests[-1] > 0.5:
            self._stop_requests.append(time.monotonic())

    @property
    def crashed_before(self) -> bool:
        """Whether the last start in this folder was not ended in order."""
        return self._records.exists()

    def end_strays(self) -> None:
        """End what an earlier supervisor started and could not end, because it was killed."""
        try:
            recorded = json.loads(self._records.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return
        strays = [(Identity(**entry["identity"]), signal.Signals(entry["stop_signal"])) for entry in recorded]
        for wanted in {stop_signal for _, stop_signal in strays}:
            spawning.end([identity for identity, asked in strays if asked is wanted], wanted, patience_s=5)

    def start(self, part: Part) -> None:
        """Start a part and from now on keep it running; raises ``CannotStart``."""
        self._runs[part.name] = run = _Run(part)
        self._spawn(run)

    def _spawn(self, run: _Run) -> None:
        part = run.part
        part.before_start()
        log = os.open(self.log_of(part.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            run.log_read = os.fstat(log).st_size
            run.process = spawning.spawn(
                part.command(), env=part.env(), output=log, account=part.account,
                read_anywhere=part.read_anywhere, death_signal=part.death_signal,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotStart(f"cannot start {part.name}: {error}") from error
        finally:
            os.close(log)
        run.started_s, run.due_s = time.monotonic(), None
        run.identity = spawning.identify(run.process.pid)
        self._record()

    def log_of(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _record(self) -> None:
        entries = [
            {"name": run.part.name, "identity": asdict(run.identity), "stop_signal": run.part.stop_signal}
            for run in self._runs.values()
            if run.process is not None and run.identity is not None
        ]
        fresh = self._records.with_suffix(".new")
        fresh.write_text(json.dumps(entries))
        fresh.replace(self._records)

    def wait_for(self, ready: Callable[[], bool], name: str, *, within_s: float) -> None:
        """Wait until the part ``name`` is ready; raises ``Stopped``, or ``CannotStart`` with its last
        words."""
        deadline = time.monotonic() + within_s
        while not ready():
            for part, run in self._runs.items():
                if run.deaths > 2 or run.exit_code == USAGE:
                    last, log = self.last_line(part), self.log_of(part)
                    raise CannotStart(f"{part} does not start: {last} (more in {log})")
            if time.monotonic() > deadline:
                raise CannotStart(f"{name} is not ready after {within_s:.0f} s, see {self.log_of(name)}")
            self.tend(0.05)

    def last_line(self, name: str) -> str:
        with self.log_of(name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"

    def run(self) -> None:
        """Tend for ever; raises ``Stopped``."""
        self._under_way = True
        while True:
            dues = [run.due_s for run in self._runs.values() if run.due_s is not None]
            pause_s = min([LOG_CHECK_S, *(due - time.monotonic() for due in dues)])
            self.tend(min(max(pause_s, 0.0), 0.2 if self._follow else LOG_CHECK_S))

    def tend(self, timeout_s: float) -> None:
        """Wait for something to happen, at most ``timeout_s``, and see to it; raises ``Stopped``."""
        if not self._stop_requests:
            self._wait(timeout_s)
        if self._stop_requests:
            raise Stopped
        self._reap(restart=True)
        for run in self._runs.values():
            if run.due_s is not None and time.monotonic() >= run.due_s:
                self._start_again(run)
        if self._follow:
            self._show_logs()
        if time.monotonic() >= self._logs_due_s:
            self._logs_due_s = time.monotonic() + LOG_CHECK_S
            self._cap_logs()

    def _wait(self, timeout_s: float) -> None:
        """Until a signal comes, of a child that ended or for this process."""
        if select.select([self._wake], [], [], max(timeout_s, 0.0))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 512)

    def _reap(self, *, restart: bool) -> None:
        """Take note of every child that ended; also of orphans, which become ours when this is a container's
        pid 1."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            run = next(
                (run for run in self._runs.values() if run.process and run.process.pid == ended.si_pid), None
            )
            if run is not None:
                # While it is a zombie its pid is its own: what is left of its session dies with it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            if run is not None and run.process is not None:
                run.process.returncode = os.waitstatus_to_exitcode(status)
                run.process = run.identity = None
                run.exit_code = os.waitstatus_to_exitcode(status)
                if restart:
                    self._died(run, run.exit_code)

    def _died(self, run: _Run, exit_code: int) -> None:
        now = time.monotonic()
        run.deaths = 1 if now - run.started_s >= STEADY_S else run.deaths + 1
        pause_s = 0.0 if run.deaths == 1 else min(FIRST_PAUSE_S * 2 ** (run.deaths - 2), LONGEST_PAUSE_S)
        run.due_s = now + pause_s
        if not self._under_way:  # `wait_for` tells
            run.due_s = None if exit_code == USAGE else run.due_s
            return
        how = f"signal {-exit_code}" if exit_code < 0 else f"status {exit_code}"
        when = "at once" if pause_s == 0 else f"in {pause_s:g} s"
        self._say(
            f"{run.part.name} ended with {how}, starting it again {when}: {self.last_line(run.part.name)}"
        )

    def _start_again(self, run: _Run) -> None:
        try:
            self._spawn(run)
        except CannotStart as error:
            run.due_s = time.monotonic() + LONGEST_PAUSE_S
            self._say(f"{error}; trying again in {LONGEST_PAUSE_S:g} s")

    def stop(self, *names: str, patience_s: float) -> bool:
        """End parts together and for good, killing what is left after ``patience_s``, or at once when a
        second signal asks to hurry. True if all of them ended by themselves."""
        runs = [self._runs[name] for name in names if name in self._runs]
        for run in runs:
            run.due_s = None
            if run.process is not None:
                os.kill(run.process.pid, run.part.stop_signal)
        deadline = time.monotonic() + patience_s
        while (left := self._alive(runs)) and time.monotonic() < deadline and len(self._stop_requests) < 2:
            self._wait(min(0.2, deadline - time.monotonic()))
        for run in left:
            if run.process is not None:
                os.killpg(run.process.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        while self._alive(left) and time.monotonic() < killed_s + 2:
            self._wait(0.05)
        for run in runs:
            self._runs.pop(run.part.name, None)
        if self._follow:
            self._show_logs()
        return not left

    def _alive(self, runs: list[_Run]) -> list[_Run]:
        self._reap(restart=False)
        return [run for run in runs if run.process is not None]

    def forget(self) -> None:
        """Everything was ended in order: nothing is left for a later start to look for."""
        self._records.unlink(missing_ok=True)

    def _show_logs(self) -> None:
        for run in self._runs.values():
            if not self.log_of(run.part.name).exists():
                continue
            with self.log_of(run.part.name).open("rb") as log:
                log.seek(run.log_read)
                text, newline, _ = log.read(LOG_CAP_BYTES).rpartition(b"\n")
            run.log_read += len(text) + len(newline)
            for line in text.decode(errors="replace").splitlines():
                self._say(f"{run.part.name:<10} | {line}")

    def _cap_logs(self) -> None:
        """Keep a file and one older one of each log. Its writer appends, so it goes on at the start of the
        emptied file."""
        for run in self._runs.values():
            log = self.log_of(run.part.name)
            if log.exists() and log.stat().st_size > LOG_CAP_BYTES:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)
                run.log_read = 0
