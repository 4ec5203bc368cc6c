"""What a hostile job can leave in /out (SECURITY §1.5; attacks S65 to S75), against the real collector on the real
file system. The files are made by the agent's own hand, which may do more than a job."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nodes.agent import tree
from nodes.agent.failures import AttemptFailed
from nodes.agent.mounts import Flag, bind, unmount
from nodes.agent.outputs import Collection, collect
from nodes.agent.workspace import Workspace
from nodes.protocol import ErrorCode, Output
from tests.nodes.agent.leases import lease

pytestmark = pytest.mark.docker

MIB = 2**20
SECRET = "/etc/shadow"


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    made = await Workspace.create(tmp_path, "job_1", 1, 64 * MIB, 65532)
    yield made
    await made.destroy()


async def collected(workspace: Workspace, *outputs: Output | str) -> Collection:
    began_s = time.monotonic()
    found = await collect(workspace, lease(outputs=outputs, disk_bytes=64 * MIB))
    assert time.monotonic() - began_s < 5
    return found


def rejected(collection: Collection) -> dict[str, str]:
    return {each.path: each.reason for each in collection.rejected}


def a_link(path: Path) -> None:
    path.symlink_to(SECRET)


def a_link_to_a_folder(path: Path) -> None:
    path.symlink_to("/etc")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        with contextlib.chdir(path.parent):
            made.bind(path.name)


def a_device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o060000, os.makedev(7, 0))


def a_terminal(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))


def a_hard_link(path: Path) -> None:
    path.write_text("x")
    os.link(path, path.with_name("other-name"))


PLANTS = [
    pytest.param(a_link, "symlink", id="link"),
    pytest.param(a_link_to_a_folder, "symlink", id="link to a folder"),
    pytest.param(a_link_to_itself, "symlink", id="link to itself"),
    pytest.param(a_fifo, "fifo", id="fifo"),
    pytest.param(a_socket, "socket", id="socket"),
    pytest.param(a_device, "device", id="block device"),
    pytest.param(a_terminal, "device", id="character device"),
    pytest.param(a_hard_link, "hardlink", id="hard link"),
]


@pytest.mark.parametrize(("plant", "reason"), PLANTS)
async def test_what_is_no_plain_file_is_listed_and_never_read(
    workspace: Workspace, plant: Callable[[Path], None], reason: str
) -> None:
    plant(workspace.out_dir / "x")
    (workspace.out_dir / "good").write_text("good")
    for path in ("/out/x", "/out/**"):
        found = await collected(workspace, path, "/out/good")
        assert [each.file.path for each in found.files] == ["/out/good"]
        assert rejected(found)["/out/x"] == reason


@pytest.mark.parametrize(("plant", "reason"), PLANTS)
async def test_a_required_output_that_is_no_plain_file_fails_the_attempt(
    workspace: Workspace, plant: Callable[[Path], None], reason: str
) -> None:
    plant(workspace.out_dir / "x")
    with pytest.raises(AttemptFailed) as failed:
        await collected(workspace, Output(path="/out/x", name="x", required=True))
    assert (failed.value.code, failed.value.retryable) == (ErrorCode.OUTPUT_REJECTED, False)
    assert failed.value.message.startswith("/out/x is a ")
    assert (failed.value.rejected[0].path, failed.value.rejected[0].reason) == ("/out/x", reason)


@pytest.mark.parametrize(("plant", "reason"), PLANTS)
async def test_a_result_that_is_no_plain_file_fails_the_attempt(
    workspace: Workspace, plant: Callable[[Path], None], reason: str
) -> None:
    plant(workspace.out_dir / "result.json")
    with pytest.raises(AttemptFailed) as failed:
        await collected(workspace)
    assert failed.value.code is ErrorCode.OUTPUT_REJECTED
    assert [each.reason for each in failed.value.rejected if each.path == "/out/result.json"] == [reason]


async def test_a_link_on_the_way_is_not_walked(workspace: Workspace) -> None:
    (workspace.out_dir / "etc").symlink_to("/etc")
    (workspace.out_dir / "up").symlink_to("..")
    found = await collected(workspace, "/out/etc/shadow", "/out/**/shadow", "/out/up/**")
    assert found.files == []
    assert rejected(found) == {"/out/etc": "symlink", "/out/up": "symlink"}
    with pytest.raises(AttemptFailed, match="/out/etc is a symbolic link"):
        await collected(workspace, Output(path="/out/etc/shadow", name="x", required=True))


@pytest.mark.parametrize("path", ["/out/../../etc/shadow", "/etc/shadow", "/out/../in/params.json"])
async def test_a_path_out_of_out_means_nothing(workspace: Workspace, path: str) -> None:
    assert (await collected(workspace, path)).files == []


async def test_a_folder_of_another_file_system_is_not_entered(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.out_dir / "inner").mkdir()
    # Seen through the agent's own mount. A job cannot mount: this stands for whatever else may.
    host = tmp_path / "job_1.1" / "host" / "out" / "inner"
    bind(Path("/etc"), host, Flag.NODEV)
    try:
        found = await collected(workspace, "/out/**")
        assert (found.files, rejected(found)) == ([], {"/out/inner": "mount"})
    finally:
        unmount(host)


async def test_a_replaced_out_changes_nothing_for_the_collector(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.out_dir / "good").write_text("good")
    host = tmp_path / "job_1.1" / "host"
    (host / "out").rename(host / "elsewhere")
    (host / "out").symlink_to("/etc")
    found = await collected(workspace, "/out/*")
    assert [each.file.path for each in found.files] == ["/out/good"]
    os.close(found.files[0].open())


BAD_NAMES = [
    b"new\nline", b"tab\t", b"\x1b[31mred", b"\xff\xfe", b"caf\xe9", "right\u202eto left".encode(), b"\xe2\x80\xa8sep",
    b"del\x7f",
]  # fmt: skip


async def test_names_that_cannot_be_shown_are_refused(workspace: Workspace) -> None:
    for name in BAD_NAMES:
        (workspace.out_dir / os.fsdecode(name)).touch()
    good = ["-rf", "a b", "ünï", "日本", "'; rm -rf ~", "%00", "a\u00a0b", "👩\u200d💻", "back\\slash", "x" * 255]
    for name in good:
        (workspace.out_dir / name).touch()
    found = await collected(workspace, "/out/*")
    assert sorted(each.file.path for each in found.files) == sorted("/out/" + name for name in good)
    assert set(rejected(found).values()) == {"name"}
    assert len(found.rejected) == len(BAD_NAMES)
    assert all(each.path.isprintable() for each in found.rejected)


async def test_names_that_one_folder_cannot_hold_everywhere_are_taken_once(workspace: Workspace) -> None:
    for name in ("README", "readme", "caf\u00e9", "cafe\u0301", "other"):
        (workspace.out_dir / name).touch()
    found = await collected(workspace, "/out/*")
    assert len(found.files) == 3
    assert sorted(rejected(found).values()) == ["collision", "collision"]


async def test_a_tree_that_is_very_deep_is_left_at_the_limit(workspace: Workspace) -> None:
    with contextlib.chdir(workspace.out_dir):
        for _ in range(4000):
            Path("d").mkdir()
            os.chdir("d")
    (workspace.out_dir / "good").touch()
    found = await collected(workspace, "/out/**")
    assert [each.file.path for each in found.files] == ["/out/good"]
    assert list(rejected(found).values()) == ["depth"]


async def test_a_path_that_is_too_long_is_refused(workspace: Workspace) -> None:
    folder = workspace.out_dir
    for _ in range(4):
        folder = folder / ("d" * 250)
        folder.mkdir()
    (folder / ("f" * 15)).touch()
    (folder / ("f" * 16)).touch()
    found = await collected(workspace, "/out/**")
    assert [len(each.file.path) for each in found.files] == [1024]
    assert list(rejected(found).values()) == ["name"]


async def test_a_hundred_thousand_names_end_at_the_limit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More entries than files are possible by hard links alone; the limit is lowered to keep the test short."""
    monkeypatch.setattr(tree, "ENTRIES_MOST", 2000)
    for folder in range(21):
        (workspace.out_dir / str(folder)).mkdir()
        for index in range(100):
            (workspace.out_dir / str(folder) / str(index)).touch()
    with pytest.raises(AttemptFailed, match="too many entries") as failed:
        await collected(workspace, "/out/**/nothing")
    assert failed.value.code is ErrorCode.OUTPUT_TOO_LARGE
    assert (await collected(workspace)).files == []


async def test_as_many_files_as_the_file_system_holds_are_walked_in_time(workspace: Workspace) -> None:
    """Of 4096 files none is wanted: no time limit is near."""
    with pytest.raises(OSError, match="No space"):
        for index in range(5000):
            (workspace.out_dir / f"{index:05}").touch()
    patterns = [f"/out/**/*{index}*x" for index in range(20)]
    assert (await collected(workspace, *patterns)).files == []


async def test_a_hundred_refusals_are_listed_and_the_asked_for_come_first(workspace: Workspace) -> None:
    for index in range(300):
        (workspace.out_dir / f"a{index}").symlink_to("x")
    (workspace.out_dir / "z").symlink_to("x")
    found = await collected(workspace, "/out/z")
    assert len(found.rejected) == 100
    assert found.rejected[0].path == "/out/z"
