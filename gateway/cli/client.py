"""The gateway's API as commands use it: one connection, patient where it is safe, failures in one line.

What may be repeated without harm is repeated after a lost answer: GETs, and requests that carry an
``Idempotency-Key`` or are the same when done twice (``repeatable``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from gateway.cli.config import Context
from gateway.cli.failures import Failed, Refused, faults_of, problem_line

CONNECT_S = 5.0
READ_S = 30.0
TRIES = 5
BUSY = frozenset({429, 502, 503, 504})
"""Answers after which the same request may succeed; the gateway gives 429 and 503 only if it did nothing."""
UNKNOWN = frozenset({502, 504})
"""Of these, what a proxy says: the request may have been carried out."""
LONGEST_PAUSE_S = 30.0


def user_agent() -> str:
    return f"rgrid/{version('rgrid')}"


def loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def segment(text: str) -> str:
    """``text`` as one segment of a path, whatever is in it."""
    return quote(text, safe="")


def pause(number: int, answer: httpx.Response | None = None) -> float:
    """Seconds to wait before the next try; ``number`` counts the failed ones, from 1."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    if asked.isdecimal():
        return float(min(int(asked[:6]), LONGEST_PAUSE_S))
    return float(min(0.2 * 2 ** (number - 1), 5.0)) * random.uniform(0.8, 1.2)  # noqa: S311


class Api:
    """The API of one gateway. Paths are those of the reference; answers are decoded JSON."""

    def __init__(self, target: Context, *, timeout_s: float = READ_S, tries: int = TRIES) -> None:
        self.url = target.url
        self._has_key = target.key is not None
        self._tries = tries
        headers = {"User-Agent": user_agent(), "Accept": "application/json"}
        if target.key is not None:
            headers["Authorization"] = f"Bearer {target.key}"
        if target.project is not None:
            headers["RGrid-Project"] = target.project
        self._http = httpx.Client(
            base_url=target.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            trust_env=not loopback(target.url),  # a proxy cannot reach this machine's own gateway
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        wait_s: float = 0.0,
        patience_s: float = 0.0,
    ) -> dict[str, Any]:
        """``wait_s`` is how long the gateway may hold its answer, ``patience_s`` how long it may be away."""
        options: dict[str, Any] = {"params": _given(params)}
        if wait_s:
            options["timeout"] = httpx.Timeout(READ_S + wait_s, connect=CONNECT_S)
        return _decoded(self, self._send("GET", path, repeatable=True, patience_s=patience_s, **options))

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"headers": dict(headers or {}), "params": _given(params)}
        if body is not None:
            options["json"] = body
        return _decoded(self, self._send("POST", path, repeatable=repeatable, **options))

    def post_bytes(self, path: str, content: bytes, *, headers: Mapping[str, str]) -> dict[str, Any]:
        """Send a body as it is; ``headers`` say what it is and carry an ``Idempotency-Key``."""
        return _decoded(self, self._send("POST", path, repeatable=True, content=content, headers=dict(headers)))

    def put(
        self, path: str, content: bytes, content_type: str, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = {"Content-Type": content_type}
        answer = self._send("PUT", path, repeatable=True, content=content, headers=headers, params=_given(params))
        return _decoded(self, answer)

    def patch(self, path: str, body: Any) -> dict[str, Any]:
        """Set what ``body`` names; the same when done twice."""
        return _decoded(self, self._send("PATCH", path, repeatable=True, json=body))

    def delete(self, path: str) -> None:
        # Not repeated: after a lost answer the second one would say that there is no such thing.
        self._send("DELETE", path, repeatable=False)

    def pages(self, path: str, params: Mapping[str, Any], *, limit: int, page: int = 100) -> dict[str, Any]:
        """Up to ``limit`` entries of a list, as one answer: ``data`` and the ``next_cursor`` behind them."""
        found: list[Any] = []
        cursor: str | None = None
        while True:
            asked = {**params, "limit": min(page, limit - len(found)), "cursor": cursor}
            answer = self.get(path, asked)
            found += answer["data"]
            cursor = answer.get("next_cursor")
            # A page may be empty and yet not the last: the gateway stops looking after a while.
            if cursor is None or len(found) >= limit:
                return {**answer, "data": found}

    @contextmanager
    def stream(
        self, path: str, params: Mapping[str, Any], *, headers: Mapping[str, str], read_s: float = READ_S
    ) -> Iterator[httpx.Response]:
        """An open answer to a GET, once; raises ``httpx.TransportError`` when the connection breaks."""
        timeout = httpx.Timeout(read_s, connect=CONNECT_S)
        with self._http.stream(
            "GET", path, params=_given(params), headers=dict(headers), timeout=timeout
        ) as answer:
            if not answer.is_success:
                answer.read()
                raise self._refused(answer)
            yield answer

    def away(self, error: httpx.HTTPError) -> Failed:
        """The failure when there is no answer."""
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return Failed(
                f"no RGrid gateway answers at {self.url}: start one with 'rgrid up' or set RGRID_URL"
            )
        if isinstance(error, httpx.TimeoutException):
            return Failed(f"the gateway at {self.url} took too long to answer: try again")
        return Failed(f"the connection to {self.url} broke ({type(error).__name__}): try again")

    def _send(
        self, method: str, path: str, *, repeatable: bool, patience_s: float = 0.0, **options: Any
    ) -> httpx.Response:
        patient_until = time.monotonic() + patience_s
        number = 0
        while True:
            number += 1
            last = number >= self._tries and time.monotonic() >= patient_until
            try:
                answer = self._http.request(method, path, **options)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                # Nobody there: say so at once, except to a command that has been talking to it for a while.
                if time.monotonic() >= patient_until:
                    raise self.away(error) from None
                time.sleep(pause(number))
            except httpx.TransportError as error:
                if last or not repeatable:
                    raise self.away(error) from None
                time.sleep(pause(number))
            else:
                if answer.is_success:
                    return answer
                again = answer.status_code in BUSY and (repeatable or answer.status_code not in UNKNOWN)
                if last or not again:
                    raise self._refused(answer)
                time.sleep(pause(number, answer))

    def _refused(self, answer: httpx.Response) -> Refused:
        status = answer.status_code
        problem = _problem(answer)
        if problem is None:
            said = f"{status} {answer.reason_phrase}".strip()
            return Refused(
                f"{self.url} answered {said}, not as an RGrid gateway does: check the URL", status=status
            )
        message = problem_line(problem)
        if status == 401:
            message += (
                f": log in again with 'rgrid login --url {self.url}', or set RGRID_API_KEY"
                if self._has_key
                else f": no API key for {self.url}, log in with 'rgrid login --url {self.url}' or set RGRID_API_KEY"
            )
        return Refused(message, status=status, code=str(problem.get("code") or ""), faults=faults_of(problem))


def _problem(answer: httpx.Response) -> dict[str, Any] | None:
    if answer.headers.get("Content-Type", "").partition(";")[0].strip() != "application/problem+json":
        return None
    try:
        problem = answer.json()
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None


def _decoded(api: Api, answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Failed(f"{api.url} does not speak RGrid's API: check the URL")
    return body


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}
