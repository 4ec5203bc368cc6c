"""``rgrid up`` as a user runs it: real processes, a real node, signals and kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pytest

from tests.images.build import busybox
from tests.postgres import free_port

pytestmark = pytest.mark.docker

Found = TypeVar("Found")
MARK = "RGRID_TEST_MARK"
KEY = "bootstrap-key-of-test-up"
FUNCTION = """
apiVersion: rgrid/v1
kind: Function
metadata: {name: sleeper}
spec:
  params: {type: object, properties: {seconds: {type: integer, default: 0}}}
  job:
    image: IMAGE
    command: [/bin/sh, -c, 'echo awake; exec sleep "$0"', "{{ params.seconds }}"]
    resources: {cpu: 500m, memory: 64Mi, disk: 16Mi}
    timeout: 5m
"""


def until(look: Callable[[], Found | None], within_s: float = 30) -> Found:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


class Up:
    """One data directory, and the ``rgrid up`` on it."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.port = free_port()
        self.mark = uuid4().hex
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RGRID_")}
        self.env |= {MARK: self.mark, "RGRID_BOOTSTRAP_KEY": KEY, "XDG_CONFIG_HOME": str(folder)}
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )
        self.process: subprocess.Popen[str] | None = None

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-c", "from gateway.cli.main import main; main()", *map(str, arguments)]

    def start(self) -> str:
        """Start it, and what it printed by the time it was ready."""
        command = self.command("up", "--data-dir", self.data_dir, "--port", self.port, "--slots", 2)
        with (self.data_dir.parent / "stderr").open("a") as stderr:
            self.process = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if line.startswith("Ctrl-C stops it"):
                return printed
        raise AssertionError((self.data_dir.parent / "stderr").read_text())

    def rgrid(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        url = {"RGRID_URL": str(self.api.base_url), "RGRID_API_KEY": KEY}
        return subprocess.run(
            self.command(*arguments), env=self.env | url | env, capture_output=True, text=True, timeout=60, check=False
        )

    def end(self, how: signal.Signals) -> float:
        """How many seconds it took to end."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.communicate(timeout=20)
        return time.monotonic() - began

    def child(self, name: str) -> int | None:
        recorded = json.loads((self.data_dir / "run/children.json").read_text())
        return next((entry["identity"]["pid"] for entry in recorded if entry["name"] == name), None)

    def processes(self) -> list[str]:
        """Command lines of what carries the mark."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def mounts(self) -> list[str]:
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.data_dir) in line]

    def invoke(self, seconds: int) -> str:
        """The id of a new job, once it runs."""
        answer = self.api.post("/v1/functions/sleeper/invoke", json={"seconds": seconds})
        job_id = str(answer.raise_for_status().json()["id"])
        until(lambda: self.job(job_id)["status"] == "running" and containers_of(job_id))
        return job_id

    def job(self, job_id: str, wait: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/v1/jobs/{job_id}", params={"wait": wait}).raise_for_status().json()
        return found


def containers_of(job_id: str) -> list[str]:
    """Running or not, by id."""
    command = ["docker", "ps", "--all", "--quiet", "--no-trunc"]
    ids = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if not ids:
        return []
    said = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=False).stdout
    return [one["Id"] for one in json.loads(said or "[]") if job_id in json.dumps(one["Config"]["Labels"])]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    up.printed = up.start()  # type: ignore[attr-defined]
    up.api.put(
        "/v1/functions/sleeper", content=FUNCTION.replace("IMAGE", busybox()),
        headers={"Content-Type": "application/yaml"},
    ).raise_for_status()  # fmt: skip
    yield up
    if up.process is not None and up.process.poll() is None:
        up.end(signal.SIGTERM)
    up.api.close()


def test_it_is_ready_when_it_says_so_and_the_request_that_it_prints_works(up: Up) -> None:
    assert up.api.get("/readyz").status_code == 200
    printed = up.printed  # type: ignore[attr-defined]
    script = "\n".join(re.findall(r"^  ((?:export|curl) .*)$", printed, re.MULTILINE))
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    (node,) = json.loads(done.stdout)["data"]
    assert (node["name"], node["state"], node["slots"]) == ("local", "ready", 2)


def test_doctor_finds_nothing_wrong_with_it(up: Up) -> None:
    done = up.rgrid("doctor", "--data-dir", up.data_dir, "--json", RGRID_URL="", RGRID_API_KEY="")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True), found
    states = {one["part"]: one["state"] for one in found["checks"]}
    for part in ("docker", "loop mounts", "rgrid up", "postgresql", "migrations", "s3", "gateway", "key", "nodes"):
        assert states[part] == "ok", found


def test_a_job_runs_and_its_outcome_is_the_exit_status(up: Up) -> None:
    done = up.rgrid("invoke", "sleeper", "--wait", "--json", "--follow")
    job = json.loads(done.stdout)
    assert (done.returncode, job["status"]) == (0, "succeeded"), (job, done.stderr)
    assert "awake" in done.stderr
    assert up.rgrid("logs", job["id"]).stdout == "awake\n"


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--data-dir", "DATA", "--port", "FREE"], {}, r"already runs on .* \(pid \d+, http://127.0.0.1:\d+\)"),
        (["--data-dir", "OTHER", "--port", "TAKEN"], {}, r"port \d+ of 127.0.0.1 is taken by another program"),
        (["--data-dir", "OTHER", "--port", "FREE", "--host", "203.0.113.1"], {}, "is not an address of this machine"),
        (["--data-dir", "/etc", "--port", "FREE"], {}, "/etc holds something else: choose an empty folder"),
        (["--data-dir", "OTHER", "--port", "FREE"], {"DOCKER_HOST": "unix:///nonexistent"}, "Docker does not answer"),
    ],
)
def test_a_start_that_cannot_work_says_why_in_one_line(
    up: Up, tmp_path: Path, arguments: list[str], env: dict[str, str], said: str
) -> None:
    places = {"DATA": up.data_dir, "OTHER": tmp_path / "other", "TAKEN": up.port, "FREE": free_port()}
    done = up.rgrid("up", *[places.get(argument, argument) for argument in arguments], **env)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and done.stdout == ""
    assert line.startswith("rgrid up: ") and re.search(said, line), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "other").exists()


def test_it_outlives_crashes_and_leaves_nothing_when_it_ends(up: Up) -> None:
    # A part that dies is started again.
    gateway = up.child("gateway")
    assert gateway is not None
    os.kill(gateway, signal.SIGKILL)
    until(lambda: up.child("gateway") not in (None, gateway))
    until(lambda: up.rgrid("doctor", "--data-dir", up.data_dir, "--json").returncode == 0)

    # Killed itself, nothing of it stays but the container; the next start goes on with that, and with the state.
    running = up.invoke(seconds=12)
    up.end(signal.SIGKILL)
    until(lambda: up.processes() == [])
    assert containers_of(running) != []
    printed = up.start()
    assert "$RGRID_URL/v1/functions/sleeper/invoke" in printed
    job = up.job(running, wait=30)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)

    # Ended in order, while a job runs: within 10 s there is nothing left, and the job comes back.
    interrupted = up.invoke(seconds=5)
    assert up.mounts() != []
    assert up.end(signal.SIGTERM) < 10
    assert up.processes() == []
    assert containers_of(interrupted) == []
    assert up.mounts() == []
    assert sorted(entry.name for entry in up.data_dir.iterdir()) == ["config.json", "logs", "node", "postgres", "s3"]
    up.start()
    assert up.job(interrupted, wait=60)["status"] == "succeeded"

    # Nor does a node that hangs keep anything.
    abandoned = up.invoke(seconds=60)
    node = up.child("node")
    assert node is not None
    os.kill(node, signal.SIGSTOP)
    assert up.end(signal.SIGINT) < 10
    assert (up.processes(), containers_of(abandoned), up.mounts()) == ([], [], [])
