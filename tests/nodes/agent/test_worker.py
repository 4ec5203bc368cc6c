"""A node's life with jobs: real containers, file systems and HTTP; only the gateway is a small one."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, Response

from nodes.agent import worker as worker_module
from nodes.agent.gateway_client import CredentialRevoked
from nodes.protocol import ErrorCode, Input, Output, Resources
from tests.images.build import busybox
from tests.nodes.agent.gateway import Job, TestGateway
from tests.nodes.agent.node import container_of, node, open_descriptors
from tests.nodes.agent.waiting import until
from tests.receivers import raw_server, says

pytestmark = pytest.mark.docker

MIB = 2**20
FOREVER = "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done"
STUBBORN = "trap '' TERM; echo begun; while :; do sleep 0.1; done"


@pytest.fixture(autouse=True)
def leases_for_a_busy_machine(gateway: TestGateway) -> None:
    gateway.lease_s = 15.0


def shell(gateway: TestGateway, script: str, **fields: object) -> Job:
    return gateway.add(busybox(), "/bin/sh", "-c", script, **fields)  # type: ignore[arg-type]


async def ended(job: Job, status: str = "succeeded", within_s: float = 20) -> None:
    await until(lambda: job.report is not None, within_s)
    assert job.report is not None
    assert job.report.status == status, job.report.error


async def running(*jobs: Job) -> None:
    await until(lambda: all(b"begun" in job.log for job in jobs))


async def test_a_job_runs_from_input_to_output(gateway: TestGateway, tmp_path: Path) -> None:
    hello = says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    async with raw_server(hello) as port, node(gateway, tmp_path) as made:
        job = shell(
            gateway,
            "cat /in/params.json /in/deep/text.txt /in/file; echo; id -u; echo working 1/2;"
            "cat /in/file > /out/copy.bin; mkdir /out/d; echo a > /out/d/a.txt; echo b > /out/d/b.txt;"
            'echo "{\\"n\\": $RGRID_ATTEMPT}" > /out/result.json',
            params='{"x": 1}',
            inputs=[
                Input(path="/in/deep/text.txt", content="text"),
                Input(path="/in/file", url=f"http://127.0.0.1:{port}/"),
            ],
            outputs=[
                Output(path="/out/d/*.txt", name="texts"),
                Output(path="/out/copy.bin", name="copy", content_type="x/y", required=True),
            ],
        )  # fmt: skip
        await ended(job)
        await made.drained()
    report = job.report
    assert report is not None
    assert (report.exit_code, report.error, report.result, report.rejected) == (0, None, {"n": 1}, [])
    assert [gateway.store[each] for each in report.artifacts] == [b"a\n", b"b\n", b"hello"]
    assert job.log == b'{"x": 1}texthello\n65532\nworking 1/2\n'
    stages = ["pulling", "fetching", "started", "exited", "collecting", "uploaded"]
    assert [stage.value for stage in report.timeline] == stages
    assert list(report.timeline.values()) == sorted(report.timeline.values())
    assert report.image_digest == busybox()


async def test_jobs_run_side_by_side_and_a_heavy_one_alone(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "BUSY_POLL_S", 0.5)
    async with node(gateway, tmp_path, slots=2) as made:
        light = [shell(gateway, FOREVER) for _ in range(2)]
        await running(*light)
        heavy = shell(gateway, "echo begun", slots=2)
        third = shell(gateway, "true")
        light[0].cancel = True
        await ended(third)
        assert heavy.state == "queued"
        light[1].cancel = True
        await ended(heavy)
        await made.drained()


@pytest.mark.parametrize(
    ("script", "fields", "status", "code", "exit_code", "words"),
    [
        ("exit 3", {}, "failed", ErrorCode.EXIT_NONZERO, 3, "exit code 3"),
        ("kill -SEGV $$", {}, "failed", ErrorCode.EXIT_NONZERO, 139, "SIGSEGV"),
        ("tail /dev/zero", {}, "failed", ErrorCode.OOM_KILLED, 137, "64 MiB"),
        ("sleep 30", {"timeout_s": 0.5}, "timed_out", ErrorCode.TIMEOUT, 143, "timeout of 0.5s"),
        ("trap '' TERM; while :; do sleep 0.1; done", {"timeout_s": 0.5}, "timed_out", ErrorCode.TIMEOUT, 137, "0.5s"),
        ("true", {"outputs": [Output(path="/out/x", name="x", required=True)]}, "failed", ErrorCode.OUTPUT_MISSING, 0,
         "/out/x"),
        ("echo '{' > /out/result.json", {}, "failed", ErrorCode.OUTPUT_REJECTED, 0, "not JSON"),
        ("true", {"inputs": [Input(path="/in/x", url="https://10.0.0.1/")]}, "failed", ErrorCode.INPUT_UNAVAILABLE,
         None, "not a public"),
        ("true", {"resources": Resources(cpu=1, memory_bytes=64 * MIB, disk_bytes=2**50)}, "failed",
         ErrorCode.INTERNAL, None, "disk"),
    ],
)  # fmt: skip
async def test_each_way_to_fail_is_told_apart(
    gateway: TestGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    fields: dict[str, object],
    status: str,
    code: ErrorCode,
    exit_code: int | None,
    words: str,
) -> None:
    monkeypatch.setattr(worker_module, "TROUBLE_S", 0.0)
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, script, **fields)
        await ended(job, status)
        await made.drained()
    assert job.report is not None and job.report.error is not None
    assert (job.report.error.code, job.report.exit_code) == (code, exit_code)
    assert words in job.report.error.message
    assert job.report.artifacts == []


async def test_what_a_failed_job_wrote_is_in_its_log(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, "seq 1 50000; exit 1")
        await ended(job, "failed")
        await made.drained()
    assert job.log.splitlines() == [str(number).encode() for number in range(1, 50001)]


@pytest.mark.parametrize(("script", "within_s"), [(FOREVER, 5), (STUBBORN, 7)])
async def test_a_cancel_reaches_a_running_container(
    gateway: TestGateway, tmp_path: Path, script: str, within_s: float
) -> None:
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, script)
        await running(job)
        job.cancel = True
        await ended(job, "cancelled", within_s)
        await made.drained()
    assert job.report is not None and job.report.error is None


async def test_a_cancel_reaches_a_job_that_waits_for_its_input(gateway: TestGateway, tmp_path: Path) -> None:
    async with raw_server(says(b"", then_wait=True)) as port, node(gateway, tmp_path) as made:
        job = shell(gateway, "true", inputs=[Input(path="/in/x", url=f"http://127.0.0.1:{port}/")])
        await until(lambda: "fetching" in job.timeline)
        job.cancel = True
        await ended(job, "cancelled", 5)
        await made.drained()


async def test_a_drain_lets_jobs_end_and_claims_no_more(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, "echo begun; sleep 1")
        await running(job)
        await until(lambda: gateway.polling == 1)
        made.worker.drain()
        await until(lambda: gateway.polling == 0)
        late = shell(gateway, "true")
        await ended(job)
        await made.task
    assert (late.state, job.released) == ("queued", 0)


async def test_what_runs_longer_than_the_drain_is_handed_back_at_once(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path, drain_s=0.2) as made:
        jobs = [shell(gateway, STUBBORN), shell(gateway, FOREVER)]
        await running(*jobs)
        began_s = time.monotonic()
        await made.drained()
    assert [(job.state, job.released, job.report) for job in jobs] == [("queued", 1, None)] * 2
    assert all(job.times["queued"] - began_s < 2 for job in jobs)


async def test_a_drain_during_many_jobs_lets_some_end_and_hands_back_the_rest_at_once(
    gateway: TestGateway, tmp_path: Path
) -> None:
    async with node(gateway, tmp_path, slots=12, drain_s=6) as made:
        short = [shell(gateway, "echo begun; sleep 3") for _ in range(6)]
        long = [shell(gateway, STUBBORN) for _ in range(6)]
        await running(*short, *long)
        began_s = time.monotonic()
        await made.drained(40)
    assert [(job.state, job.released, job.lost) for job in short] == [("succeeded", 0, 0)] * 6
    assert [(job.state, job.released, job.lost, job.report) for job in long] == [("queued", 1, 0, None)] * 6
    assert all(job.times["queued"] - began_s < 6 + 2 for job in long)


async def test_said_twice_nothing_is_waited_for(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path, drain_s=60) as made:
        job = shell(gateway, FOREVER)
        await running(job)
        made.worker.drain()
        made.worker.hurry()
        async with asyncio.timeout(5):
            await made.task
    assert job.released == 1


async def test_the_gateway_can_drain_a_node_and_a_leaving_one_says_goodbye(
    gateway: TestGateway, tmp_path: Path
) -> None:
    async with node(gateway, tmp_path, leave_on_exit=True) as made:
        gateway.draining = True
        async with asyncio.timeout(20):
            await made.task
    assert gateway.left == 1


async def test_a_lost_lease_kills_the_container_and_reports_nothing(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path, slots=1) as made:
        job = shell(gateway, STUBBORN)
        await running(job)
        lost = container_of(job)
        gateway.draining = True
        job.enter("queued")
        await until(lambda: container_of(job) != lost, 5)
        async with asyncio.timeout(20):
            await made.task
    assert (job.state, job.report, job.released) == ("queued", None, 0)


async def test_a_node_that_cannot_reach_the_gateway_stops_its_containers_in_time(
    gateway: TestGateway, tmp_path: Path
) -> None:
    gateway.lease_s = 2.0
    async with node(gateway, tmp_path, slots=1) as made:
        job = shell(gateway, STUBBORN)
        await running(job)
        await asyncio.to_thread(gateway.stop)
        await until(lambda: container_of(job) is None, 5)
        assert time.monotonic() < job.expires_s
        gateway.start()
        # It was another attempt that ended it, the lost one is never heard of again.
        job.lease = job.lease.model_copy(update={"command": ["/bin/true"]})
        await ended(job)
        assert (job.attempt, job.lost) == (2, 1)
        await made.drained()


async def test_a_node_that_is_struck_off_stops_everything(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, STUBBORN)
        await running(job)
        gateway.credentials.clear()
        with pytest.raises(CredentialRevoked):
            async with asyncio.timeout(20):
                await made.task
        assert container_of(job) is None
    assert job.report is None


async def test_a_report_is_repeated_until_the_gateway_has_it(gateway: TestGateway, tmp_path: Path) -> None:
    refusals = [Response(status_code=503), Response(status_code=500)]
    gateway.before = lambda path: refusals.pop() if path.endswith("/finish") and refusals else None
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, "true")
        await ended(job)
        await made.drained()
    assert gateway.count("/finish") == 3


async def test_a_report_whose_answer_was_lost_still_counts(gateway: TestGateway, tmp_path: Path) -> None:
    gateway.after = lambda path: not path.endswith("/finish")
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, "true")
        await ended(job)
        gateway.after = lambda path: True
        await made.drained()
    assert (job.state, job.attempt) == ("succeeded", 1)


async def test_a_report_that_is_refused_becomes_a_plain_failure(gateway: TestGateway, tmp_path: Path) -> None:
    refusals = [JSONResponse({"code": "upload_mismatch", "detail": "other bytes"}, 422)]
    gateway.before = lambda path: refusals.pop() if path.endswith("/finish") and refusals else None
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, "true")
        await ended(job, "failed")
        await made.drained()
    assert job.report is not None and job.report.error is not None
    assert job.report.error.code is ErrorCode.INTERNAL
    assert "other bytes" in job.report.error.message


async def test_a_node_in_trouble_does_not_take_all_the_work(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TROUBLE_S", 0.4)
    huge = Resources(cpu=1, memory_bytes=64 * MIB, disk_bytes=2**50)
    async with node(gateway, tmp_path, slots=1) as made:
        jobs = [shell(gateway, "true", resources=huge) for _ in range(3)]
        good = shell(gateway, "true")
        await ended(good)
        after = shell(gateway, "true")
        await ended(after)
        await made.drained()
    leased = [job.times["leased"] for job in (*jobs, good)]
    pauses = [later - earlier for earlier, later in pairwise(leased)]
    assert all(pause >= least for pause, least in zip(pauses, (0.4, 0.8, 1.6), strict=True))
    assert after.times["leased"] - good.times["succeeded"] < 0.4


@pytest.mark.parametrize(
    ("script", "after_s", "words"),
    [
        ("""echo '{"after": "90s", "reason": "rate limited"}' > /out/retry.json; exit 75""", 90, "rate limited"),
        ("ln -s /etc/passwd /out/retry.json; exit 75", None, "exit code 75 (/out/retry.json was ignored"),
        ("exit 75", None, "exit code 75"),
        ("""echo '{"after": 5}' > /out/retry.json; tail /dev/zero""", None, "64 MiB"),
    ],
)
async def test_a_job_that_fails_says_when_to_try_again(
    gateway: TestGateway, tmp_path: Path, script: str, after_s: float | None, words: str
) -> None:
    async with node(gateway, tmp_path) as made:
        job = shell(gateway, script)
        await ended(job, "failed")
        await made.drained()
    report = job.report
    assert report is not None and report.error is not None
    assert report.retry_after_s == after_s
    assert words in report.error.message


async def test_many_jobs_in_a_row_leave_no_trace(gateway: TestGateway, tmp_path: Path) -> None:
    async with node(gateway, tmp_path, slots=4) as made:
        first = shell(gateway, "echo x > /out/x", outputs=[Output(path="/out/x", name="x")])
        await ended(first)
        before = open_descriptors()
        jobs = [shell(gateway, "echo x > /out/x", outputs=[Output(path="/out/x", name="x")]) for _ in range(16)]
        await until(lambda: all(job.report is not None for job in jobs), 60)
        assert {job.state for job in jobs} == {"succeeded"}
        await until(lambda: made.residue() == [])
        assert open_descriptors() <= before + 8  # connections that are kept for the next call
        await made.drained()
