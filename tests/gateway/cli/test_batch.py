"""``rgrid batch`` and ``rgrid batches``, and calls for all jobs that filters fit."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.gateway.cli.conftest import Connected
from tests.gateway.cli.worker import Worker

LINES = b'{"who": "a"}\n\n{"who": "b"}\n{"who": "c"}\n'


def work(worker: Worker, failing: int = 0) -> None:
    for number in range(3):
        lease = worker.lease()
        if number < failing:
            worker.fail(lease)
        else:
            worker.succeed(lease)


async def test_a_batch_is_waited_for_and_its_end_is_the_exit_status(call: Connected, tmp_path: Path) -> None:
    await call.apply()
    (tmp_path / "params.ndjson").write_bytes(LINES)
    with await call.worker(slots=1) as worker:
        done, _ = await asyncio.gather(
            call("batch", "greet", tmp_path / "params.ndjson"), asyncio.to_thread(work, worker)
        )
        assert done.status == 0
        batch_id = done.out.split()[0]
        assert done.out == f"{batch_id}  3 jobs: 3 succeeded\n"
        failed, _ = await asyncio.gather(
            call("batch", "greet", "-", "--json", stdin=LINES), asyncio.to_thread(work, worker, 1)
        )
    assert failed.status == 1 and failed.json["counts"]["failed"] == 1
    assert "1 of 3 jobs did not succeed: 'rgrid jobs --batch bat_" in failed.err
    assert (await call("batches", "get", batch_id)).out == done.out
    assert [one["id"] for one in (await call("batches", "--json")).json["data"]][-1] == batch_id
    assert len((await call("jobs", "--batch", batch_id, "--json")).json["data"]) == 3


async def test_a_fault_in_a_batch_names_file_and_line(call: Connected, tmp_path: Path) -> None:
    await call.apply()
    file = tmp_path / "params.ndjson"
    file.write_bytes(LINES + b'{"who": 3}\n')
    line = (await call("batch", "greet", file)).refused()
    assert line.startswith(f"{file}:5: params_invalid: /who: ") and line.endswith("(no job was made)")
    file.write_bytes(b'{"who": "a"}\n{\n')
    assert "line 2" in (await call("batch", "greet", file)).refused()
    file.write_bytes(b'[{"who": 3}]')
    assert "/0/who" in (await call("batch", "greet", file)).refused()
    file.write_bytes(b"\n")
    assert "it is empty" in (await call("batch", "greet", file)).refused()
    assert "No such file" in (await call("batch", "greet", tmp_path / "none")).refused()
    assert (await call("jobs", "--json")).json["data"] == []


async def test_a_batch_is_started_and_cancelled(call: Connected) -> None:
    await call.apply()
    batch_id = (await call("batch", "greet", "-", "--detach", stdin=LINES)).out.strip()
    assert (await call("batches", "cancel", batch_id)).out.endswith("  3 jobs: 3 cancelled\n")


async def test_all_jobs_that_filters_fit_are_cancelled_and_run_again(call: Connected) -> None:
    await call.apply()
    await call("batch", "greet", "-", "--detach", stdin=LINES)
    other = (await call("invoke", "greet")).out.strip()
    planned = await call("cancel", "--function", "greet", "--dry-run")
    assert planned.out == "4 jobs would be cancelled\n"
    assert "it would cancel 4 jobs: --yes does it" in (await call("cancel", "--function", "greet")).refused()
    assert (await call("cancel", other)).out == f"{other}  cancelled\n"
    assert (await call("cancel", "--function", "greet", "--yes")).out == "3 jobs cancelled\n"
    asked = ("retry", "--function", "greet", "--status", "cancelled", "-p", "who=again")
    assert (await call(*asked, "--dry-run", "--json")).json["matched"] == 4
    assert (await call(*asked, "--yes")).out == "4 jobs retried\n"
    assert (await call(*asked, "--yes")).out.startswith("0 jobs retried")
    queued = (await call("jobs", "--status", "queued", "--json")).json["data"]
    assert [job["params"] for job in queued] == [{"who": "again"}] * 4


async def test_a_job_is_run_again_with_other_params_and_version(call: Connected) -> None:
    await call.apply()
    job_id = (await call("invoke", "greet", "-p", "who=you")).out.strip()
    await call.apply(command="other")
    await call("cancel", job_id)
    again = (await call("retry", job_id, "-p", "who=me", "--version", "current", "--json")).json["data"][0]
    assert (again["params"], again["version"], again["retried_from"]) == ({"who": "me"}, 2, job_id)
    same = (await call("retry", job_id, "--json")).json["data"][0]
    assert (same["params"], same["version"]) == ({"who": "you"}, 1)
