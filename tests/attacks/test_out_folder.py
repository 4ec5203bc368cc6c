"""What a job can do to /in and /out from inside its container (SECURITY S16, S17, S65 to S71, S75), and what comes of
it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.protocol import AttemptReport, Output, Resources
from tests.images.build import busybox
from tests.nodes.agent.gateway import Job, TestGateway
from tests.nodes.agent.node import node
from tests.nodes.agent.waiting import until

pytestmark = pytest.mark.docker

MIB = 2**20


@pytest.fixture
def gateway() -> Iterator[TestGateway]:
    server = TestGateway(lease_s=15.0)
    server.start()
    yield server
    server.stop()


async def reported(gateway: TestGateway, folder: Path, script: str, *outputs: str) -> tuple[Job, AttemptReport]:
    async with node(gateway, folder) as made:
        job = gateway.add(
            busybox(),
            "/bin/sh",
            "-c",
            script,
            outputs=[Output(path=each, name=each) for each in outputs],
            resources=Resources(cpu=1, memory_bytes=64 * MIB, disk_bytes=8 * MIB),
        )
        await until(lambda: job.report is not None, 30)
        await made.drained()
    assert job.report is not None
    return job, job.report


async def test_what_a_job_plants_in_out_is_listed_and_not_followed(gateway: TestGateway, tmp_path: Path) -> None:
    script = """
        cd /out
        ln -s /etc/shadow link; ln -s / up; ln -s loop loop; mkfifo pipe
        echo twice > one; ln one two
        mknod device b 7 0 || echo no device
        printf x > "$(printf 'new\\nline')"
        echo good > good; chmod 6777 good
        ln good /tmp/elsewhere 2>/dev/null || echo no link out
    """
    job, report = await reported(gateway, tmp_path, script, "/out/*", "/out/up/**")
    assert report.status == "succeeded"
    assert b"no device" in job.log and b"no link out" in job.log
    assert [gateway.store[each] for each in report.artifacts] == [b"good\n"]
    assert {each.path: each.reason for each in report.rejected} == {
        "/out/link": "symlink",
        "/out/up": "symlink",
        "/out/loop": "symlink",
        "/out/pipe": "fifo",
        "/out/one": "hardlink",
        "/out/two": "hardlink",
        "/out/new\\nline": "name",
    }


async def test_out_itself_cannot_be_replaced_and_in_cannot_be_written(gateway: TestGateway, tmp_path: Path) -> None:
    script = """
        mv /out /elsewhere 2>/dev/null || echo moved: no
        rmdir /out 2>/dev/null || echo removed: no
        echo x 2>/dev/null > /in/x || echo in: no
        rm -f /in/params.json 2>/dev/null; test -e /in/params.json && echo params: still there
        umount /out 2>/dev/null || echo unmounted: no
        echo good > /out/good
    """
    job, report = await reported(gateway, tmp_path, script, "/out/good")
    expected = ["moved: no", "removed: no", "in: no", "params: still there", "unmounted: no"]
    assert job.log.decode().splitlines() == expected
    assert len(report.artifacts) == 1


async def test_a_full_disk_is_the_job_s_own(gateway: TestGateway, tmp_path: Path) -> None:
    script = """
        dd if=/dev/zero of=/out/big bs=64k 2>&1 | grep -o 'No space left on device'
        rm /out/big
        i=0; while true > /out/$i; do i=$((i+1)); done 2>/dev/null
        echo files: $i
        rm -r /out/1*; echo still works > /out/after
    """
    job, report = await reported(gateway, tmp_path, script, "/out/after")
    first, second = job.log.decode().splitlines()
    assert first == "No space left on device"
    assert 900 < int(second.removeprefix("files: ")) < 1100
    assert [gateway.store[each] for each in report.artifacts] == [b"still works\n"]


async def test_out_is_an_ordinary_folder_to_the_job(gateway: TestGateway, tmp_path: Path) -> None:
    """Scratch space for tools that unpack programs and follow their own links."""
    script = """
        cp /bin/busybox /out/tool; ln -s tool /out/echo; /out/echo programs and links work
        cp /bin/busybox /out/id; chmod 6755 /out/id; /out/id -u
    """
    job, _ = await reported(gateway, tmp_path, script)
    assert job.log == b"programs and links work\n65532\n"
