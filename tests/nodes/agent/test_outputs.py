from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodes.agent import outputs as outputs_module
from nodes.agent.failures import AttemptFailed
from nodes.agent.outputs import Collection, collect, content_type_of
from nodes.agent.workspace import Workspace
from nodes.protocol import ErrorCode, Output
from tests.nodes.agent.leases import lease

pytestmark = pytest.mark.docker

MIB = 2**20


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    made = await Workspace.create(tmp_path, "job_1", 1, 16 * MIB, 65532)
    yield made
    await made.destroy()


def write(workspace: Workspace, **files: bytes | str) -> None:
    """``a__b_txt`` is the file a/b.txt."""
    for key, content in files.items():
        path = workspace.out_dir / key.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


async def collected(workspace: Workspace, *outputs: Output | str) -> Collection:
    return await collect(workspace, lease(outputs=outputs))


async def failure(workspace: Workspace, *outputs: Output | str) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        await collected(workspace, *outputs)
    return failed.value


def paths(collection: Collection) -> list[tuple[str, str]]:
    return [(each.file.output, each.file.path) for each in collection.files]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def required(path: str, **fields: str) -> Output:
    return Output(path=path, name="wanted", required=True, **fields)


async def test_files_come_with_size_digests_and_type(workspace: Workspace) -> None:
    write(workspace, a_jpg=b"x" * 3_000_000, b_bin="", c_tar_gz="z")
    named = Output(path="/out/b.bin", name="named", content_type="application/x-special")
    found = await collected(workspace, "/out/a.jpg", named, "/out/c.tar.gz", "/out/none")
    first, second, third = (each.file for each in found.files)
    assert (first.output, first.path, first.size) == ("/out/a.jpg", "/out/a.jpg", 3_000_000)
    assert first.sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert first.md5 == hashlib.md5(b"x" * 3_000_000).hexdigest()
    assert [each.content_type for each in (first, second, third)] == [
        "image/jpeg",
        "application/x-special",
        "application/gzip",
    ]
    assert (second.output, second.size) == ("named", 0)
    assert (found.result, found.rejected) == (None, [])


async def test_files_stand_in_the_manifest_s_order_and_those_of_a_glob_by_path(workspace: Workspace) -> None:
    write(workspace, b_png="", a_png="", sub__c_png="", z_txt="", other="")
    found = await collected(workspace, "/out/z.txt", "/out/**/*.png", "/out/*.txt")
    assert paths(found) == [
        ("/out/z.txt", "/out/z.txt"),
        ("/out/**/*.png", "/out/a.png"),
        ("/out/**/*.png", "/out/b.png"),
        ("/out/**/*.png", "/out/sub/c.png"),
    ]


async def test_a_file_is_taken_once_and_a_path_means_it_more_than_a_glob(workspace: Workspace) -> None:
    write(workspace, a_txt="", b_txt="")
    every = Output(path="/out/*", name="every", required=True)
    again = Output(path="/out/*.txt", name="again", required=True)
    found = await collected(workspace, every, again, Output(path="/out/a.txt", name="one"))
    assert paths(found) == [("every", "/out/b.txt"), ("one", "/out/a.txt")]


async def test_only_what_the_manifest_asks_for_is_taken(workspace: Workspace) -> None:
    write(workspace, a="", b="")
    assert (await collected(workspace)).files == []


@pytest.mark.parametrize("path", ["/out/missing.jpg", "/out/*.jpg", "/out/sub/x.jpg"])
async def test_a_required_file_that_is_missing_fails_the_attempt(workspace: Workspace, path: str) -> None:
    write(workspace, sub__y_txt="")
    failed = await failure(workspace, required(path))
    assert failed.code is ErrorCode.OUTPUT_MISSING
    assert path in failed.message and "'wanted'" in failed.message


async def test_a_folder_is_no_file(workspace: Workspace) -> None:
    write(workspace, sub__x="")
    found = await collected(workspace, "/out/sub", "/out/*")
    assert paths(found) == []
    assert [(each.path, each.reason) for each in found.rejected] == [("/out/sub", "directory")]
    failed = await failure(workspace, required("/out/sub"))
    assert failed.code is ErrorCode.OUTPUT_REJECTED
    assert "/**" in failed.message


async def test_result_json_is_the_result_and_no_file_unless_it_is_named(workspace: Workspace) -> None:
    write(workspace, result_json='{"ok": [1, "é"]}', a_json="")
    found = await collected(workspace, "/out/*.json")
    assert found.result == {"ok": [1, "é"]}
    assert paths(found) == [("/out/*.json", "/out/a.json")]
    found = await collected(workspace, "/out/*.json", "/out/result.json")
    assert [path for _, path in paths(found)] == ["/out/a.json", "/out/result.json"]


async def test_a_result_over_256_kib_comes_back_as_a_file(workspace: Workspace) -> None:
    write(workspace, result_json=json.dumps("x" * (256 * 1024 - 2)))
    assert len((await collected(workspace)).result) == 256 * 1024 - 2
    write(workspace, result_json=json.dumps("x" * (256 * 1024 - 1)))
    found = await collected(workspace)
    (only,) = found.files
    assert (found.result, only.file.output, only.file.path) == (None, "result", "/out/result.json")
    assert (only.file.content_type, only.file.size) == ("application/json", 256 * 1024 + 1)
    named = await collected(workspace, "/out/result.json")
    assert (named.result, [file.file.output for file in named.files]) == (None, ["/out/result.json"])


async def test_a_result_that_is_not_json_is_refused(workspace: Workspace) -> None:
    write(workspace, result_json="{'a': 1}")
    failed = await failure(workspace)
    assert (failed.code, failed.retryable) == (ErrorCode.OUTPUT_REJECTED, False)
    assert failed.message.startswith("/out/result.json is not JSON: ")


async def test_a_file_over_the_store_s_limit_fails_the_attempt(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs_module, "OUTPUT_FILE_CAP_BYTES", 1000)
    write(workspace, a="x" * 1000)
    assert len((await collected(workspace, "/out/a")).files) == 1
    write(workspace, a="x" * 1001)
    failed = await failure(workspace, "/out/a")
    assert (failed.code, failed.retryable) == (ErrorCode.OUTPUT_TOO_LARGE, False)


async def test_a_thousand_files_are_taken_and_one_more_is_too_many(workspace: Workspace) -> None:
    (workspace.out_dir / "d").mkdir()
    for index in range(998):
        (workspace.out_dir / "d" / str(index)).touch()
    assert len((await collected(workspace, "/out/d/*")).files) == 998
    limit = pytest.MonkeyPatch()
    limit.setattr(outputs_module, "OUTPUT_FILES_CAP", 997)
    failed = await failure(workspace, "/out/d/*")
    limit.undo()
    assert failed.code is ErrorCode.OUTPUT_TOO_LARGE
    assert "997" in failed.message


async def test_a_sparse_file_is_read_at_flat_memory(workspace: Workspace) -> None:
    with (workspace.out_dir / "sparse").open("wb") as file:
        file.truncate(15 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = await collected(workspace, "/out/sparse")
    assert found.files[0].file.sha256 == hashlib.sha256(bytes(15 * MIB)).hexdigest()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


async def test_holes_do_not_make_the_outputs_larger_than_the_disk(workspace: Workspace) -> None:
    with (workspace.out_dir / "sparse").open("wb") as file:
        file.truncate(10 * 1024 * MIB)
    failed = await failure(workspace, "/out/sparse")
    assert failed.code is ErrorCode.OUTPUT_TOO_LARGE
    for name in ("a", "b"):
        with (workspace.out_dir / name).open("wb") as file:
            file.truncate(9 * MIB)
    failed = await failure(workspace, "/out/?")
    assert "larger than the job's disk of 16 MiB" in failed.message


async def test_a_cancelled_collection_stops_and_closes_what_it_opened(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workspace, a=bytes(MIB))
    loop, reading = asyncio.get_running_loop(), asyncio.Event()

    def trickle(handle: int, count: int, offset: int) -> bytes:
        loop.call_soon_threadsafe(reading.set)
        return b"x"

    monkeypatch.setattr(outputs_module.os, "pread", trickle)
    before = open_descriptors()
    task = asyncio.create_task(collected(workspace, "/out/a"))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert open_descriptors() == before


async def test_a_file_that_is_another_one_at_upload_is_noticed(workspace: Workspace) -> None:
    write(workspace, a="x")
    (each,) = (await collected(workspace, "/out/a")).files
    os.close(each.open())
    (workspace.out_dir / "a").unlink()
    write(workspace, b="y", a="y")
    with pytest.raises(AttemptFailed, match="changed"):
        each.open()
    (workspace.out_dir / "a").unlink()
    with pytest.raises(AttemptFailed, match="not readable"):
        each.open()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JPG", "image/jpeg"),
        ("a.mp4", "video/mp4"),
        ("a.json", "application/json"),
        ("a.webp", "image/webp"),
        ("a.m4s", "video/iso.segment"),
        ("a.csv", "text/csv"),
        ("a.csv.gz", "application/gzip"),
        ("a", "application/octet-stream"),
        ("a.unheard", "application/octet-stream"),
        ("a.txt.Z", "application/octet-stream"),
    ],
)
def test_the_type_comes_from_the_ending(name: str, kind: str) -> None:
    assert content_type_of(name) == kind
