"""The store against a real server. What rclone refuses, other stores may let pass: see test_artifacts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from functions.errors import Unavailable
from functions.s3 import S3Config, S3Store, attachment, clean_media_type
from tests.s3 import S3Server

BODY = b"hello, store"
OTHER = b"HELLO, STORE"


def presigned(store: S3Store, key: str, body: bytes = BODY, kind: str = "image/jpeg") -> tuple[str, dict[str, str]]:
    md5, sha256 = hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest()
    return store.presign_put(key, len(body), md5, sha256, kind)


async def put(url: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.put(url, headers=headers, content=body)


async def get(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(url, headers=headers)


@pytest.mark.parametrize("body", [BODY, b"", b"\x00" * 3_000_000])
async def test_what_is_put_by_url_comes_back_by_url(store: S3Store, body: bytes) -> None:
    key = "1/job_a/1/art_b"
    url, headers = presigned(store, key, body)
    assert (await put(url, headers, body)).status_code == 200

    head = await store.head(key)
    assert head is not None
    assert (head.size, head.etag.strip('"')) == (len(body), hashlib.md5(body).hexdigest())
    assert head.sha256 in (None, hashlib.sha256(body).hexdigest())

    answer = await get(store.presign_get(key, "thumb ü.jpg", "image/jpeg", 60))
    assert (answer.status_code, answer.content) == (200, body)
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"thumb _.jpg\"; filename*=UTF-8''thumb%20%C3%BC.jpg"
    )


async def test_every_property_of_an_upload_is_signed(store: S3Store) -> None:
    url, headers = presigned(store, "k")
    signed = set(parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"][0].split(";"))
    assert signed == {"host", *headers}
    assert set(headers) == {"content-length", "content-type", "content-md5", "x-amz-checksum-sha256"}


@pytest.mark.parametrize(
    ("change", "body"),
    [
        pytest.param({}, OTHER, id="other bytes of the same length"),
        pytest.param({"content-length": str(len(BODY) + 1)}, BODY + b"x", id="longer"),
        pytest.param({"content-length": str(len(BODY) - 1)}, BODY[:-1], id="shorter"),
        pytest.param({"content-type": "text/html"}, BODY, id="another type"),
        pytest.param({"content-md5": base64.b64encode(hashlib.md5(OTHER).digest()).decode()}, OTHER, id="other md5"),
        pytest.param({"content-md5": None}, OTHER, id="no md5"),
        pytest.param({"content-type": None}, BODY, id="no type"),
        pytest.param({"x-amz-checksum-sha256": None}, BODY, id="no sha256"),
        pytest.param({"x-amz-meta-note": "x"}, BODY, id="metadata added"),
        pytest.param({"x-amz-acl": "public-read"}, BODY, id="made public"),
    ],
)
async def test_an_upload_that_is_not_the_signed_one_is_refused(
    store: S3Store, change: dict[str, str | None], body: bytes
) -> None:
    url, headers = presigned(store, "k")
    sent = {name: value for name, value in (headers | change).items() if value is not None}
    answer = await put(url, sent, body)
    assert answer.status_code in (400, 403)
    assert await store.head("k") is None


async def test_an_upload_url_is_good_for_its_key_and_method_only(store: S3Store) -> None:
    url, headers = presigned(store, "mine")
    assert (await put(url.replace("/mine?", "/theirs?"), headers, BODY)).status_code == 403
    assert (await get(url)).status_code == 403
    assert (await put(store.presign_get("mine", "f", "a/b", 60), {}, BODY)).status_code == 403
    assert await store.head("theirs") is None


async def test_urls_stop_working_when_they_expire(s3_server: S3Server) -> None:
    async with S3Store(s3_server.config(bucket="expiry", upload_s=1)) as store:
        await store.ensure_bucket()
        upload, headers = presigned(store, "late")
        download = store.presign_get("late", "f", "a/b", 1)
        await asyncio.sleep(2.1)  # the clock of the signature is the wall's, in whole seconds
        assert (await put(upload, headers, BODY)).status_code in (400, 403)
        assert (await get(download)).status_code in (400, 403)
        assert await store.head("late") is None


async def test_deleting_is_fine_for_keys_that_do_not_exist(store: S3Store) -> None:
    url, headers = presigned(store, "k")
    await put(url, headers, BODY)
    await store.delete(["k", "never"])
    await store.delete([])
    assert await store.head("k") is None


async def test_ensuring_a_bucket_may_be_done_by_many_at_once(s3_server: S3Server) -> None:
    async with S3Store(s3_server.config(bucket="at-once")) as store:
        await asyncio.gather(*(store.ensure_bucket() for _ in range(8)))
        await store.check()


async def test_a_missing_bucket_fails_the_check(s3_server: S3Server) -> None:
    async with S3Store(s3_server.config(bucket="missing")) as store:
        with pytest.raises(Unavailable):
            await store.check()


async def test_a_wrong_key_is_unavailable_not_a_traceback(s3_server: S3Server) -> None:
    config = s3_server.config()
    wrong = S3Config(config.endpoint, config.endpoint, config.region, config.bucket, "another-key", "secret")
    async with S3Store(wrong) as store:
        with pytest.raises(Unavailable, match="refused"):
            await store.ensure_bucket()


def test_presigned_urls_name_the_public_endpoint_and_never_the_secret() -> None:
    config = S3Config("http://127.0.0.1:9", "https://files.example.com", "fsn1", "rgrid", "id", "the-secret")
    store = S3Store(config)
    url = store.presign_get("1/a b/ü", "f.txt", "text/plain", 60)
    assert url.startswith("https://files.example.com/rgrid/1/a%20b/%C3%BC?")
    assert "the-secret" not in url + repr(config)


def test_presigning_needs_no_network_and_less_than_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("presigning opened a socket")

    store = S3Store(S3Config("http://127.0.0.1:9", "https://files.example.com", "fsn1", "rgrid", "id", "secret"))
    presigned(store, "warm")
    monkeypatch.setattr(socket, "socket", refuse)
    fastest = []
    for _ in range(200):
        started = time.perf_counter()
        presigned(store, "key")
        fastest.append(time.perf_counter() - started)
    assert sorted(fastest)[len(fastest) // 2] < 0.001


@pytest.fixture
def own_server() -> Iterator[S3Server]:
    folder = Path(tempfile.mkdtemp(prefix="rgrid-s3-own-"))
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


async def test_a_store_that_was_killed_is_unavailable_and_usable_again_after_its_return(
    own_server: S3Server,
) -> None:
    async with S3Store(own_server.config()) as store:
        await store.ensure_bucket()
        url, headers = presigned(store, "kept")
        await put(url, headers, BODY)
        own_server.stop(signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="does not answer"):
            await store.head("kept")
        with pytest.raises(Unavailable):
            await store.delete(["kept"])
        assert time.monotonic() - started < 15
        own_server.start()
        head = await store.head("kept")
        assert head is not None and head.size == len(BODY)


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """The kernel accepts connections, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_silent_store_is_unavailable_after_bounded_time(
    silent_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.s3.READ_S", 0.2)
    async with S3Store(S3Config(silent_endpoint, silent_endpoint, "us-east-1", "b", "some-id", "secret")) as store:
        with pytest.raises(Unavailable, match="does not answer"):
            await store.head("k")


NAMES = [
    ("thumb.jpg", "attachment; filename=\"thumb.jpg\"; filename*=UTF-8''thumb.jpg"),
    ('a"b\\c/d.txt', "attachment; filename=\"a_b_c_d.txt\"; filename*=UTF-8''a_b_c_d.txt"),
    (
        "a\r\nSet-Cookie: x=1",
        "attachment; filename=\"aSet-Cookie: x=1\"; filename*=UTF-8''aSet-Cookie%3A%20x%3D1",
    ),
    ("gpj.\u202eexe", "attachment; filename=\"gpj.exe\"; filename*=UTF-8''gpj.exe"),
    ("50%;.txt", "attachment; filename=\"50__.txt\"; filename*=UTF-8''50%25%3B.txt"),
    ("..", "attachment; filename=\"file\"; filename*=UTF-8''file"),
    ("", "attachment; filename=\"file\"; filename*=UTF-8''file"),
    ("\ud800", "attachment; filename=\"file\"; filename*=UTF-8''file"),
    ("日本.txt", "attachment; filename=\"__.txt\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC.txt"),
]


@pytest.mark.parametrize(("name", "header"), NAMES)
def test_a_download_has_a_safe_name(name: str, header: str) -> None:
    assert attachment(name) == header


def test_a_long_name_is_cut() -> None:
    assert len(attachment("ü" * 5000)) < 1000


@pytest.mark.parametrize(
    "text", ["", "a\nb", "a b\r\nx: y", "ü/x", "x" * 256, " text/plain", "text/plain ", "a\x00b", "\ud800"]
)
def test_a_type_that_is_no_header_value_becomes_any_bytes(text: str) -> None:
    assert clean_media_type(text) == "application/octet-stream"


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/x-www-form-urlencoded; charset=utf-8"])
async def test_types_with_parameters_can_be_uploaded(store: S3Store, kind: str) -> None:
    url, headers = presigned(store, "typed", kind=kind)
    assert (await put(url, headers, BODY)).status_code == 200


async def test_objects_are_listed_in_the_order_of_their_keys_from_behind_one(store: S3Store) -> None:
    keys = ["1/job_a/1/art_b", "1/job_a/2/art_a", "1/uploads/art_a", "10/uploads/art_c", "2/uploads/art_d"]
    for key in reversed(keys):
        await store.put(key, key.encode(), "text/plain")
    assert [each.key for each in await store.list_objects("", 100)] == keys
    (found,) = await store.list_objects(keys[2], 1)
    assert (found.key, found.size) == (keys[3], len(keys[3]))
    assert abs(found.modified_at.timestamp() - time.time()) < 60
    assert await store.list_objects(keys[-1], 10) == []
