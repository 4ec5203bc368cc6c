"""Docker's Engine API over its local socket: one asynchronous client, plain dictionaries in and out.

Spoken over httpx, which the agent has anyway. The SDK blocks: each running job would hold two of its threads,
an engine that hangs would keep them for ever, and it costs the agent 8 MB.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

NEWEST_API = (1, 51)
"""What this code is written for; a newer engine still speaks it."""
CALL_S = 30.0
HEADERS_S = 30.0


class DockerError(Exception):
    """The engine refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message


class DockerSilent(Exception):
    """The engine cannot be reached, does not answer in time, or broke off."""


class DockerSlow(DockerSilent):
    """No answer in time; the connection was good."""


class DockerApi:
    """Calls of one engine. Raises ``DockerError`` or ``DockerSilent``, nothing else."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._version = ""
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=self.socket, limits=httpx.Limits(max_connections=None, max_keepalive_connections=8)
            ),
            base_url="http://docker",
            timeout=None,  # noqa: S113 - each call has its own, over all of it
            trust_env=False,
        )

    async def connect(self) -> dict[str, Any]:
        """Agree on a version of the API; answers what the engine says of itself."""
        about: dict[str, Any] = await self.call("GET", "/version")
        offered = tuple(int(part) for part in about["ApiVersion"].split("."))
        self._version = "/v{}.{}".format(*min(offered, NEWEST_API))
        return about

    async def aclose(self) -> None:
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer's JSON, None if it is empty."""
        timeout_s = CALL_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.send(self._request(method, path, query, body, headers=headers))
        except TimeoutError:
            raise DockerSlow(f"no answer within {timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise DockerSilent(_words(error)) from error
        _refused(answer.status_code, answer.content)
        return json.loads(answer.content) if answer.content else None

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: AsyncIterator[bytes] | None = None,
        headers_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """An answer whose body is still to come; close it. ``content``: a tar to send."""
        headers_s = HEADERS_S if headers_s is None else headers_s
        try:
            async with asyncio.timeout(headers_s):
                request = self._request(method, path, query, None, content=content, headers=headers)
                answer = await self._client.send(request, stream=True)
                if answer.status_code >= 400:
                    await answer.aread()
        except TimeoutError:
            raise DockerSlow(f"no answer within {headers_s:g} s") from None
        except httpx.HTTPError as error:
            raise DockerSilent(_words(error)) from error
        if answer.status_code >= 400:
            _refused(answer.status_code, answer.content)
        return answer

    @asynccontextmanager
    async def messages(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any],
        content: AsyncIterator[bytes] | None = None,
        headers_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The JSON lines of a long answer; leaving early makes the engine stop what it does."""
        answer = await self.open(method, path, query=query, content=content, headers_s=headers_s, headers=headers)
        try:
            yield _json_lines(answer)
        finally:
            await answer.aclose()

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        *,
        content: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        values = {
            key: json.dumps(value) if isinstance(value, dict) else value for key, value in (query or {}).items()
        }
        sent = dict(headers or {}) if content is None else {"Content-Type": "application/x-tar", **(headers or {})}
        return self._client.build_request(
            method, self._version + path, params=values, json=body, content=content, headers=sent
        )


async def _json_lines(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in answer.aiter_lines():
            if line:
                yield json.loads(line)
    except httpx.HTTPError as error:
        raise DockerSilent(_words(error)) from error


def _refused(status: int, content: bytes) -> None:
    if status < 400:
        return
    try:
        message = json.loads(content)["message"]
    except (ValueError, KeyError, TypeError):
        message = content.decode(errors="replace")
    raise DockerError(status, str(message).strip()[:2000])


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
