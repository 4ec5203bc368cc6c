from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from functions.s3 import S3Store
from nodes.agent import uploads as uploads_module
from nodes.agent.failures import AttemptFailed
from nodes.agent.gateway_client import GatewayClient, LeaseLost
from nodes.agent.outputs import CollectedOutput, collect
from nodes.agent.uploads import upload_all
from nodes.agent.workspace import Workspace
from nodes.protocol import ErrorCode, JobLease, Upload
from tests.nodes.agent.gateway import TestGateway
from tests.nodes.agent.leases import lease
from tests.receivers import raw_server, read_request, says

pytestmark = pytest.mark.docker

MIB = 2**20
TAKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    made = await Workspace.create(tmp_path, "job_1", 1, 16 * MIB, 65532)
    yield made
    await made.destroy()


@pytest.fixture
async def storage() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as opened:
        yield opened


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "BACKOFF_FIRST_S", 0.001)


async def files_of(workspace: Workspace, **contents: bytes) -> list[CollectedOutput]:
    for name, content in contents.items():
        (workspace.out_dir / name).write_bytes(content)
    return (await collect(workspace, lease(outputs=("/out/**",)))).files


class Links:
    """Stands for the gateway: gives links made by ``url``, which is told how often it was asked before."""

    def __init__(self, url: Callable[[int, str], str]) -> None:
        self.url = url
        self.asked = 0

    async def request_uploads(self, job_id: str, token: str, files: list[object]) -> list[Upload]:
        self.asked += 1
        return [
            Upload(
                artifact_id=f"art_{index}",
                url=self.url(self.asked, file.path),  # type: ignore[attr-defined]
                headers={"content-type": "text/x-test", "content-length": str(file.size)},  # type: ignore[attr-defined]
            )
            for index, file in enumerate(files)
        ]


async def upload(links: Links, storage: httpx.AsyncClient, files: list[CollectedOutput]) -> list[str]:
    return await upload_all(links, storage, lease(), files)  # type: ignore[arg-type]


async def test_a_real_store_takes_the_files_and_an_expired_link_is_replaced(
    workspace: Workspace, storage: httpx.AsyncClient, store: S3Store
) -> None:
    files = await files_of(workspace, a=b"x" * 3 * MIB, b=b"", c=b"text")

    class Gateway:
        asked = 0

        async def request_uploads(self, job_id: str, token: str, wanted: list[object]) -> list[Upload]:
            self.asked += 1
            made = []
            for index, each in enumerate(files):
                # The first links are of the year they were invented in.
                url, headers = store.presign_put(
                    f"k/{index}", each.file.size, each.file.md5, each.file.sha256, each.file.content_type
                )
                if self.asked == 1 and index != 1:
                    url = url.replace("X-Amz-Date=20", "X-Amz-Date=19")
                made.append(Upload(artifact_id=f"art_{index}", url=url, headers=headers))
            return made

    gateway = Gateway()
    ids = await upload_all(gateway, storage, lease(), files)  # type: ignore[arg-type]
    assert (ids, gateway.asked) == (["art_0", "art_1", "art_2"], 2)
    heads = [await store.head(f"k/{index}") for index in range(3)]
    assert [head.size if head else None for head in heads] == [3 * MIB, 0, 4]


async def test_the_bytes_and_headers_are_exact(workspace: Workspace, storage: httpx.AsyncClient) -> None:
    content = bytes(range(256)) * 10_000
    files = await files_of(workspace, a=content)
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(TAKEN)

    async with raw_server(handler) as port:
        await upload(Links(lambda asked, path: f"http://127.0.0.1:{port}/k?sig=1"), storage, files)
    ((line, headers, body),) = seen
    assert line == "PUT /k?sig=1 HTTP/1.1"
    assert (headers["content-length"], headers["content-type"]) == (str(len(content)), "text/x-test")
    assert not {"authorization", "transfer-encoding", "cookie"} & set(headers)
    assert hashlib.sha256(body).digest() == hashlib.sha256(content).digest()


async def test_four_go_at_once_and_no_more(workspace: Workspace, storage: httpx.AsyncClient) -> None:
    files = await files_of(workspace, **{f"f{index}": b"x" for index in range(9)})
    now, most, full = 0, 0, asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        await read_request(reader)
        now += 1
        most = max(most, now)
        if now == 4:
            full.set()
        await asyncio.wait_for(full.wait(), 5)
        now -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with raw_server(handler) as port:
        ids = await upload(Links(lambda asked, path: f"http://127.0.0.1:{port}{path}"), storage, files)
    assert most == 4
    assert ids == [f"art_{index}" for index in range(9)]


REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 40\r\n\r\n<Error><Code>AccessDenied</Code></Error>\n"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("answers", [[BUSY, TAKEN], [b"", BUSY, b"", TAKEN], [REFUSED, BUSY, REFUSED, REFUSED, TAKEN]])
async def test_a_store_in_trouble_is_tried_again(
    workspace: Workspace, storage: httpx.AsyncClient, answers: list[bytes]
) -> None:
    files = await files_of(workspace, a=b"x" * MIB)
    left = list(answers)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(left.pop(0))(reader, writer)

    async with raw_server(handler) as port:
        links = Links(lambda asked, path: f"http://127.0.0.1:{port}/")
        assert await upload(links, storage, files) == ["art_0"]
    assert left == []
    assert links.asked == 1 + answers.count(REFUSED)


async def test_a_store_that_stays_away_fails_the_attempt_after_its_time(
    workspace: Workspace, storage: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "STORE_S", 0.2)
    files = await files_of(workspace, a=b"x")
    async with raw_server(says(TAKEN)) as port:
        pass
    with pytest.raises(AttemptFailed, match="/out/a: it does not answer") as failed:
        await upload(Links(lambda asked, path: f"http://127.0.0.1:{port}/"), storage, files)
    assert (failed.value.code, failed.value.retryable) == (ErrorCode.INTERNAL, True)


async def test_a_store_that_refuses_every_link_is_believed(
    workspace: Workspace, storage: httpx.AsyncClient
) -> None:
    files = await files_of(workspace, a=b"x")
    async with raw_server(says(REFUSED)) as port:
        links = Links(lambda asked, path: f"http://127.0.0.1:{port}/")
        with pytest.raises(AttemptFailed, match="it answered 403 AccessDenied"):
            await upload(links, storage, files)
    assert links.asked == 3


async def test_a_refusal_of_the_bytes_is_final(workspace: Workspace, storage: httpx.AsyncClient) -> None:
    files = await files_of(workspace, a=b"x")
    bad = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 37\r\n\r\n<Error><Code>BadDigest</Code></Error>\n"
    async with raw_server(says(bad)) as port:
        links = Links(lambda asked, path: f"http://127.0.0.1:{port}/")
        with pytest.raises(AttemptFailed, match="it answered 400 BadDigest"):
            await upload(links, storage, files)
    assert links.asked == 1


async def test_a_lease_that_is_lost_ends_it(
    workspace: Workspace, storage: httpx.AsyncClient, gateway: TestGateway, client: GatewayClient
) -> None:
    files = await files_of(workspace, a=b"x")
    stale: JobLease = lease()
    with pytest.raises(LeaseLost):
        await upload_all(client, storage, stale, files)


async def test_nothing_is_asked_for_nothing(storage: httpx.AsyncClient) -> None:
    links = Links(lambda asked, path: "")
    assert await upload(links, storage, []) == []
    assert links.asked == 0
