from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.egress import EgressPolicy
from nodes.agent import inputs as inputs_module
from nodes.agent.failures import AttemptFailed
from nodes.agent.inputs import fetch_inputs
from nodes.agent.workspace import Workspace
from nodes.protocol import ErrorCode, Input
from tests.nodes.agent.leases import lease
from tests.receivers import Handler, raw_server, read_request, says

pytestmark = pytest.mark.docker

MIB = 2**20
LOCAL = EgressPolicy(allow=("127.0.0.1",))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    made = await Workspace.create(tmp_path, "job_1", 1, 4 * MIB, 65532)
    yield made
    await made.destroy()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "WAITS_S", (0.0, 0.0, 0.0))


async def fetch(
    workspace: Workspace, *wanted: Input, policy: EgressPolicy = LOCAL, params: str = "{}"
) -> None:
    async with httpx.AsyncClient(trust_env=False) as storage:
        await fetch_inputs(
            workspace, lease(inputs=list(wanted), params=params, disk_bytes=4 * MIB), policy, storage
        )


async def failure(workspace: Workspace, *wanted: Input, policy: EgressPolicy = LOCAL) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        await fetch(workspace, *wanted, policy=policy)
    assert failed.value.code is ErrorCode.INPUT_UNAVAILABLE
    return failed.value


def counted(handler: Handler) -> tuple[Handler, list[str]]:
    calls: list[str] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append("call")
        await handler(reader, writer)

    return count, calls


async def test_params_and_texts_lie_below_in_for_everybody_to_read(workspace: Workspace) -> None:
    before = os.umask(0o077)
    try:
        await fetch(workspace, Input(path="/in/a/b/c.txt", content="é"), params='{"x": 1}')
    finally:
        os.umask(before)
    assert (workspace.in_dir / "params.json").read_text() == '{"x": 1}'
    text = workspace.in_dir / "a/b/c.txt"
    assert text.read_text() == "é"
    assert (text.stat().st_mode & 0o7777, text.stat().st_uid) == (0o444, 0)


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_url_is_streamed_to_its_file(workspace: Workspace, trusted: bool) -> None:
    async with raw_server(says(OK)) as port:
        url = f"http://127.0.0.1:{port}/x?sig=1"
        digest = hashlib.sha256(b"hello").hexdigest()
        await fetch(workspace, Input(path="/in/x", url=url, trusted=trusted, size=5, sha256=digest))
    assert (workspace.in_dir / "x").read_bytes() == b"hello"
    assert (workspace.in_dir / "x").stat().st_mode & 0o777 == 0o444


async def test_two_files_come_at_once_and_no_more(workspace: Workspace) -> None:
    now, most, both = 0, 0, asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        await read_request(reader)
        now += 1
        most = max(most, now)
        if now == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)
        await asyncio.sleep(0)
        now -= 1
        writer.write(OK)

    async with raw_server(handler) as port:
        await fetch(
            workspace, *(Input(path=f"/in/{index}", url=f"http://127.0.0.1:{port}/") for index in range(6))
        )
    assert most == 2
    assert len(list(workspace.in_dir.iterdir())) == 7


@pytest.mark.parametrize("open_to_all", [True, False])
async def test_redirects_are_followed_as_far_as_the_guard_goes(workspace: Workspace, open_to_all: bool) -> None:
    async with raw_server(says(OK)) as target:
        moved = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{target}/\r\nContent-Length: 0\r\n\r\n"
        async with raw_server(says(moved.encode())) as port:
            wanted = Input(path="/in/x", url=f"http://127.0.0.1:{port}/")
            if open_to_all:
                await fetch(workspace, wanted)
                assert (workspace.in_dir / "x").read_bytes() == b"hello"
                return
            failed = await failure(workspace, wanted, policy=EgressPolicy(allow=(f"127.0.0.1:{port}",)))
    assert not failed.retryable
    assert "may not be fetched" in failed.message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://169.254.169.254/hetzner/v1/metadata",
        "https://10.0.0.1/x",
        "https://[::1]/",
        "https://2130706433/",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "https://user:pw@example.com/",
        "",
    ],
)
async def test_what_the_guard_refuses_is_not_tried_again(workspace: Workspace, url: str) -> None:
    failed = await failure(workspace, Input(path="/in/x", url=url), policy=EgressPolicy())
    assert not failed.retryable
    assert failed.message.startswith("the input /in/x may not be fetched: ")


def answering(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    ("answer", "retryable"),
    [
        (answering(404), False),
        (answering(410), False),
        (answering(403), False),
        (answering(401), False),
        (answering(204), False),
        (answering(429), True),
        (answering(408), True),
        (answering(500), True),
        (answering(503), True),
        (b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", True),
        (b"no HTTP at all\r\n\r\n", True),
    ],
)
async def test_only_what_may_get_better_is_tried_again(
    workspace: Workspace, answer: bytes, retryable: bool, trusted: bool
) -> None:
    handler, calls = counted(says(answer))
    async with raw_server(handler) as port:
        wanted = Input(path="/in/x", url=f"http://127.0.0.1:{port}/x?X-Amz-Signature=secret", trusted=trusted)
        failed = await failure(workspace, wanted)
    if trusted:
        # A link of our own store runs out or is misread by a proxy: only a file that is gone stays gone.
        retryable = retryable or answer != answering(404)
    assert failed.retryable is retryable
    assert len(calls) == (4 if retryable else 1)
    assert "secret" not in failed.message


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_server_that_is_not_there_is_tried_again(workspace: Workspace, trusted: bool) -> None:
    async with raw_server(says(OK)) as port:
        pass
    failed = await failure(workspace, Input(path="/in/x", url=f"http://127.0.0.1:{port}/", trusted=trusted))
    assert failed.retryable
    assert "could not be fetched" in failed.message


async def test_a_second_try_begins_from_nothing(workspace: Workspace) -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nlonger than the real one", OK]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(answers.pop(0))(reader, writer)

    async with raw_server(handler) as port:
        await fetch(workspace, Input(path="/in/x", url=f"http://127.0.0.1:{port}/"))
    assert (workspace.in_dir / "x").read_bytes() == b"hello"


@pytest.mark.parametrize("given", [{"size": 6}, {"sha256": "0" * 64}])
async def test_other_bytes_than_promised_are_refused(workspace: Workspace, given: dict[str, Any]) -> None:
    async with raw_server(says(OK)) as port:
        failed = await failure(workspace, Input(path="/in/x", url=f"http://127.0.0.1:{port}/", **given))
    assert failed.retryable


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_file_larger_than_the_disk_is_refused_before_it_is_read(
    workspace: Workspace, trusted: bool
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    async with raw_server(says(head, then_wait=True)) as port:
        async with asyncio.timeout(5):
            failed = await failure(
                workspace, Input(path="/in/x", url=f"http://127.0.0.1:{port}/", trusted=trusted)
            )
    assert not failed.retryable
    assert "larger than what is left of the job's disk of 4 MiB" in failed.message


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_file_without_an_end_fills_the_job_s_disk_and_no_more(
    workspace: Workspace, trusted: bool
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with raw_server(endless) as port:
        failed = await failure(
            workspace, Input(path="/in/x", url=f"http://127.0.0.1:{port}/", trusted=trusted)
        )
    assert not failed.retryable
    assert "larger than what is left" in failed.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


async def test_a_text_larger_than_the_disk_is_refused(workspace: Workspace) -> None:
    failed = await failure(workspace, Input(path="/in/x", content="x" * 5 * MIB))
    assert not failed.retryable


@pytest.mark.parametrize(
    "path",
    [
        "/in/../out/x",
        "/in/../../etc/passwd",
        "/etc/passwd",
        "/in",
        "/in/",
        "/in//x",
        "/in/./x",
        "/in/a\nb",
        "/in/" + "x" * 256,
        "/in/" + "d/" * 600 + "x",
        "/in/params.json",
        "/in/params.json/x",
        "",
    ],
)
async def test_a_path_that_is_none_below_in_is_refused(workspace: Workspace, path: str) -> None:
    failed = await failure(workspace, Input(path=path, content="x"))
    assert not failed.retryable
    assert [each.name for each in workspace.in_dir.iterdir()] == ["params.json"]


async def test_one_that_fails_stops_the_others(workspace: Workspace) -> None:
    async with raw_server(says(b"", then_wait=True)) as silent, raw_server(says(answering(404))) as missing:
        async with asyncio.timeout(5):
            failed = await failure(
                workspace,
                Input(path="/in/silent", url=f"http://127.0.0.1:{silent}/"),
                Input(path="/in/missing", url=f"http://127.0.0.1:{missing}/"),
            )
    assert "/in/missing" in failed.message



async def test_a_download_can_be_cancelled_at_any_time(workspace: Workspace) -> None:
    begun = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + bytes(1_500_000))
        await writer.drain()
        begun.set()
        await asyncio.Event().wait()

    async with raw_server(trickle) as port:
        task = asyncio.create_task(fetch(workspace, Input(path="/in/x", url=f"http://127.0.0.1:{port}/")))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
