"""``rgrid invoke --file``: uploads in one piece and in parts, and going on with one that broke."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from functions import uploads as server_side
from gateway.cli import uploads
from tests.gateway.cli.conftest import Connected

FUNCTION = {
    "params": {"type": "object", "properties": {"video": {"type": "string"}}},
    "job": {"image": "busybox:1", "files": {"inputs": [{"path": "/in/a", "url": "{{ params.video }}"}]}},
}


async def test_a_file_becomes_a_param(call: Connected, tmp_path: Path) -> None:
    await call.apply(**FUNCTION)
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"not really")
    job = (await call("invoke", "greet", "--file", f"video={file}", "--json")).json
    uri = job["params"]["video"]
    assert uri.startswith("artifact:art_")
    with await call.worker() as worker:
        (given,) = (await asyncio.to_thread(worker.lease)).inputs
    assert (given.size, given.sha256) == (10, hashlib.sha256(b"not really").hexdigest())
    again = (await call("invoke", "greet", "--file", f"video={file}", "--json")).json
    assert again["params"]["video"].startswith("artifact:art_")


async def test_an_upload_in_parts_goes_on_after_a_broken_one(
    call: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 1024 * 1024
    monkeypatch.setattr(server_side, "PART_BYTES", 5 * mib)
    monkeypatch.setattr(server_side, "SINGLE_BYTES", 5 * mib)
    await call.apply(**FUNCTION)
    file = tmp_path / "large"
    file.write_bytes(b"x" * 11 * mib)
    sent: list[tuple[int, int]] = []
    send, broken = uploads._put, iter([uploads._Broken("cut"), uploads._Expired(), None, None, None])

    def put(link: object, opened: object, start: int, size: int, advance: object) -> None:
        if (error := next(broken)) is not None:
            raise error
        sent.append((start, size))
        send(link, opened, start, size, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(uploads, "_put", put)
    monkeypatch.setattr(uploads, "pause", lambda number: 0.0)
    job = (await call("invoke", "greet", "--file", f"video={file}", "--json")).json
    assert job["params"]["video"].startswith("artifact:art_")
    assert sent == [(0, 5 * mib), (5 * mib, 5 * mib), (10 * mib, mib)]


async def test_files_that_cannot_be_read_are_named_before_anything_is_sent(call: Connected, tmp_path: Path) -> None:
    for given, said in (
        (f"video={tmp_path / 'none'}", "No such file"),
        (f"video={tmp_path}", "Is a directory"),
        (str(tmp_path), "does not read name=path"),
    ):
        assert said in (await call("invoke", "greet", "--file", given)).refused(2)
    (tmp_path / "a").touch()
    both = ("--file", f"video={tmp_path / 'a'}", "-p", "video=1")
    assert "video is set twice" in (await call("invoke", "greet", *both)).refused(2)
