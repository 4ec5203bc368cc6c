"""The jobs of a batch, as its body has them: all of them checked, or the first faults with where they are.

A few bytes of a line become as much as the schema's defaults have. What all jobs have together is bounded, and large
params are in the store before the next ones are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from functions.errors import FieldError, Invalid, TooLarge
from functions.versions import Version
from gateway.body import CAP_BYTES
from gateway.services import Services
from scheduler import preparing
from scheduler.inputs import refused_inputs
from scheduler.preparing import Invocation
from scheduler.queue import NewJob
from scheduler.spill import Spilling

MIB = 1024 * 1024
MOST_JOBS = 10_000
MOST_PARAMS_BYTES = 32 * MIB
"""Of all jobs, with their defaults."""
FAULTS = 20
"""No more are listed for one batch."""
CHECKED_AT_ONCE = 200


@dataclass(slots=True)
class Reading:
    """``invocation`` is what every job of the batch has in common. The rest is how far it has come."""

    version: Version
    invocation: Invocation
    opened: Services
    count: int = 0
    size_bytes: int = 0
    faults: list[tuple[FieldError, str]] = field(default_factory=list)


async def read_jobs(reading: Reading, items: Iterator[tuple[Any, int]], spilling: Spilling) -> list[NewJob]:
    """All jobs, ready to be submitted; raises ``Invalid`` with the first faults, or ``TooLarge``."""
    found: list[NewJob] = []
    while len(reading.faults) < FAULTS:
        # In a thread, and a few at a time: other requests must not wait for a whole batch.
        before = reading.count
        made = await asyncio.to_thread(_read_some, reading, items)
        if reading.count == before:
            break
        async with reading.opened.pool.acquire() as conn:
            refused = await refused_inputs(conn, [job for _, job in made], reading.opened.egress)
        for index, job in made:
            if (error := refused.get(job.id)) is not None:
                reading.faults += _faults(index, error)
        if reading.faults:
            found.clear()
            continue
        # Their inputs were looked at and are not stored.
        found += [await spilling.spilled(replace(job, inputs=())) for _, job in made]
    if reading.faults:
        raise _refused(reading.faults)
    if not found:
        raise Invalid("a batch has at least one job", errors=[FieldError("", "there is no job in it")])
    # Of a key that is used twice, the first job tells.
    key = reading.invocation.idempotency_key
    return [replace(found[0], idempotency_key=key, body_hash=reading.invocation.body_hash), *found[1:]]


def _read_some(reading: Reading, items: Iterator[tuple[Any, int]]) -> list[tuple[int, NewJob]]:
    """The jobs of the next items that are valid, with their index; ``reading`` says how far it came."""
    made: list[tuple[int, NewJob]] = []
    try:
        for params, size in islice(items, CHECKED_AT_ONCE):
            index, reading.count = reading.count, reading.count + 1
            if index >= MOST_JOBS:
                raise Invalid(f"more than {MOST_JOBS} jobs", errors=[FieldError("", f"{MOST_JOBS} is the most")])
            try:
                job = _job(reading, params, size)
            except Invalid as error:
                reading.faults += _faults(index, error)
                continue
            reading.size_bytes += len(job.params) if job.params.isascii() else len(job.params.encode())
            if reading.size_bytes > MOST_PARAMS_BYTES:
                raise TooLarge(
                    f"with defaults filled in, the params of these jobs have more than {MOST_PARAMS_BYTES // MIB} MiB"
                    " together: send them in several batches",
                    code="batch_too_large",
                )
            made.append((index, job))
    except Invalid as error:
        if not error.errors or error.code != "invalid_text":
            raise
        # The reader is at its end after a fault of its own: what follows is not looked at.
        reading.faults += _faults(reading.count, error)
    return made


def _job(reading: Reading, params: Any, size: int) -> NewJob:
    if size > CAP_BYTES:
        message = f"larger than {CAP_BYTES} bytes"
        raise Invalid(message, errors=[FieldError("", message)])
    if not isinstance(params, dict):
        raise Invalid("the params are a JSON object", errors=[FieldError("", "not an object")])
    invocation = replace(reading.invocation, params=params, idempotency_key=None, body_hash=None)
    return preparing.prepare(reading.version.project_id, reading.version, invocation, reading.opened.sizing)


def _faults(index: int, error: Invalid) -> list[tuple[FieldError, str]]:
    each = error.errors or (FieldError("", error.message),)
    return [(FieldError(f"/{index}{fault.pointer}", fault.message), error.code) for fault in each]


def _refused(faults: list[tuple[FieldError, str]]) -> Invalid:
    first, codes = faults[0][0], {code for _, code in faults}
    return Invalid(
        f"no job was made: {first.pointer}: {first.message}",
        code=codes.pop() if len(codes) == 1 else Invalid.code,
        errors=[fault for fault, _ in sorted(faults, key=lambda each: int(each[0].pointer.split("/")[1]))][:FAULTS],
    )
