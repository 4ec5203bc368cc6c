from __future__ import annotations

import pytest

from nodes.agent.endings import duration, error_of, size
from nodes.agent.state import Ended
from nodes.protocol import ErrorCode, Image, JobLease, Resources

LEASE = JobLease(
    job_id="job_1",
    token="0" * 32,
    attempt=1,
    slots=1,
    function=None,
    version=1,
    image=Image(reference="alpine"),
    resources=Resources(cpu=1, memory_bytes=512 * 2**20, disk_bytes=1),
    params="{}",
    timeout_s=600,
    grace_s=10,
    user=65532,
)


@pytest.mark.parametrize(
    ("ended", "code", "message"),
    [
        (Ended(code=1, oom_killed=False), ErrorCode.EXIT_NONZERO, "exit code 1"),
        (Ended(code=3, oom_killed=False), ErrorCode.EXIT_NONZERO, "exit code 3"),
        (
            Ended(code=126, oom_killed=False),
            ErrorCode.EXIT_NONZERO,
            "exit code 126 (the command cannot be executed)",
        ),
        (
            Ended(code=127, oom_killed=False),
            ErrorCode.EXIT_NONZERO,
            "exit code 127 (the command was not found)",
        ),
        (Ended(code=128, oom_killed=False), ErrorCode.EXIT_NONZERO, "exit code 128"),
        (Ended(code=137, oom_killed=False), ErrorCode.EXIT_NONZERO, "exit code 137 (SIGKILL)"),
        (Ended(code=139, oom_killed=False), ErrorCode.EXIT_NONZERO, "exit code 139 (SIGSEGV)"),
        (Ended(code=255, oom_killed=False), ErrorCode.EXIT_NONZERO, "exit code 255"),
        (
            Ended(code=137, oom_killed=True),
            ErrorCode.OOM_KILLED,
            "used more than its 512 MiB of memory (exit code 137 (SIGKILL))",
        ),
        (
            Ended(code=137, oom_killed=False, timed_out=True),
            ErrorCode.TIMEOUT,
            "ran longer than its timeout of 10m",
        ),
        (
            Ended(code=0, oom_killed=False, timed_out=True),
            ErrorCode.TIMEOUT,
            "ran longer than its timeout of 10m",
        ),
    ],
)
def test_an_end_is_told_in_the_users_words(ended: Ended, code: ErrorCode, message: str) -> None:
    error = error_of(ended, LEASE)
    assert error is not None
    assert (error.code, error.message) == (code, message)


def test_a_child_killed_for_memory_does_not_fail_a_process_that_ends_well() -> None:
    assert error_of(Ended(code=0, oom_killed=True), LEASE) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5s"),
        (1, "1s"),
        (90, "1m30s"),
        (600, "10m"),
        (5400, "1h30m"),
        (86400, "24h"),
        (90.5, "90.5s"),
        (0, "0s"),
    ],
)
def test_durations_read_as_they_are_written_in_manifests(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(100, "100 bytes"), (1024, "1 KiB"), (64 * 2**20, "64 MiB"), (1536 * 2**20, "1.5 GiB")],
)
def test_sizes_read_well(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text
