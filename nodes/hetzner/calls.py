"""One call to the API: in a thread, within a time and a budget, with the cloud's clock read off its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

import hcloud
import requests

from nodes.hetzner.budget import CallBudget
from nodes.hetzner.clock import CloudClock, steady_clock
from nodes.hetzner.faults import TooManyCalls, meaning
from nodes.hetzner.redaction import redact
from nodes.provider import ProviderError, RateLimited, Uncertain, Unreachable

ENDPOINT = "https://api.hetzner.cloud/v1"
T = TypeVar("T")

@dataclass(slots=True)
class _Outcome(Generic[T]):
    """What a thread brings back; it touches nothing that others see."""

    value: T | None = None
    error: Exception | None = None
    answers: list[tuple[datetime, Mapping[str, str]]] = field(default_factory=list)
    """Half-way moment of each exchange, and the headers that ended it."""


class Calls:
    """``await calls(lambda client: …)`` with a function that sends exactly one request."""

    def __init__(
        self,
        token: str,
        *,
        endpoint: str = ENDPOINT,
        clock: Callable[[], datetime] | None = None,
        budget: CallBudget | None = None,
        timeout_s: tuple[float, float] = (5, 15),
        whole_s: float = 40,
        threads: int = 4,
    ) -> None:
        """``timeout_s`` is for connecting, and for each wait for bytes; ``whole_s`` for all of a call, as bytes may
        trickle."""
        self._token = token
        self._endpoint = endpoint
        self._clock = clock or steady_clock()
        self.cloud_clock = CloudClock(self._clock)
        self.budget = budget or CallBudget()
        self._timeout_s = timeout_s
        self._whole_s = whole_s
        self._threads = ThreadPoolExecutor(threads, "hetzner")
        self._local = threading.local()
        self._clients: list[hcloud.Client] = []

    def now(self) -> datetime:
        """By the cloud's clock."""
        return self.cloud_clock.now()

    def clean(self, text: str) -> str:
        return redact(text, self._token)

    async def __call__(self, send: Callable[[hcloud.Client], T], *, writes: bool = False, essential: bool = False) -> T:
        """What ``send`` returns; raises ``ProviderError``s. ``writes``: an unknown outcome is ``Uncertain``."""
        until = self.budget.take(self._clock(), essential=essential)
        if until is not None:
            raise RateLimited("too many calls to the cloud in a short time", until=until + self.cloud_clock.ahead)
        try:
            outcome = await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._threads, self._run, send), self._whole_s
            )
        except TimeoutError:
            message = f"the cloud did not answer within {self._whole_s:g} s"
            raise (Uncertain(message) if writes else Unreachable(message)) from None
        for at, headers in outcome.answers:
            self._learn(at, headers)
        if outcome.error is not None:
            # Without its cause: a traceback would show texts that were not cleaned.
            raise self._error(outcome.error, outcome.answers, writes=writes) from None
        self.budget.answered()
        assert outcome.value is not None
        return outcome.value

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client._client._session.close()

    def _run(self, send: Callable[[hcloud.Client], T]) -> _Outcome[T]:
        outcome: _Outcome[T] = _Outcome()
        began = self._clock()

        def answered(response: requests.Response) -> None:
            ended = self._clock()
            outcome.answers.append((began + (ended - began) / 2, response.headers))

        try:
            self._local.answered = answered
            outcome.value = send(self._client())
        except Exception as error:
            outcome.error = error
        return outcome

    def _client(self) -> hcloud.Client:
        """This thread's own: a session is for one thread."""
        found: hcloud.Client | None = getattr(self._local, "client", None)
        if found is None:
            found = hcloud.Client(
                self._token,
                self._endpoint,
                application_name="rgrid",
                timeout=self._timeout_s,
            )
            # It would send a POST again after a timeout, find the name taken by its own first try, and answer each
            # refusal for the rate with five more calls. There is no public way to turn that off.
            assert found._client._retry_max_retries > 0
            found._client._retry_max_retries = 0
            found._client._session.hooks["response"].append(
                lambda response, *args, **kwargs: self._local.answered(response)
            )
            self._local.client = found
            self._clients.append(found)
        return found

    def _learn(self, at: datetime, headers: Mapping[str, str]) -> None:
        limit, remaining = _number(headers, "RateLimit-Limit"), _number(headers, "RateLimit-Remaining")
        if limit and remaining is not None:
            self.budget.observe(self._clock(), limit=limit, remaining=remaining)
        try:
            date = parsedate_to_datetime(headers.get("Date", ""))
        except ValueError:
            return
        if date.tzinfo is not None:
            self.cloud_clock.hear(date, at)

    def _error(
        self, error: Exception, answers: list[tuple[datetime, Mapping[str, str]]], *, writes: bool
    ) -> ProviderError:
        meant = meaning(error, writes=writes, clean=self.clean)
        if not isinstance(meant, TooManyCalls):
            self.budget.answered()
            return meant
        reset = _number(answers[-1][1], "RateLimit-Reset") if answers else None
        reset_at = None if reset is None else _moment(reset, self.cloud_clock.ahead)
        until = self.budget.refused(self._clock(), reset_at)
        return RateLimited(f"too many calls to the cloud: {meant.message}", until=until + self.cloud_clock.ahead)


def _moment(epoch_s: int, ahead: timedelta) -> datetime | None:
    """A moment of the cloud's clock by ours; None for nonsense."""
    try:
        return datetime.fromtimestamp(epoch_s, UTC) - ahead
    except (OverflowError, ValueError, OSError):
        return None


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
