"""What the kernel's log tells of containers that ran out of memory."""

from __future__ import annotations

import subprocess

import pytest

from nodes.agent.kernel_log import oom_killed
from tests.images.build import busybox

pytestmark = pytest.mark.docker


def test_a_container_that_was_killed_for_its_memory_is_named_in_it_and_another_is_not() -> None:
    def run(*command: str) -> str:
        started = subprocess.run(
            ["docker", "run", "--detach", "--memory", "16m", busybox(), *command],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        container = started.stdout.strip()
        subprocess.run(["docker", "wait", container], check=True, capture_output=True)
        subprocess.run(["docker", "rm", container], check=True, capture_output=True)
        return container

    assert oom_killed(run("tail", "/dev/zero"))
    assert not oom_killed(run("sh", "-c", "kill -9 $$"))
