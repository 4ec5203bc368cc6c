"""What the demo asks of the instance that other commands do not: following quietly, believing callbacks."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from svix.webhooks import Webhook, WebhookVerificationError

from gateway.cli.client import Api, segment
from gateway.cli.demo.receiver import Received
from gateway.cli.failures import Failed
from gateway.cli.sse import stream
from gateway.cli.waiting import wait

JOB_S = 1800
CALLBACK_S = 60


@dataclass(frozen=True)
class Watcher:
    """What is done with what a job shows while it runs."""

    line: Callable[[str, str], None]
    """Called with the function's name and a line of its output, from a thread of its own."""
    job: Callable[[dict[str, Any]], None]
    """Called with the job object every second or so."""


def follow(api: Api, job: dict[str, Any], watcher: Watcher) -> dict[str, Any]:
    """The finished job; its lines and its progress go to the watcher as they come."""
    path = f"/v1/jobs/{segment(job['id'])}/logs"

    def read() -> None:
        with suppress(Failed):  # waiting for the job tells of it
            for event in stream(api, path, {"follow": "true"}):
                if event.kind == "log":
                    watcher.line(job["function"], event.data)

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        finished = wait(api, job["id"], deadline=time.monotonic() + JOB_S, show=watcher.job, step_s=1)
    except TimeoutError:
        raise Failed(f"{job['id']} has not ended within {JOB_S} s") from None
    reader.join(timeout=10)
    return finished


def believed(callbacks: queue.Queue[Received], secret: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The callback of each job in ``wanted``, its body with the ``webhook-id`` as ``id``, by the job's id.

    Raises ``Failed`` on a wrong signature.
    """
    bodies: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + CALLBACK_S
    while wanted - set(bodies):
        try:
            received = callbacks.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise Failed(f"no callback within {CALLBACK_S} s for {', '.join(wanted - set(bodies))}") from None
        try:
            Webhook(secret).verify(received.body, received.headers)
        except WebhookVerificationError as wrong:
            raise Failed(f"a callback came with a wrong signature: {wrong}") from None
        body = json.loads(received.body)
        bodies[body["data"]["id"]] = body | {"id": received.headers["webhook-id"]}
    return bodies


def check_kind(path: Path, content_type: str) -> None:
    """Raises ``Failed`` unless the content itself shows that it is what the job says."""
    with path.open("rb") as opened:
        head = opened.read(12)
        opened.seek(max(0, path.stat().st_size - 2))
        tail = opened.read()
    kind = "application/octet-stream"
    if head.startswith(b"\xff\xd8\xff") and tail == b"\xff\xd9":
        kind = "image/jpeg"
    elif head[4:8] == b"ftyp":
        kind = "video/mp4"
    if kind != content_type:
        raise Failed(f"{path} is {kind}, not {content_type}")
