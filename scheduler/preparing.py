"""What a trigger asks for, made into a job of a version: checked against its schema, rendered, placed in the queue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from functions import ids
from functions.ids import BatchId, JobId, ProjectId
from functions.jobspec import JobSpec
from functions.queue_spec import LANES, Lane, Queue, gates_of
from functions.rendering import Rendered, render
from functions.versions import Version
from scheduler.inputs import pointer_of
from scheduler.queue import InputUrl, NewJob
from scheduler.receipts import NewReceipt


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a slot is: its memory in bytes, and how many the largest node has."""

    slot_memory: int
    max_slots: int


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a trigger asks for, before the version's schema and template have seen it.

    ``lane`` and ``head_start`` go before what the manifest says.
    """

    params: Mapping[str, Any]
    trigger: Mapping[str, Any]
    callback_url: str | None = None
    callback_events: tuple[str, ...] | None = None
    delay: timedelta | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    traceparent: str | None = None
    retried_from: JobId | None = None
    key_id: str | None = None
    batch_id: BatchId | None = None
    lane: Lane | None = None
    head_start: timedelta | None = None
    cancel_after: timedelta | None = None
    receipt: NewReceipt | None = None
    max_cost: Decimal | None = None


def prepare(project: ProjectId, version: Version, invocation: Invocation, sizing: Sizing) -> NewJob:
    """Check an invocation against a version and make the job of it; raises ``Invalid`` with pointers into the params.

    The template is rendered here for its errors and its inputs, which ``check_inputs`` vets: a lease renders it again
    from the same values, so that the wide row need not hold it.
    """
    manifest = version.manifest
    params = version.params_schema.complete(invocation.params)
    job = JobId(ids.new_uuid7())
    rendered = render(
        manifest.spec,
        params=params,
        trigger=invocation.trigger,
        job_id=ids.encode(ids.JOB, job),
        function=version.function_name,
        version=version.number,
    )
    return NewJob(
        id=job,
        project_id=project,
        function_id=version.function_id,
        version_id=version.id,
        trigger=json.dumps(invocation.trigger),
        params=json.dumps(params, ensure_ascii=False, separators=(",", ":")),
        slots=manifest.slots(sizing.slot_memory, sizing.max_slots),
        callback_url=invocation.callback_url,
        callback_events=invocation.callback_events,
        retried_from=invocation.retried_from,
        traceparent=invocation.traceparent,
        delay=invocation.delay,
        idempotency_key=invocation.idempotency_key,
        body_hash=invocation.body_hash,
        key_id=invocation.key_id,
        batch_id=invocation.batch_id,
        receipt=invocation.receipt,
        max_cost=invocation.max_cost,
        inputs=_input_urls(manifest.spec.job, rendered),
        **_queueing(version, params, invocation),
    )


def _queueing(version: Version, params: Mapping[str, Any], invocation: Invocation) -> dict[str, Any]:
    """What ``spec.queue`` and the invocation say about when the job may start."""
    spec, limited_by = version.manifest.spec.queue or Queue(), version.limits
    head_start = spec.priority if invocation.head_start is None else invocation.head_start
    limited = version.function_id is not None  # a job without a function has nobody to share a limit with
    return {
        "gates": gates_of(
            limited_by, params=params, trigger=invocation.trigger, foreign=version.current is not None
        )
        if limited
        else (),
        "on_limit": limited_by.concurrency.on_limit if limited and limited_by.concurrency is not None else "queue",
        "lane": LANES[invocation.lane or spec.lane],
        "head_start": head_start or None,
        "ttl": spec.ttl,
        "cancel_after": invocation.cancel_after,
    }


def _input_urls(spec: JobSpec, rendered: Rendered) -> tuple[InputUrl, ...]:
    return tuple(
        InputUrl(pointer_of(each.url, ("spec", "job", "files", "inputs", index, "url")), made.url)
        for index, (each, made) in enumerate(zip(spec.files.inputs, rendered.inputs, strict=True))
        if each.url is not None and made.url is not None
    )
