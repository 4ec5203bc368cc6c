from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.agent import mounts, tasks, workspace
from nodes.agent.failures import AttemptFailed
from nodes.agent.workspace import Workspace, check_workspaces, remove_leftovers

pytestmark = pytest.mark.docker

MIB = 2**20


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    remove_leftovers(tmp_path, [])
    assert residue(tmp_path) == []


def residue(work: Path) -> list[str]:
    """Mounts, loop devices and files that are still there."""
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(work) in line]
    devices = [
        each.read_text().strip()
        for each in Path("/sys/block").glob("loop*/loop/backing_file")
        if str(work)[:40] in each.read_text()
    ]
    return mounted + devices + [path.name for path in work.iterdir()]


async def make(work: Path, job_id: str = "job_1", disk_bytes: int = 16 * MIB) -> Workspace:
    return await Workspace.create(work, job_id, 1, disk_bytes, 65532)


async def test_a_workspace_leaves_nothing_behind(work: Path) -> None:
    made = await make(work)
    (made.out_dir / "file").write_bytes(b"x")
    assert len(residue(work)) == 4
    await made.destroy()
    assert residue(work) == []
    await made.destroy()


async def test_what_a_job_writes_has_a_limit_in_bytes_and_in_files(work: Path) -> None:
    made = await make(work, disk_bytes=4 * MIB)
    with pytest.raises(OSError, match="No space"), (made.out_dir / "big").open("wb", buffering=0) as file:
        for _ in range(8):
            file.write(bytes(MIB))
    size = (made.out_dir / "big").stat().st_size
    assert 3 * MIB <= size < 4 * MIB
    (made.out_dir / "big").unlink()
    with pytest.raises(OSError, match="No space"):
        for count in range(2000):
            (made.out_dir / str(count)).touch()
    assert 900 < len(list(made.out_dir.iterdir())) <= 1024
    await made.destroy()


async def test_out_belongs_to_the_job_and_in_does_not(work: Path) -> None:
    made = await make(work)
    assert (made.out_dir.stat().st_uid, made.out_dir.stat().st_mode & 0o777) == (65532, 0o755)
    assert (made.in_dir.stat().st_uid, made.in_dir.stat().st_mode & 0o777) == (0, 0o755)
    await made.destroy()


async def test_the_agent_s_own_mount_follows_no_link_and_runs_nothing(work: Path) -> None:
    made = await make(work)
    (made.out_dir / "link").symlink_to("/etc/hostname")
    (made.out_dir / "run").write_text("#!/bin/sh\n")
    (made.out_dir / "run").chmod(0o755)
    host = work / "job_1.1" / "host" / "out"
    with pytest.raises(OSError, match="symbolic links"):
        os.open("link", os.O_RDONLY, dir_fd=made.out_fd)
    with pytest.raises(OSError, match="symbolic links"):
        (host / "link").read_bytes()
    with pytest.raises(PermissionError):
        subprocess.run([host / "run"], check=True)
    # The job sees an ordinary file system, but no set-user-id and no devices.
    subprocess.run([made.out_dir / "run"], check=True)
    assert (made.out_dir / "link").exists()
    flags = {
        line.split()[4].rsplit("/", 1)[-1]: line.split()[5].split(",")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(work) in line
    }
    assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= set(flags["host"])
    assert {"nosuid", "nodev"} <= set(flags["job"])
    await made.destroy()


async def test_a_workspace_is_found_again_by_another_agent(work: Path) -> None:
    made = await make(work)
    (made.out_dir / "file").write_bytes(b"x")
    made._close()
    again = await Workspace.reopen(work, "job_1", 1)
    assert (again.out_dir / "file").read_bytes() == b"x"
    await again.destroy()
    with pytest.raises(OSError, match="not mounted"):
        await Workspace.reopen(work, "job_1", 1)


async def test_many_are_made_side_by_side(work: Path) -> None:
    made = await asyncio.gather(*(make(work, f"job_{index}", 2 * MIB) for index in range(20)))
    assert len({os.fstat(each.out_fd).st_dev for each in made}) == 20
    await asyncio.gather(*(each.destroy() for each in made))
    assert residue(work) == []


async def test_what_is_promised_is_reserved(work: Path) -> None:
    free = os.statvfs(work).f_bavail * os.statvfs(work).f_frsize
    made = await make(work, disk_bytes=256 * MIB)
    assert (work / "job_1.1" / "disk.img").stat().st_blocks * 512 >= 256 * MIB
    with pytest.raises(AttemptFailed, match="disk left") as failed:
        await make(work, "job_2", free + 1024 * MIB)
    assert failed.value.retryable
    assert [path.name for path in work.iterdir()] == ["job_1.1"]
    await made.destroy()


@pytest.mark.parametrize("step", ["_make_file_system", "mount_image", "bind"])
async def test_a_step_that_fails_leaves_nothing(work: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def broken(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(workspace, step, broken)
    with pytest.raises(AttemptFailed, match="could not make"):
        await make(work)
    assert residue(work) == []


@pytest.mark.parametrize("step", ["_make_file_system", "mount_image", "bind"])
async def test_a_caller_that_gives_up_leaves_nothing(
    work: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    loop, reached, real = asyncio.get_running_loop(), asyncio.Event(), getattr(workspace, step)

    def slow(*args: object) -> None:
        loop.call_soon_threadsafe(reached.set)
        real(*args)

    monkeypatch.setattr(workspace, step, slow)
    task = asyncio.create_task(make(work))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert residue(work) == []


async def test_a_machine_without_loop_devices_is_told_what_to_do(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "LOOP_CONTROL", work / "no-such-device")
    with pytest.raises(AttemptFailed, match="modprobe loop"):
        await check_workspaces(work)


async def test_a_machine_without_mkfs_is_told_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "mkfs", lambda: str(work / "mkfs.ext4"))
    with pytest.raises(AttemptFailed, match="could not make the job's file system"):
        await check_workspaces(work)


async def test_a_new_agent_removes_what_a_killed_one_left(work: Path) -> None:
    """Killed in the middle of anything: before, between and after its mounts."""
    script = f"""
import asyncio, os, signal
from pathlib import Path
from nodes.agent import workspace
from nodes.agent.workspace import Workspace
work = Path({str(work)!r})
asyncio.run(Workspace.create(work, "job_whole", 1, 4 << 20, 65532))
real = workspace.bind
workspace.bind = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(Workspace.create(work, "job_half", 1, 4 << 20, 65532))
"""
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], check=False)
    assert ended.returncode == -9
    (work / "job_kept.1").mkdir()
    (work / "stray").touch()
    kept = await make(work, "job_kept")
    assert remove_leftovers(work, [("job_kept", 1)]) == 3
    assert [path.name for path in work.iterdir()] == ["job_kept.1"]
    assert list(kept.out_dir.iterdir()) == []
    await kept.destroy()


async def test_a_file_that_somebody_holds_open_does_not_keep_the_workspace(work: Path) -> None:
    made = await make(work)
    with (made.out_dir / "held").open("wb"):
        await made.destroy()
        assert [path.name for path in work.iterdir()] == []


async def test_a_cancelled_caller_waits_for_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, undone = asyncio.Event(), [], []
    loop = asyncio.get_running_loop()
    hurried = __import__("threading").Event()

    def call() -> str:
        loop.call_soon_threadsafe(begun.set)
        assert hurried.wait(5)
        go.append(1)
        return "made"

    task = asyncio.create_task(tasks.to_the_end(call, undo=undone.append, hurry=hurried.set))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (go, undone) == ([1], ["made"])
