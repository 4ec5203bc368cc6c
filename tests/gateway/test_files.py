"""/f/{project}/{function}: a file in, a file out, over a real connection, with a node that does what a job would."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from functions.errors import Unavailable
from gateway import body, receiving
from gateway.services import Services
from scheduler.wakeups import Topic
from tests.gateway.conftest import BOOTSTRAP_KEY, listening
from tests.gateway.making import key_client, make_function, project_client
from tests.gateway.test_uploads import objects
from tests.gateway.work import Node, joined, soon

MIB = 1024 * 1024
CLIP = b"a video\n" * 1000
PARAMS = {
    "type": "object",
    "required": ["video"],
    "additionalProperties": False,
    "properties": {
        "video": {"type": "string"},
        "mark": {"type": "string"},
        "width": {"type": "integer", "default": 320},
        "ratio": {"type": "number"},
        "loud": {"type": "boolean"},
        "sizes": {"type": "array"},
    },
}
FILES = {
    "inputs": [
        {"path": "/in/fixed.txt", "content": "x"},
        {"path": "/in/video.mp4", "url": "{{ params.video }}"},
    ],
    "outputs": [{"path": "/out/thumb.jpg", "name": "thumbnail", "contentType": "image/jpeg"}],
}
URL = "/f/default/thumbnail"


async def make(api: httpx.AsyncClient, **job: Any) -> None:
    spec = {"job": {"image": "busybox:1", "command": ["true"], "files": FILES} | job, "params": PARAMS}
    await make_function(api, **spec)


@asynccontextmanager
async def working(services: Services, answer: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """A node that ends each job as ``answer(node, lease)`` says; the leases that it had."""
    leases: list[dict[str, Any]] = []

    async def work(node: Node) -> None:
        while True:
            for lease in await node.claim(free_slots=2, wait_s=10):
                leases.append(lease)
                await answer(node, lease)
                services.wakeups.hint(Topic.OUTCOME)

    async with joined(services) as node:
        worker = asyncio.ensure_future(work(node))
        try:
            yield leases
        finally:
            worker.cancel()
            (ended,) = await asyncio.gather(worker, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended


async def upper(node: Node, lease: dict[str, Any]) -> None:
    """The job: the input in upper case."""
    async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
        given = (await storage.get(lease["inputs"][1]["url"])).content
    artifact = await node.upload(lease, "thumbnail", "/out/thumb.jpg", given.upper())
    await node.finish(lease, artifacts=[artifact])


@asynccontextmanager
async def outside(services: Services, key: str = BOOTSTRAP_KEY) -> AsyncIterator[httpx.AsyncClient]:
    async with listening(services) as gateway:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{gateway.port}",
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=30,
        ) as client:
            yield client


async def test_a_file_goes_in_and_a_file_comes_out(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    async with outside(services) as client, working(services, upper) as leases:
        answer = await client.post(
            f"{URL}?width=640&loud=true&ratio=1.5&sizes=[1,2]", content=CLIP, headers={"Content-Type": "video/mp4"}
        )
        assert (answer.status_code, answer.content) == (200, CLIP.upper())
        assert answer.headers["content-type"] == "text/plain"
        assert answer.headers["content-disposition"].startswith('attachment; filename="thumb.jpg"')
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["etag"] == f'"{hashlib.sha256(CLIP.upper()).hexdigest()}"'
        assert answer.headers["rgrid-job-id"] == leases[0]["job_id"]
        params = json.loads(leases[0]["params"])
        assert params.pop("video").startswith("artifact:art_")
        assert params == {"width": 640, "loud": True, "ratio": 1.5, "sizes": [1, 2]}
        assert leases[0]["inputs"][1]["sha256"] == hashlib.sha256(CLIP).hexdigest()
        again = await client.get(f"{URL}/jobs/{leases[0]['job_id']}")
        head = await client.head(f"{URL}/jobs/{leases[0]['job_id']}")
        assert again.content == answer.content
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(CLIP)))


async def test_a_form_brings_files_and_texts(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    files = {"video": ("ü clip.mp4", CLIP, "video/mp4"), "mark": ("../../mark.png", b"png", "image/png")}
    async with outside(services) as client, working(services, upper) as leases:
        answer = await client.post(URL, files=files, data={"width": "16", "loud": "false"})
    assert (answer.status_code, answer.content) == (200, CLIP.upper())
    params = json.loads(leases[0]["params"])
    assert (params["width"], params["loud"]) == (16, False)
    shown = [
        (await api.get(f"/v1/artifacts/{params[name].removeprefix('artifact:')}")).json() for name in ("video", "mark")
    ]
    assert [(each["name"], each["content_type"], each["size"]) for each in shown] == [
        ("ü clip.mp4", "video/mp4", len(CLIP)), ("mark.png", "image/png", 3),
    ]  # fmt: skip


async def test_a_function_without_files_answers_with_its_result(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api, params={"type": "object"}, job={"image": "busybox:1"})

    async def answer(node: Node, lease: dict[str, Any]) -> None:
        await node.finish(lease, result=json.loads(lease["params"]))

    async with outside(services) as client, working(services, answer):
        got = await client.post(f"{URL}?text=3")
        assert (got.status_code, got.json(), got.headers["content-type"]) == (200, {"text": "3"}, "application/json")
        body = await client.post(URL, content=b"x")
    assert (body.status_code, body.json()["code"]) == (422, "invalid")


async def test_who_waits_too_short_is_led_to_where_it_goes_on(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    async with outside(services) as client:
        answer = await client.post(f"{URL}?wait=0", content=CLIP)
        job = answer.headers["rgrid-job-id"]
        assert (answer.status_code, answer.headers["location"]) == (303, f"{URL}/jobs/{job}?wait=0")
        still = await client.get(answer.headers["location"])
        assert (still.status_code, still.headers["location"]) == (303, f"{URL}/jobs/{job}?wait=0")
        waiting = asyncio.ensure_future(client.get(f"{URL}/jobs/{job}?wait=20"))
        async with working(services, upper) as leases:
            done = await waiting
    assert (done.status_code, done.content) == (200, CLIP.upper())
    assert [lease["job_id"] for lease in leases] == [job]


ENDINGS = [
    ("failed", {"code": "exit_nonzero", "message": "exit 3"}, 502, "exit_nonzero"),
    ("failed", {"code": "oom_killed", "message": "m"}, 502, "oom_killed"),
    ("failed", {"code": "input_unavailable", "message": "m", "retryable": False}, 422, "input_unavailable"),
    ("failed", {"code": "internal", "message": "m"}, 502, "internal"),
    ("timed_out", {"code": "timeout", "message": "m"}, 504, "timeout"),
    ("cancelled", None, 409, "job_cancelled"),
]


async def test_a_job_that_does_not_succeed_is_a_problem(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    async with joined(services) as node:
        for status, error, expected, code in ENDINGS:
            asked = asyncio.ensure_future(api.post(URL, content=CLIP))
            lease = await node.claim_one(wait_s=5)
            if status == "cancelled":
                await api.post(f"/v1/jobs/{lease['job_id']}/cancel")
            report = {} if error is None else {"error": error}
            assert (await node.finish(lease, status, **report)).status_code == 200
            answer = await asked
            assert (answer.status_code, answer.json()["code"]) == (expected, code), answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert lease["job_id"] in answer.json()["detail"]
            assert answer.headers["rgrid-job-id"] == lease["job_id"]


BAD = [
    ("?wait=301", {}, 422, "/query/wait"),
    ("?wait=x", {}, 422, "/query/wait"),
    ("?width=wide", {}, 422, "/width"),
    ("?width=1&width=2", {}, 422, "/query/width"),
    ("?other=1", {}, 422, "/query/other"),
    ("?video=https://example.com/v", {}, 422, "/query/video"),
    ("?mark=%00", {}, 422, "/query/mark"),
    ("", {"Content-Encoding": "gzip"}, 415, None),
    ("", {"Idempotency-Key": ""}, 400, "/header/Idempotency-Key"),
    ("", {"RGrid-Version": "x"}, 400, "/header/RGrid-Version"),
    ("", {"RGrid-Version": "7"}, 404, None),
    ("", {"X-Callback-Url": "http://127.0.0.1/"}, 422, "/header/X-Callback-Url"),
    ("", {"Content-Type": "multipart/form-data"}, 400, None),
    ("", {"Content-Type": "multipart/form-data; boundary=x"}, 400, None),
]


async def test_what_breaks_a_rule_is_pointed_at_and_leaves_nothing(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    for query, headers, status, pointer in BAD:
        answer = await api.post(URL + query, content=CLIP, headers=headers)
        assert answer.status_code == status, (query, headers, answer.text)
        if pointer is not None:
            assert answer.json()["errors"][0]["pointer"] == pointer, (query, headers)
    assert await nothing(services)


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + end


VIDEO = ('Content-Disposition: form-data; name="video"; filename="v"', CLIP)
BAD_FORMS = [
    (form(VIDEO, end=b""), 400, None),
    (form(VIDEO)[:-40], 400, None),
    (b"--y--\r\n", 400, None),
    (form(("Content-Disposition: form-data", b"")), 400, None),
    (form(("X: y", b"")), 400, None),
    (form(('Content-Disposition: attachment; name="video"', b"")), 400, None),
    (form(('Content-Disposition: form-data; name="video"\r\nContent-Transfer-Encoding: base64', b"eA==")), 400, None),
    (form(('Content-Disposition: form-data; name="video"\r\nX: ' + "y" * 70_000, b"")), 400, None),
    (form(('Content-Disposition: form-data; name="video"' + "\r\nX: y" * 100, b"")), 400, None),
    (form((f'Content-Disposition: form-data; name="{"v" * 300}"', b"")), 400, None),
    (form(*[(f'Content-Disposition: form-data; name="a{n}"', b"") for n in range(201)]), 400, None),
    (form(VIDEO, VIDEO), 422, "/form/video"),
    (form(VIDEO, ('Content-Disposition: form-data; name="other"; filename="o"', b"")), 422, "/form/other"),
    (form(VIDEO, ('Content-Disposition: form-data; name="width"', b"\xff")), 422, "/form/width"),
    (form(VIDEO, ('Content-Disposition: form-data; name="mark"', b"\0")), 422, "/form/mark"),
    (form(VIDEO, ('Content-Disposition: form-data; name="mark"', b"m" * MIB + b"m")), 422, "/form/mark"),
    (form(VIDEO, ('Content-Disposition: form-data; name="width"', b"1.5")), 422, "/width"),
]


async def test_a_form_that_breaks_a_rule_leaves_nothing(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    for content, status, pointer in BAD_FORMS:
        answer = await api.post(URL, content=content, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert answer.status_code == status, (content[:200], answer.text)
        if pointer is not None:
            assert answer.json()["errors"][0]["pointer"] == pointer, content[:200]
    assert await nothing(services)


async def nothing(services: Services) -> bool:
    """Whether neither a job nor a file is there."""
    async with services.pool.acquire() as conn:
        rows = await conn.fetchval("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM artifacts)")
    return rows == 0 and not await objects(services)


async def test_the_same_key_and_file_is_the_same_job(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    key = {"Idempotency-Key": "once"}
    first = await api.post(f"{URL}?wait=0", content=CLIP, headers=key)
    again = await api.post(f"{URL}?wait=0", content=CLIP, headers=key)
    assert again.headers["rgrid-job-id"] == first.headers["rgrid-job-id"]
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert len(await objects(services)) == 1
    for other in (
        await api.post(f"{URL}?wait=0", content=CLIP + b"x", headers=key),
        await api.post(f"{URL}?wait=0&width=17", content=CLIP, headers=key),
    ):
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await objects(services)) == 1
    at_once = {"Idempotency-Key": "at-once"}
    answers = await asyncio.gather(*(api.post(f"{URL}?wait=0", content=CLIP, headers=at_once) for _ in range(5)))
    assert len({each.headers["rgrid-job-id"] for each in answers}) == 1
    assert len(await objects(services)) == 2


async def test_a_client_that_goes_in_the_middle_leaves_nothing(
    services: Services, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "PIECE_BYTES", 5 * MIB)
    await make(api)
    arrived = asyncio.Event()
    put_part = services.store.put_part

    async def noticed(*args: Any) -> Any:
        arrived.set()
        return await put_part(*args)

    monkeypatch.setattr(services.store, "put_part", noticed)

    async def content() -> AsyncIterator[bytes]:
        for _ in range(7):
            yield bytes(MIB)
        await arrived.wait()
        await asyncio.Event().wait()

    async with outside(services) as client:
        sending = asyncio.ensure_future(client.post(URL, content=content()))
        await arrived.wait()
        async with services.pool.acquire() as conn:
            row = await conn.fetchrow("SELECT object_key, upload_id FROM artifacts")
        sending.cancel()
        await soon(lambda: nothing(services))
    assert await services.store.parts(row["object_key"], row["upload_id"]) is None


async def test_a_file_that_came_slowly_passes_the_limits_of_now(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    limit = {"concurrency": {"limit": 1, "onLimit": "reject"}}

    async def content() -> AsyncIterator[bytes]:
        yield CLIP
        await make_function(api, params=PARAMS, job={"image": "busybox:1", "files": FILES}, queue=limit)
        yield CLIP

    first = await api.post(f"{URL}?wait=0", content=content())
    assert (await api.get(f"/v1/jobs/{first.headers['rgrid-job-id']}")).json()["version"] == 1
    second = await api.post(f"{URL}?wait=0", content=CLIP)
    assert (first.status_code, second.status_code) == (303, 429)


async def test_a_body_that_stops_coming_is_408(
    services: Services, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "PATIENCE_S", 0.2)
    await make(api)

    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BOOTSTRAP_KEY}\r\nContent-Length: 10\r\n\r\n"
    async with listening(services) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head.encode() + b"x")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408 ")
        writer.close()
    assert await nothing(services)


async def test_a_file_over_the_limit_is_413(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    services.settings = services.settings.model_copy(update={"largest_upload": 1000})
    for content in (b"x" * 1001, _pieces(b"x" * 500, 3)):
        answer = await api.post(URL, content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert await nothing(services)


async def _pieces(piece: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


async def test_memory_is_flat_while_a_large_file_goes_in_and_out(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    size = 64 * MIB
    piece = b"\x17" * 65536
    digest = hashlib.sha256(piece * (size // len(piece))).hexdigest()

    async def back(node: Node, lease: dict[str, Any]) -> None:
        # Its file is the input's object: nothing large passes through this process but what is measured.
        await node.finish(lease, "failed")

    async with outside(services) as client, working(services, back) as leases:
        tracemalloc.start()
        try:
            answer = await client.post(URL, content=_pieces(piece, size // len(piece)))
            assert answer.status_code == 502
            _, peak_in = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert leases[0]["inputs"][1]["sha256"] == digest
    assert peak_in < 40 * MIB, f"{peak_in / MIB:.0f} MiB"


async def test_the_file_comes_out_with_flat_memory(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    data = b"\x17" * (64 * MIB)
    digest = hashlib.sha256(data).hexdigest()

    async def answer(node: Node, lease: dict[str, Any]) -> None:
        await node.finish(lease, artifacts=[await node.upload(lease, "thumbnail", "/out/thumb.jpg", data)])

    async with outside(services) as client, working(services, answer):
        job = (await client.post(f"{URL}?wait=20", content=CLIP, timeout=30)).headers["rgrid-job-id"]
        received, got = hashlib.sha256(), 0
        tracemalloc.start()
        try:
            async with client.stream("GET", f"{URL}/jobs/{job}") as stream:
                async for chunk in stream.aiter_raw():
                    received.update(chunk)
                    got += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (got, received.hexdigest()) == (len(data), digest)
    assert peak < 16 * MIB, f"{peak / MIB:.0f} MiB"


async def test_a_client_that_takes_only_the_beginning_stops_the_download(
    services: Services, api: httpx.AsyncClient
) -> None:
    await make(api)
    data = b"\x17" * (16 * MIB)

    async def answer(node: Node, lease: dict[str, Any]) -> None:
        await node.finish(lease, artifacts=[await node.upload(lease, "thumbnail", "/out/thumb.jpg", data)])

    async with outside(services) as client, working(services, answer):
        job = (await client.post(f"{URL}?wait=20", content=CLIP)).headers["rgrid-job-id"]
        async with client.stream("GET", f"{URL}/jobs/{job}") as stream:
            async for _ in stream.aiter_raw():
                break
        whole = await client.get(f"{URL}/jobs/{job}")
    assert whole.content == data


async def test_another_projects_key_finds_nothing(services: Services, api: httpx.AsyncClient) -> None:
    await make(api)
    job = (await api.post(f"{URL}?wait=0", content=CLIP)).headers["rgrid-job-id"]
    async with project_client(services) as stranger:
        for path in (URL, "/f/default/none"):
            answer = await stranger.post(path, content=CLIP)
            assert (answer.status_code, answer.json()["code"]) == (404, "function_not_found")
        assert (await stranger.get(f"{URL}/jobs/{job}")).status_code == 404
    assert (await api.get(f"/f/default/other/jobs/{job}")).status_code == 404
    assert (await api.get(f"/f/other/thumbnail/jobs/{job}")).status_code == 404
    async with key_client(services, "invoke:thumbnail") as mine, key_client(services, "invoke:other") as other:
        own = await mine.post(f"{URL}?wait=0", content=CLIP)
        assert own.status_code == 303
        assert (await mine.get(own.headers["location"])).status_code == 303
        for client in (mine, other):
            assert (await client.get(f"{URL}/jobs/{job}?wait=0")).status_code == 404
        assert (await other.post(URL, content=CLIP)).status_code == 403
    async with key_client(services, "read") as reader:
        assert (await reader.post(URL, content=CLIP)).status_code == 403
        assert (await reader.get(f"{URL}/jobs/{job}?wait=0")).status_code == 303


async def test_a_store_that_is_away_is_503_and_no_job_is_made(
    services: Services, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(api)

    async def away(*_: Any) -> None:
        raise Unavailable("the object store does not answer", code="store_unavailable")

    monkeypatch.setattr(services.store, "put", away)
    answer = await api.post(URL, content=CLIP)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert await nothing(services)
