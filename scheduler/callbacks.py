"""What a callback is: which event goes to which endpoints, and what is sent (Standard Webhooks). Values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from functions.egress import origin_of
from functions.grammar import OUTCOMES, Callback
from scheduler.views import rfc3339


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``key`` is scheme, host and port, always written out: what limits and breakers count by."""

    url: str
    key: str


def event_of(status: str) -> str:
    """The event that a job's outcome is."""
    return f"job.{status}"


def endpoints_of(
    callbacks: Iterable[Callback], url: str | None, events: Sequence[str] | None, kind: str
) -> list[Endpoint]:
    """Who wants to hear of event ``kind``: the version's callbacks and the job's own ``url``, each URL once.

    A job's own URL hears of every outcome unless ``events`` says otherwise.
    """
    wanting = [each.url for each in callbacks if each.url is not None and kind in each.events]
    if url is not None and kind in (events or OUTCOMES):
        wanting.append(url)
    return [Endpoint(each, origin_of(each)) for each in dict.fromkeys(wanting)]


def body_of(kind: str, occurred_at: datetime, data: Mapping[str, Any]) -> str:
    """The message as it is signed and sent. ``data`` is the job object with fresh links, or the batch object."""
    message = {"type": kind, "timestamp": rfc3339(occurred_at), "data": data}
    return json.dumps(message, separators=(",", ":"))
