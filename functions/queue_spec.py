"""``spec.queue`` of a manifest: when a job may start, and how many of a function's jobs run side by side.

Left out, a job waits for as long as it takes, and nothing but the nodes limits how many run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from functions import expressions
from functions.documents import pointer
from functions.errors import FieldError, Invalid
from functions.expressions import Budget, MissingValue, Template
from functions.fields import BAD_TEMPLATE, Part, duration_between, fault, template

MOST_AT_ONCE = 1_000_000
LONGEST_HEAD_START = timedelta(days=1)
LONGEST_TTL = timedelta(days=30)
LONGEST_PER = timedelta(days=1)
KEY_BYTES = 1024
"""Of the template; what it is filled in with is hashed, of any length up to this many characters:"""
KEY_CHARACTERS = 64 * 1024

Key = Annotated[Template, template(KEY_BYTES)]
Limit = Annotated[int, Field(ge=1, le=MOST_AT_ONCE)]

Lane = Literal["standard", "paid"]
LANES: Mapping[Lane, Literal[0, 1]] = {"standard": 0, "paid": 1}

BY_KEY, IN_TOTAL, OF_STARTS = 1, 2, 3
"""Levels of gates, in the order in which a job passes them."""


class QueuePart(Part):
    def _check_key(self, key: Template | None) -> None:
        for lookup in () if key is None else key.lookups:
            if lookup.path[0] not in ("params", "trigger"):
                raise fault("a key is made of params and trigger", BAD_TEMPLATE, at="/key")


class Concurrency(QueuePart):
    """``limit`` counts all jobs of the function that were let in and have not ended, ``per_key`` those of one key."""

    limit: Limit | None = None
    per_key: Limit | None = Field(None, alias="perKey")
    key: Key | None = None
    on_limit: Literal["queue", "reject", "replace"] = Field("queue", alias="onLimit")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.limit is None and self.per_key is None:
            raise fault("needs a limit, or perKey with a key")
        if self.per_key is not None and self.key is None:
            raise fault("perKey needs a key: say what tells the jobs apart", at="/perKey")
        if self.key is not None and self.per_key is None:
            raise fault("a key needs perKey: say how many jobs of one key may run", at="/key")
        self._check_key(self.key)
        return self


class Rate(QueuePart):
    """At most ``limit`` starts in any window of ``per``; of each key, if there is one."""

    limit: Limit
    per: Annotated[timedelta, duration_between(timedelta(seconds=1), LONGEST_PER)]
    key: Key | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._check_key(self.key)
        return self


class Queue(Part):
    priority: Annotated[timedelta, duration_between(timedelta(0), LONGEST_HEAD_START)] | None = None
    ttl: Annotated[timedelta, duration_between(timedelta(seconds=1), LONGEST_TTL)] | None = None
    lane: Lane = "standard"
    deadline: Annotated[timedelta, duration_between(timedelta(seconds=1), LONGEST_TTL)] | None = None
    concurrency: Concurrency | None = None
    rate: Rate | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.deadline is not None and self.lane != "paid":
            raise fault("goes with lane: paid, whose jobs wait for node minutes that are paid for", at="/deadline")
        if self.deadline is not None and self.ttl is not None and self.deadline > self.ttl:
            raise fault("is after ttl: the job would expire before it must start", at="/deadline")
        return self


QueueOrNone = Annotated[Queue | None, AfterValidator(lambda queue: None if queue == Queue() else queue)]
"""A queue that asks for nothing means the same as none."""


@dataclass(frozen=True, slots=True)
class GateSpec:
    """One limit that a job must pass. ``key`` is a hash, empty without a key; ``per`` is given for a rate."""

    level: int
    key: bytes
    limit: int
    per: timedelta | None = None


def keys_of(queue: Queue | None) -> list[tuple[tuple[str, ...], Template]]:
    """Every template of ``spec.queue`` with its path in there."""
    if queue is None:
        return []
    found = (("concurrency", queue.concurrency), ("rate", queue.rate))
    return [((name, "key"), part.key) for name, part in found if part is not None and part.key is not None]


def gates_of(
    queue: Queue | None, *, params: Mapping[str, Any], trigger: Mapping[str, Any], foreign: bool = False
) -> tuple[GateSpec, ...]:
    """The limits that a job with these values passes, in the order of their levels.

    Raises ``Invalid`` with code ``template_invalid`` when a key has no value; null is a value. ``foreign``: the job is
    of another version than the queue, whose params need not have what the key is made of; that is null then.
    """
    if queue is None:
        return ()
    roots = {"params": params, "trigger": trigger}
    gates = []
    if (at_once := queue.concurrency) is not None:
        if at_once.per_key is not None:
            gates.append(GateSpec(BY_KEY, _hash(at_once.key, roots, "concurrency", foreign), at_once.per_key))
        if at_once.limit is not None:
            gates.append(GateSpec(IN_TOTAL, b"", at_once.limit))
    if (rate := queue.rate) is not None:
        gates.append(GateSpec(OF_STARTS, _hash(rate.key, roots, "rate", foreign), rate.limit, rate.per))
    return tuple(gates)


def _hash(key: Template | None, roots: Mapping[str, Any], part: str, foreign: bool) -> bytes:
    if key is None:
        return b""
    try:
        # Text and number, "1" and 1, are two keys, as they are two values.
        value = (
            expressions.text_of(key, roots, Budget(KEY_CHARACTERS))
            if key.lookup is None
            else expressions.find(key.lookup, roots)
        )
    except MissingValue as error:
        if not foreign:
            at = pointer("spec", "queue", part, "key")
            raise Invalid(f"{at}: {error}", code="template_invalid", errors=[FieldError(at, str(error))]) from None
        value = None
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).digest()
