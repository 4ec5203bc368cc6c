"""One attempt of a delivery: the signed exchange with its receiver, and what becomes of the delivery after it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Protocol

from functions import ids
from functions.egress import EgressFailed, EgressPolicy, EgressRefused, exchange
from functions.egress.exchange import DEADLINE_S
from functions.signing import Signer
from scheduler.deliveries import PASSING, Claimed, Exchanged
from scheduler.job_errors import storable

STEPS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds from one attempt to the next; the first is made at once."""
LEAST_S = 60.0
"""The least pause for who is too slow, or says that it is too much."""
TOO_MANY, GONE = 429, 410
EXCERPT_BYTES = 4096


class Carrier(Protocol):
    """How a message gets to its receiver."""

    async def carry(self, claimed: Claimed, signer: Signer, body: str) -> Exchanged:
        """One attempt, whatever comes of it. May be repeated: the message's id is the same each time."""


def next_state(tries: int, exchanged: Exchanged, jitter: float, kind: str = "") -> tuple[str, timedelta]:
    """What becomes of a delivery after its attempt number ``tries``, and how long it waits if it is still pending.

    ``jitter`` in [0, 1) spreads each step over ± 20 %. A receiver may ask for more patience, up to twice the step.
    """
    if exchanged.taken:
        return "delivered", timedelta(0)
    if exchanged.status == GONE or exchanged.unwanted or tries > len(STEPS_S) or kind in PASSING:
        return "exhausted", timedelta(0)
    step_s = STEPS_S[tries - 1] * (0.8 + 0.4 * jitter)
    if exchanged.timed_out or exchanged.status == TOO_MANY:
        step_s = max(step_s, LEAST_S)
    return "pending", timedelta(seconds=min(max(step_s, exchanged.retry_after_s or 0), 2 * step_s))


@dataclass(frozen=True, slots=True)
class Direct:
    """Sends messages itself, through the guard on addresses that users name."""

    policy: EgressPolicy
    deadline_s: float = DEADLINE_S

    async def carry(self, claimed: Claimed, signer: Signer, body: str) -> Exchanged:
        data, now, started_s = body.encode(), datetime.now(UTC), time.monotonic()
        headers = {
            "content-type": "application/json",
            "user-agent": "RGrid",
            **signer.headers(ids.encode(ids.MESSAGE, claimed.id), now, data),
        }
        try:
            answer = await exchange(self.policy, "POST", claimed.url, headers, data, deadline_s=self.deadline_s)
        except EgressRefused as error:
            return Exchanged(ms_since(started_s), error=storable(error.message))
        except EgressFailed as error:
            return Exchanged(
                ms_since(started_s), error.address, error=storable(error.message), timed_out=error.kind == "timeout"
            )
        taken = 200 <= answer.status < 300
        unwanted = not taken and _asks_to_stop(answer.headers)
        return Exchanged(
            answer.duration_ms,
            address=answer.address,
            status=answer.status,
            error=None if taken else _complaint(answer.status, unwanted),
            response=storable(answer.body[:EXCERPT_BYTES].decode(errors="replace")),
            retry_after_s=retry_after(answer.headers, now),
            unwanted=unwanted,
        )


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the receiver asks for, as a number or as a date; None if it does not, or makes no sense."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()


def _asks_to_stop(headers: Mapping[str, str]) -> bool:
    return headers.get("webhook-delivery", "").strip().lower() == "abort-message"


def _complaint(status: int, unwanted: bool) -> str:
    if 300 <= status < 400:
        return f"it answered {status}, and redirects are not followed"
    if status == GONE:
        return "it answered 410: it wants no more"
    if unwanted:
        return f"it answered {status}, and does not want this message again"
    return f"it answered {status}"


def ms_since(started_s: float) -> int:
    return round((time.monotonic() - started_s) * 1000)
