"""The agent's side of ``nodes/protocol.py``: the only thing here that talks to the gateway.

A call that may be repeated is: after connection errors, 5xx and 429 it is sent again, with full jitter, until
it is answered or its caller gives up (``asyncio.timeout``). Everything but ``claim`` is safe to repeat at the
gateway; a claim whose answer got lost costs the wait until that lease runs out.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping, Sequence
from typing import TypeVar

import httpx
import structlog
from pydantic import BaseModel, ValidationError

from nodes.protocol import (
    AttemptReport,
    ClaimAnswer,
    ClaimRequest,
    CollectedFile,
    Empty,
    FinishAnswer,
    HeartbeatAnswer,
    HeartbeatRequest,
    HeldLease,
    JoinAnswer,
    JoinRequest,
    LogAnswer,
    ReleaseRequest,
    Upload,
    UploadAnswer,
    UploadRequest,
)

log = structlog.get_logger()
Answer = TypeVar("Answer", bound=BaseModel)

BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.1, 5.0
RETRY_AFTER_MOST_S = 30.0
CONNECT_S = 5.0


class GatewayError(Exception):
    """The gateway did not do what it was asked. The message is one line."""


class LeaseLost(GatewayError):
    """The lease is not this node's any more: its container must stop, nothing may be reported."""


class CredentialRevoked(GatewayError):
    """The gateway does not know this node (any more)."""


class Refused(GatewayError):
    """An answer that repeating the call would not change."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{status} {code}: {detail}"[:500])
        self.status = status
        self.code = code
        self.detail = detail


class Unreachable(GatewayError):
    """No usable answer: the connection failed, or the gateway cannot answer now."""

    def __init__(self, message: str, retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GatewayClient:
    """One per identity. ``credential`` is this node's bearer token."""

    def __init__(self, url: str, credential: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url + "/node/v1",
            headers={"authorization": f"Bearer {credential}", "user-agent": "rgrid-node"},
            timeout=httpx.Timeout(30, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=15),
            trust_env=False,
            verify=tls_context(url),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def join(self, request: JoinRequest) -> JoinAnswer:
        """Redeem a join token; repeats itself with the same pair until answered. A bad token raises
        ``Refused``."""
        return await self._insist("join", request, JoinAnswer, timeout_s=15, anonymous=True)

    async def claim(self, free_slots: int, wait_s: float) -> ClaimAnswer:
        """Up to ``free_slots`` worth of leases, waiting up to ``wait_s`` for the first; maybe none."""
        request = ClaimRequest(free_slots=free_slots, wait_s=wait_s)
        return await self._insist("leases", request, ClaimAnswer, timeout_s=wait_s + 10)

    async def heartbeat(self, held: Sequence[HeldLease], timeout_s: float) -> HeartbeatAnswer:
        """Renew leases. Tried once: what to say next is the caller's to know. Raises ``Unreachable``."""
        request = HeartbeatRequest(leases=list(held))
        return await self._once("heartbeat", request, HeartbeatAnswer, timeout_s=timeout_s)

    async def ship_log(self, job_id: str, token: str, attempt: int, position: int, chunk: bytes) -> int:
        """Append to an attempt's log at a byte position; returns where the next chunk belongs.

        An empty chunk only asks. Sent again it changes nothing, since the position names its place.
        """
        answer = await self._insist(
            f"jobs/{job_id}/logs?attempt={attempt}&position={position}",
            chunk,
            LogAnswer,
            headers={"rgrid-lease": token, "content-type": "application/octet-stream"},
        )
        return answer.next_position

    async def request_uploads(self, job_id: str, token: str, files: Sequence[CollectedFile]) -> list[Upload]:
        """Presigned PUTs for the files of an attempt, in their order."""
        request = UploadRequest(token=token, files=list(files))
        return (await self._insist(f"jobs/{job_id}/outputs", request, UploadAnswer, timeout_s=60)).uploads

    async def finish(self, job_id: str, report: AttemptReport) -> FinishAnswer:
        """Report how an attempt ended. The gateway looks at every upload first, so this may take a while."""
        return await self._insist(f"jobs/{job_id}/finish", report, FinishAnswer, timeout_s=120)

    async def release(self, job_id: str, token: str, reason: str) -> None:
        """Hand a job back: it is ready again at once."""
        await self._insist(
            f"jobs/{job_id}/release", ReleaseRequest(token=token, reason=reason), Empty, timeout_s=10
        )

    async def leave(self) -> None:
        """This node is going for good."""
        await self._insist("leave", Empty(), Empty, timeout_s=10)

    async def _insist(
        self,
        path: str,
        body: BaseModel | bytes,
        answer: type[Answer],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30,
        anonymous: bool = False,
    ) -> Answer:
        failures = 0
        while True:
            try:
                return await self._once(
                    path, body, answer, headers=headers, timeout_s=timeout_s, anonymous=anonymous
                )
            except Unreachable as error:
                # The first failures are silent: a gateway that restarts, a connection that it closed.
                if failures == 3:
                    log.warning("gateway unreachable", call=path.split("?", maxsplit=1)[0], error=str(error))
                most_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**failures)
                failures = min(failures + 1, 16)
                await asyncio.sleep(max(error.retry_after_s, random.random() * most_s))  # noqa: S311

    async def _once(
        self,
        path: str,
        body: BaseModel | bytes,
        answer: type[Answer],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        anonymous: bool = False,
    ) -> Answer:
        if isinstance(body, BaseModel):
            body, headers = body.model_dump_json().encode(), {"content-type": "application/json"}
        request = self._http.build_request(
            "POST", path, content=body, headers=headers, timeout=httpx.Timeout(timeout_s, connect=CONNECT_S)
        )
        if anonymous:
            del request.headers["authorization"]
        try:
            # httpx's limits are for each read: a gateway that trickles must not hold a call for ever.
            async with asyncio.timeout(timeout_s + CONNECT_S):
                response = await self._http.send(request)
        except (httpx.TransportError, TimeoutError) as error:
            raise Unreachable(f"{type(error).__name__} {error}".strip()) from None
        if response.is_success:
            try:
                return answer.model_validate_json(response.content)
            except ValidationError as error:
                # A proxy's page, or a gateway of another release.
                raise Unreachable(
                    f"the answer is not a {answer.__name__}: {error.error_count()} errors"
                ) from None
        raise _failure(response, anonymous)


def tls_context(url: str) -> ssl.SSLContext | bool:
    """The system's trusted authorities (SSL_CERT_FILE is honoured); loading them is saved where TLS is not
    used."""
    return (
        ssl.create_default_context() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )


def _failure(response: httpx.Response, anonymous: bool) -> GatewayError:
    status, (code, detail) = response.status_code, _problem(response)
    if status == 409 and code == "lease_lost":
        return LeaseLost(detail)
    if status == 401 and not anonymous:
        return CredentialRevoked(detail)
    if status in (408, 425, 429) or status >= 500:
        return Unreachable(f"{status} {code}", _retry_after(response))
    return Refused(status, code, detail)


def _problem(response: httpx.Response) -> tuple[str, str]:
    """Code and sentence of a problem document; the bare reason for anything else."""
    try:
        body = response.json()
        return str(body.get("code", "unknown")), str(body.get("detail") or body.get("title") or "")
    except (ValueError, AttributeError):
        return "unknown", response.reason_phrase


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_MOST_S) if text.isascii() and text.isdigit() else 0.0
