"""The supervisor over real processes that die, hang, and are left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from gateway import spawning
from gateway.supervisor import LOG_CAP_BYTES
from tests.gateway.supervised import PATIENCE_S

Found = TypeVar("Found")

READY = 'echo $$ > "$FOLDER/NAME.new"; mv "$FOLDER/NAME.new" "$FOLDER/NAME.pid"; touch "$FOLDER/NAME.ready"; '
SLEEP = "exec sleep 1000"
STUBBORN = "trap '' TERM; while :; do sleep 1; done"


def until(look: Callable[[], Found | None], within_s: float = 10) -> Found:
    """What ``look`` finds, as soon as it finds something."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


class Supervised:
    def __init__(self, folder: Path, parts: dict[str, str], death_signal: str) -> None:
        self.folder = folder
        scripts = [
            [name, script if script.endswith("exit") else READY.replace("NAME", name) + script, death_signal]
            for name, script in parts.items()
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.supervised", str(folder), json.dumps(scripts)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def new_pid(self, name: str, old: int) -> int:
        return until(lambda: self.pid(name) if self.pid(name) != old else None, 20)

    def stop(self) -> list[str]:
        self.process.send_signal(signal.SIGTERM)
        return self.rest()

    def rest(self) -> list[str]:
        return self.process.communicate(timeout=20)[0].splitlines()


def alive(pid: int) -> bool:
    return spawning.identify(pid) is not None


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(death_signal: str = "SIGKILL", **parts: str) -> Supervised:
        started.append(Supervised(tmp_path, parts, death_signal))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()
        for recorded in tmp_path.glob("*.pid"):
            identity = spawning.identify(int(recorded.read_text()))
            spawning.end([identity] if identity else [], signal.SIGKILL, patience_s=0)


def test_what_dies_is_started_again_at_once_and_then_after_a_pause(
    supervise: Callable[..., Supervised],
) -> None:
    run = supervise(sleeper=SLEEP)
    assert run.line() == "ready"
    first = run.pid("sleeper")
    os.kill(first, signal.SIGKILL)
    assert "signal 9, starting it again at once" in run.line()
    second = run.new_pid("sleeper", first)
    os.kill(second, signal.SIGKILL)
    assert "starting it again in 0.5 s" in run.line()
    third = run.new_pid("sleeper", second)
    os.kill(third, signal.SIGKILL)
    assert "starting it again in 1 s" in run.line()
    last = run.new_pid("sleeper", third)
    assert run.stop() == ["ended by themselves: sleeper"]
    assert not any(map(alive, (first, second, third, last)))


def test_what_ignores_a_stop_is_killed_with_its_children_when_its_time_is_up(
    supervise: Callable[..., Supervised],
) -> None:
    run = supervise(polite=SLEEP, stubborn=STUBBORN)
    assert run.line() == "ready"
    members = _session(run.pid("stubborn"))
    began = time.monotonic()
    assert run.stop() == ["ended by themselves: polite"]
    assert PATIENCE_S <= time.monotonic() - began < PATIENCE_S + 3
    assert not any(map(alive, members))


def test_a_second_signal_does_not_wait(supervise: Callable[..., Supervised]) -> None:
    parts = {f"stubborn{number}": STUBBORN for number in range(4)}
    run = supervise(**parts)
    assert run.line() == "ready"
    began = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    until(lambda: time.monotonic() - began > 0.6)  # two within half a second may be one Ctrl-C
    run.process.send_signal(signal.SIGINT)
    run.rest()
    assert time.monotonic() - began < 4 * PATIENCE_S
    assert not any(alive(run.pid(name)) for name in parts)


def test_the_children_of_a_killed_supervisor_die_with_it(supervise: Callable[..., Supervised]) -> None:
    run = supervise(sleeper=SLEEP, stubborn=STUBBORN)
    assert run.line() == "ready"
    pids = [run.pid("sleeper"), run.pid("stubborn")]
    run.process.kill()
    until(lambda: not any(map(alive, pids)))


def test_the_next_start_ends_what_outlived_a_killed_supervisor(supervise: Callable[..., Supervised]) -> None:
    run = supervise(death_signal="SIGCONT", stubborn=STUBBORN)
    assert run.line() == "ready"
    stray = run.pid("stubborn")
    run.process.kill()
    run.process.wait()
    assert alive(stray)
    again = supervise(other=SLEEP)
    assert again.line() == "ready"
    assert not alive(stray)


def test_a_later_process_with_a_recorded_pid_is_left_alone(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        identity = spawning.identify(bystander.pid)
        assert identity is not None
        recorded = {"pid": identity.pid, "started": identity.started - 1, "boot": identity.boot}
        entries = [{"name": "other", "identity": recorded, "stop_signal": signal.SIGTERM}]
        (tmp_path / "children.json").write_text(json.dumps(entries))
        assert supervise(sleeper=SLEEP).line() == "ready"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_part_that_keeps_dying_at_its_start_is_reported_with_its_last_words(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    lines = supervise(broken="echo some words; echo no such disk >&2; false || exit").rest()
    assert lines[0] == f"broken does not start: no such disk (more in {tmp_path}/logs/broken.log)"
    assert (tmp_path / "logs/broken.log").read_text().count("some words") == 3


def test_a_part_that_says_its_settings_are_wrong_is_not_started_again(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    lines = supervise(broken="echo RGRID_PORT is wrong; (exit 2) || exit").rest()
    assert lines[0].startswith("broken does not start: RGRID_PORT is wrong")
    assert (tmp_path / "logs/broken.log").read_text() == "RGRID_PORT is wrong\n"


def test_a_log_keeps_a_bounded_size_while_its_writer_goes_on(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    wait = 'while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done'
    run = supervise(noisy=f"head -c {LOG_CAP_BYTES + 1} /dev/zero; {wait}; echo after; {SLEEP}")
    assert run.line() == "ready"
    log = tmp_path / "logs/noisy.log"
    until(lambda: log.stat().st_size == 0 and log.with_suffix(".log.1").stat().st_size > LOG_CAP_BYTES, 20)
    (tmp_path / "go").touch()
    until(lambda: log.read_bytes() == b"after\n")


def _session(pid: int) -> list[int]:
    """The process and its children, as soon as it has one."""

    def children() -> list[int]:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    return [pid, *until(children)]
