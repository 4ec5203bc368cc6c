"""The grammar of a function's manifest (``function.yaml``, PRODUCT §3), as far as it is served.

Left out, ``retry`` means one attempt, and a callback's ``events`` all outcomes.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from functions import faults, later
from functions.documents import pointer, shown
from functions.egress import EgressRefused, check_url
from functions.faults import Fault
from functions.fields import BAD_URL, UNSUPPORTED, Part, at_most, checked, duration_between, fault, printable
from functions.jobspec import JobSpec
from functions.quantities import format_bytes

MOST_CALLBACKS = 10

NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
OUTCOMES = ("job.succeeded", "job.failed", "job.timed_out", "job.cancelled", "job.expired")
CAUSES = ("error", "timeout", "oom")

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_EXIT = re.compile(r"exit:[0-9]{1,3}")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 63 lower-case letters, digits and dashes, begin with a letter and not end with a dash"
        )


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        if not _LABEL.fullmatch(key):
            raise fault(
                f"{shown(key)} is no label: up to 63 letters, digits and . _ / -, a letter or digit at both ends",
                at=pointer(key),
            )
    return labels


def _check_cause(cause: str) -> str:
    if _EXIT.fullmatch(cause):
        raise fault(f"{cause} is not supported yet", UNSUPPORTED)
    if cause not in CAUSES:
        raise fault(f"must be one of {', '.join(CAUSES)}")
    return cause


def _check_event(event: str) -> str:
    if event in later.EVENTS:
        raise fault(f"{event} is not supported yet", UNSUPPORTED)
    if event not in OUTCOMES:
        raise fault(f"must be one of {', '.join(OUTCOMES)}")
    return event


def _check_distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise fault("must name at least one")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise fault(f"{value} stands twice", at=pointer(index))
    return values


def _check_url(url: str, info: ValidationInfo) -> str:
    policy = (info.context or {}).get("policy")
    if policy is not None:  # none for a manifest that was taken already: each send vets it again
        try:
            check_url(url, policy)
        except EgressRefused as error:
            raise fault(error.message, BAD_URL) from None
    return url


def _check_callbacks(callbacks: tuple[Callback, ...]) -> tuple[Callback, ...]:
    urls = [callback.url for callback in callbacks]
    for index, url in enumerate(urls):
        if url in urls[:index]:
            raise fault("this url stands twice: name all of its events in one entry", at=pointer(index, "url"))
    return callbacks


class Metadata(Part):
    name: Annotated[str, checked(_check_name)]
    description: Annotated[str, printable(1000)] = ""
    labels: Annotated[dict[str, Annotated[str, printable(256)]], at_most(64), AfterValidator(_check_labels)] = Field(
        default_factory=dict
    )


class Backoff(Part):
    initial: Annotated[timedelta, duration_between(timedelta(0), timedelta(days=1))] = timedelta(seconds=5)
    factor: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 2
    max: Annotated[timedelta, duration_between(timedelta(0), timedelta(days=1))] = timedelta(minutes=5)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max < self.initial:
            raise fault("must not be shorter than initial", at="/max")
        return self


class Retry(Part):
    """``attempts`` counts the first one too."""

    attempts: Annotated[int, Field(ge=1, le=100)] = 1
    on: Annotated[
        tuple[Annotated[str, AfterValidator(_check_cause)], ...],
        at_most(20),
        Field(strict=False),
        AfterValidator(_check_distinct),
    ] = CAUSES
    backoff: Backoff = Backoff()


class Callback(Part):
    url: Annotated[str, checked(lambda _: None), AfterValidator(_check_url)]
    events: Annotated[
        tuple[Annotated[str, AfterValidator(_check_event)], ...],
        at_most(20),
        Field(strict=False),
        AfterValidator(_check_distinct),
    ] = OUTCOMES


class Spec(Part):
    """``params`` is a JSON Schema; ``functions/params.py`` reads it."""

    params: dict[str, Any] | None = None
    job: JobSpec
    retry: Retry = Retry()
    callbacks: Annotated[
        tuple[Callback, ...], at_most(MOST_CALLBACKS), Field(strict=False), AfterValidator(_check_callbacks)
    ] = ()


class Manifest(Part):
    api_version: Literal["rgrid/v1"] = Field(alias="apiVersion")
    kind: Literal["Function"]
    metadata: Metadata
    spec: Spec

    def normalised(self) -> dict[str, Any]:
        """As JSON types with every default written out: the same for manifests that mean the same, and one itself."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"spec": {"params"}})
        if self.spec.params is not None:
            document["spec"] = {"params": self.spec.params} | document["spec"]  # null has a meaning in a schema
        return document

    def slots(self, slot_memory: int, max_slots: int) -> int:
        """How many slots of ``slot_memory`` bytes and one CPU a job takes; ``Invalid`` if no node has so many."""
        resources = self.spec.job.resources
        cpus, memory = math.ceil(resources.cpu), math.ceil(resources.memory / slot_memory)
        too_large = []
        if cpus > max_slots:
            too_large.append(("cpu", f"no node has more than {max_slots} CPU"))
        if memory > max_slots:
            too_large.append(("memory", f"no node has more than {format_bytes(max_slots * slot_memory)} for jobs"))
        faults.raise_all(
            [Fault(f"/spec/job/resources/{key}", message, "too_large_for_any_node") for key, message in too_large]
        )
        return max(cpus, memory)
