"""What a callback is: which event goes to which endpoints, and what is sent (Standard Webhooks). Values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from functions.egress import origin_of
from functions.grammar import LIVE, OUTCOMES, Callback
from functions.ids import EndpointId
from functions.listening import Listener
from scheduler.views import rfc3339

BODY_BYTES = 20_000
"""What receivers are prepared for. A larger message comes without what its links lead to."""
ENVELOPE_BYTES = 100
"""Of them, for what is around ``data``."""

MESSAGE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is told. ``key`` is scheme, host and port, always written out: what limits and breakers count by.

    ``id`` is None for an address without a row: one that a single job was given, or a job without a function.
    ``secrets`` are project secrets that its manifest names to sign with; the row, where there is one, knows better.
    """

    url: str
    key: str
    id: EndpointId | None = None
    secrets: tuple[str, ...] | None = None
    enabled: bool = True


def event_of(status: str) -> str:
    """The event that a job's outcome is."""
    return f"job.{status}"


def endpoints_of(
    callbacks: Iterable[Callback],
    url: str | None,
    events: Sequence[str] | None,
    kind: str,
    *,
    listeners: Sequence[Listener] = (),
    function: str | None = None,
) -> list[Endpoint]:
    """Who wants to hear of event ``kind`` of a job of ``function``: the version's callbacks, the endpoints of the
    project (both with their rows in ``listeners``), and the job's own ``url`` if it is none of those.

    A job's own URL hears of every outcome unless ``events`` says otherwise. Endpoints that are disabled come, too,
    so that what they miss is known; but not of events that pass.
    """
    of_function = {each.url: each for each in listeners if each.function_id is not None}
    found = [
        _endpoint(each.url, of_function.get(each.url), each.secret)
        for each in callbacks
        if each.url is not None and kind in each.events
    ]
    of_project = [each for each in listeners if each.function_id is None]
    found += [_endpoint(each.url, each) for each in of_project if each.wants(kind, function)]
    told = {each.url for each in found if each.enabled}
    if url is not None and url not in told and kind in (events or OUTCOMES):
        found.append(_endpoint(url))
    return [each for each in found if each.enabled or kind not in LIVE]


def _endpoint(url: str, row: Listener | None = None, secrets: tuple[str, ...] | None = None) -> Endpoint:
    if row is None:
        return Endpoint(url, origin_of(url), secrets=secrets)
    return Endpoint(url, origin_of(url), row.id, secrets, row.enabled)


def body_of(kind: str, occurred_at: datetime, data: Mapping[str, Any]) -> str:
    """The message as it is signed and sent. ``data`` is the job object with fresh links, or what else is told of."""
    message = {"type": kind, "timestamp": rfc3339(occurred_at), "data": thin(data)}
    return _json(message)


def thin(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is told, short enough for a message; ``omitted`` then names what was left out of it."""
    data = dict(data)
    if _fits(data):
        return data
    omitted = data["omitted"] = list(data.get("omitted", ()))
    for key in ("params", "result"):
        if data.get(key):
            data[key] = None
            omitted.append(key)
    error = data.get("error")
    if error is not None and len(error["message"]) > MESSAGE_CHARACTERS:
        data["error"] = {**error, "message": error["message"][:MESSAGE_CHARACTERS]}
        omitted.append("error.message")
    if _fits(data) or not data.get("outputs"):
        return data
    # Every file's digest is worth more than an address that stops working: `link` leads to the file as well.
    outputs = data["outputs"] = [{**each, "url": None, "url_expires_at": None} for each in data["outputs"]]
    omitted.append("outputs.url")
    if _fits(data):
        return data
    omitted.append("outputs")
    # As many as fit, found by halves: a job may have a thousand files.
    least, most = 0, len(outputs) - 1
    while least < most:
        middle = (least + most + 1) // 2
        if _fits(data | {"outputs": outputs[:middle]}):
            least = middle
        else:
            most = middle - 1
    return data | {"outputs": outputs[:least]}


def _fits(data: Mapping[str, Any]) -> bool:
    return len(_json(data)) <= BODY_BYTES - ENVELOPE_BYTES


def _json(value: Mapping[str, Any]) -> str:
    """In ASCII: as many bytes as characters."""
    return json.dumps(value, separators=(",", ":"))
