"""``rgrid run``: what it sends, prints, saves and ends with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nodes.protocol import JobLease
from tests.gateway.cli.conftest import Connected, Result
from tests.gateway.cli.worker import Worker


async def ran(call: Connected, worker: Worker, *arguments: object, exit_code: int = 0) -> tuple[Result, JobLease]:
    def work() -> JobLease:
        lease = worker.lease()
        worker.log(lease, "hello\n")
        if exit_code:
            worker.fail(lease)
        else:
            worker.succeed(lease)
        return lease

    done, lease = await asyncio.gather(call("run", *arguments), asyncio.to_thread(work))
    return done, lease


async def test_a_command_is_run_and_what_it_prints_is_printed(call: Connected, tmp_path: Path) -> None:
    (tmp_path / "a file.txt").write_bytes(b"content")
    with await call.worker() as worker:
        options: tuple[Any, ...] = ("-f", tmp_path / "a file.txt", "-e", "A={{ b }}", "--memory", "64Mi", "--timeout", "1m")
        done, lease = await ran(call, worker, "busybox:1", *options, "--", "echo", "{{ x }}", "-n", "--json")
        assert (done.status, done.out, done.err) == (0, "hello\n", "")
        assert lease.function is None and lease.image.reference == "busybox:1"
        assert lease.command == ["echo", "{{ x }}", "-n", "--json"]
        assert lease.env == {"A": "{{ b }}"}
        assert (lease.resources.memory_bytes, lease.timeout_s) == (64 * 1024**2, 60)
        assert [(one.path, one.size) for one in lease.inputs] == [("/in/a file.txt", 7)]
        done, lease = await ran(call, worker, "--json", "busybox:1")
        assert done.json["status"] == "succeeded" and done.err == "hello\n" and lease.command is None


async def test_a_failure_is_1_or_the_commands_own_status(call: Connected) -> None:
    with await call.worker() as worker:
        done, _ = await ran(call, worker, "busybox:1", exit_code=3)
        assert done.status == 1 and "exit_nonzero" in done.err
        done, _ = await ran(call, worker, "--exit-code", "busybox:1", exit_code=3)
        assert done.status == 3 and done.err.endswith(": exit status 3\n")


async def test_what_cannot_run_is_one_line(call: Connected, tmp_path: Path) -> None:
    assert "/job/image" in (await call("run", "A B")).refused()
    assert "/job/resources/memory" in (await call("run", "--memory", "lots", "busybox:1")).refused()
    job_id = (await call("run", "-d", "busybox:1", "--", "true")).out.strip()
    job = (await call("job", job_id, "--json")).json
    assert (job["status"], job["function"]) == ("queued", None)
    (tmp_path / "x").mkdir()
    for name in ("one", "x/one"):
        (tmp_path / name).touch()
    for arguments, said in (
        (("-e", "1A=b"), "does not read NAME=value"),
        (("-f", tmp_path / "none"), "No such file"),
        (("-f", tmp_path / "one", "-f", tmp_path / "x" / "one"), "two files would be /in/one"),
        (("-d", "-o", tmp_path), "not with -o"),
    ):
        assert said in (await call("run", *arguments, "busybox:1")).refused(2)
