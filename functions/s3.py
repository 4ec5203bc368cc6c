"""The store on any S3-compatible server: MinIO, Garage, SeaweedFS, Ceph RGW (Hetzner), AWS, rclone.

Presigned URLs are signed here, without a client: the signature is arithmetic over the endpoint that users and
nodes see, which need not be the one that this process calls. An upload URL signs the key, ``content-length``,
``content-type``, ``content-md5`` and ``x-amz-checksum-sha256``.

Tried on rclone 1.75 (``serve s3``): another length, type, digest, key or method is refused with 403, also when
a signed header is left out or an ``x-amz-*`` one added; a chunked body with 403, so the length must be sent;
other bytes of the same length with 400 BadDigest, and nothing is stored; an expired URL with 400 AccessDenied.
The digest that it looks at is ``content-md5``: ``x-amz-checksum-sha256`` it keeps and tells, whatever the bytes are.
Stores differ in what they enforce (SECURITY §5.4), so ``artifacts.verify`` asks for size and digests afterwards.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import aioboto3
import aiohttp
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from functions.artifacts import ObjectHead, Part, StoredObject
from functions.errors import NotFound, Unavailable

CONNECT_S, READ_S, TRIES = 3, 15, 3
CHUNK_BYTES = 64 * 1024
DELETE_BATCH = 1000
"""Keys of one DeleteObjects call, by the protocol."""

_MEDIA_TYPE = re.compile(r"[!-~]+(?: [!-~]+)*")


@dataclass(frozen=True, slots=True)
class S3Config:
    """``public_endpoint`` is the same store as users and nodes reach it; endpoints carry no path."""

    endpoint: str
    public_endpoint: str
    region: str
    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    upload_s: int = 3600


class S3Store:
    """``Store`` over one shared client, open between ``async with``; presigning works without."""

    def __init__(self, config: S3Config) -> None:
        self._config = config
        self._credentials = Credentials(config.access_key_id, config.secret_access_key)
        self._client: Any = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        session = aioboto3.Session()
        self._client = await self._opened.enter_async_context(
            session.client(
                "s3",
                endpoint_url=self._config.endpoint,
                region_name=self._config.region,
                aws_access_key_id=self._config.access_key_id,
                aws_secret_access_key=self._config.secret_access_key,
                config=Config(
                    signature_version="s3v4",
                    # A bucket in the host name needs DNS that small stores lack.
                    s3={"addressing_style": "path"},
                    # The default adds CRC trailers to every call, which several stores refuse.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    connect_timeout=CONNECT_S,
                    read_timeout=READ_S,
                    retries={"total_max_attempts": TRIES, "mode": "standard"},
                    max_pool_connections=32,
                    proxies={},
                ),
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()
        self._client = None

    async def ensure_bucket(self) -> None:
        with _store_errors():
            try:
                await self._client.head_bucket(Bucket=self._config.bucket)
            except ClientError as error:
                if _status(error) != 404:
                    raise
            else:
                return
            try:
                await self._client.create_bucket(Bucket=self._config.bucket, **self._where())
            except ClientError as error:
                # Several processes start at once: another one was faster.
                if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
                await self._client.head_bucket(Bucket=self._config.bucket)

    def _where(self) -> dict[str, Any]:
        # AWS refuses the default region's name here and demands any other's.
        if self._config.region == "us-east-1":
            return {}
        return {"CreateBucketConfiguration": {"LocationConstraint": self._config.region}}

    async def check(self) -> None:
        with _store_errors():
            await self._client.head_bucket(Bucket=self._config.bucket)

    async def head(self, key: str) -> ObjectHead | None:
        with _store_errors():
            try:
                answer = await self._client.head_object(
                    Bucket=self._config.bucket, Key=key, ChecksumMode="ENABLED"
                )
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
        sha256 = _sha256(answer.get("ChecksumSHA256"))
        return ObjectHead(answer["ContentLength"], answer.get("ETag", ""), sha256)

    async def list_objects(self, after: str, limit: int) -> list[StoredObject]:
        with _store_errors():
            answer = await self._client.list_objects_v2(
                Bucket=self._config.bucket, MaxKeys=limit, **({"StartAfter": after} if after else {})
            )
        found = answer.get("Contents") or ()
        return [StoredObject(each["Key"], each["Size"], each["LastModified"].astimezone(UTC)) for each in found]

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), DELETE_BATCH):
            batch = [{"Key": key} for key in keys[start : start + DELETE_BATCH]]
            with _store_errors():
                answer = await self._client.delete_objects(
                    Bucket=self._config.bucket, Delete={"Objects": batch, "Quiet": True}
                )
            if faults := answer.get("Errors"):
                raise Unavailable(f"the object store kept {len(faults)} object(s): {faults[0].get('Code')}")

    async def begin_multipart(self, key: str, content_type: str) -> str:
        with _store_errors():
            answer = await self._client.create_multipart_upload(
                Bucket=self._config.bucket, Key=key, ContentType=clean_media_type(content_type)
            )
        return str(answer["UploadId"])

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        with _store_errors():
            answer = await self._client.upload_part(
                Bucket=self._config.bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=data
            )
        return Part(number, len(data), answer["ETag"])

    async def parts(self, key: str, upload_id: str) -> Sequence[Part] | None:
        found = []
        marker = 0
        while True:
            try:
                with _store_errors():
                    answer = await self._client.list_parts(
                        Bucket=self._config.bucket, Key=key, UploadId=upload_id, PartNumberMarker=marker
                    )
            except Unavailable as error:
                if _is_over(error):
                    return None
                raise
            found += [Part(each["PartNumber"], each["Size"], each["ETag"]) for each in answer.get("Parts") or ()]
            if not answer.get("IsTruncated"):
                return found
            marker = answer["NextPartNumberMarker"]

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        ordered = [{"PartNumber": each.number, "ETag": each.etag} for each in parts]
        try:
            with _store_errors():
                await self._client.complete_multipart_upload(
                    Bucket=self._config.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": ordered}
                )
        except Unavailable as error:
            if not _is_over(error):
                raise

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        try:
            with _store_errors():
                await self._client.abort_multipart_upload(Bucket=self._config.bucket, Key=key, UploadId=upload_id)
        except Unavailable as error:
            if not _is_over(error):
                raise

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        with _store_errors():
            await self._client.put_object(
                Bucket=self._config.bucket, Key=key, Body=data, ContentType=clean_media_type(content_type)
            )

    @asynccontextmanager
    async def read(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            with _store_errors():
                answer = await self._client.get_object(Bucket=self._config.bucket, Key=key)
        except Unavailable as error:
            if isinstance(error.__cause__, ClientError) and _status(error.__cause__) == 404:
                raise NotFound("the file is not in the store any more", code="artifact_not_found") from None
            raise
        async with answer["Body"] as body:
            yield _chunks(body)

    def presign_put(
        self, key: str, size: int, md5_hex: str | None, sha256_hex: str, content_type: str
    ) -> tuple[str, dict[str, str]]:
        headers = {
            "content-length": str(size),
            "content-type": clean_media_type(content_type),
            "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(sha256_hex)).decode(),
        }
        if md5_hex is not None:
            headers["content-md5"] = base64.b64encode(bytes.fromhex(md5_hex)).decode()
        return self._presign("PUT", key, self._config.upload_s, headers=headers), headers

    def presign_part(self, key: str, upload_id: str, number: int, size: int) -> tuple[str, dict[str, str]]:
        headers = {"content-length": str(size)}
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._presign("PUT", key, self._config.upload_s, headers=headers, query=query), headers

    def presign_get(
        self, key: str, filename: str, content_type: str, expires_s: int, *, method: str = "GET"
    ) -> str:
        query = {
            "response-content-disposition": attachment(filename),
            "response-content-type": clean_media_type(content_type),
        }
        return self._presign(method, key, expires_s, query=query)

    def _presign(
        self,
        method: str,
        key: str,
        expires_s: int,
        *,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
    ) -> str:
        url = f"{self._config.public_endpoint.rstrip('/')}/{self._config.bucket}/{quote(key, safe='/-_.~')}"
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        request = AWSRequest(method=method, url=url, headers=dict(headers or {}))
        S3SigV4QueryAuth(self._credentials, "s3", self._config.region, expires=expires_s).add_auth(request)
        return str(request.url)


def clean_media_type(text: str) -> str:
    """``text`` if it can stand in a header as it is; else the type of any bytes."""
    # The one value that botocore takes for its own default and leaves unsigned.
    if text == "application/x-www-form-urlencoded; charset=utf-8":
        return "application/x-www-form-urlencoded"
    return text if len(text) <= 255 and _MEDIA_TYPE.fullmatch(text) else "application/octet-stream"


def attachment(filename: str) -> str:
    """A ``Content-Disposition`` that saves the file under this name (RFC 6266), whatever is in the name.

    An output is a stranger's bytes: a browser must not render it (SECURITY S76).
    """
    # Categories C*: control, format (which can turn the direction of text), surrogate, private use.
    visible = "".join(c for c in filename if unicodedata.category(c)[0] != "C")
    name = visible.translate(dict.fromkeys(map(ord, '/\\"'), "_")).strip(" .")[:120] or "file"
    plain = "".join(c if " " <= c <= "~" and c not in "%;" else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _sha256(encoded: str | None) -> str | None:
    """Hex of a base64 digest; None for a composed one (``…-3``) or none."""
    try:
        digest = base64.b64decode(encoded or "", validate=True)
    except ValueError:
        return None
    return digest.hex() if len(digest) == 32 else None


async def _chunks(body: Any) -> AsyncIterator[bytes]:
    with _store_errors():
        async for chunk in body.content.iter_chunked(CHUNK_BYTES):
            yield chunk


def _is_over(error: Unavailable) -> bool:
    """Whether the store says that there is no such multipart upload (any more)."""
    cause = error.__cause__
    return isinstance(cause, ClientError) and (
        cause.response.get("Error", {}).get("Code") == "NoSuchUpload" or _status(cause) == 404
    )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def _store_errors() -> Iterator[None]:
    """Whatever goes wrong over there is ``Unavailable``: the same call may work later."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "?")
        raise Unavailable(
            f"the object store refused {error.operation_name}: {code}", code="store_unavailable"
        ) from error
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:
        raise Unavailable(
            f"the object store does not answer: {type(error).__name__}", code="store_unavailable"
        ) from error
