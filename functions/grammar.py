"""The grammar of a function's manifest (``function.yaml``, PRODUCT §3), as far as it is served.

Left out, ``retry`` means one attempt, and a callback's ``events`` all outcomes.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, model_validator

from functions import faults
from functions.chaining import check_params
from functions.documents import pointer, shown
from functions.egress import EgressRefused, check_url
from functions.faults import Fault
from functions.fields import BAD_URL, Check, Part, at_most, checked, duration_between, fault, printable
from functions.jobspec import JobSpec
from functions.names import Name
from functions.quantities import format_bytes
from functions.queue_spec import QueueOrNone
from functions.secret_names import SecretNames
from functions.triggers import TriggersOrNone

MOST_CALLBACKS = 10
SHORTEST_KEPT, LONGEST_KEPT = timedelta(minutes=1), timedelta(days=3650)
SHORTEST_JOB = timedelta(days=1)
"""A job outlives the Idempotency-Key that it was made with."""

OUTCOMES = ("job.succeeded", "job.failed", "job.timed_out", "job.cancelled", "job.expired")
STARTED, PROGRESS = "job.started", "job.progress"
LIVE = (STARTED, PROGRESS)
"""Events of a job before its end."""
BATCH_COMPLETED, SCHEDULE_MISSED = "batch.completed", "schedule.missed"
JOB_EVENTS = (*LIVE, *OUTCOMES)
EVENTS = (*JOB_EVENTS, BATCH_COMPLETED, SCHEDULE_MISSED)
CALLBACK_DISABLED = "callback.disabled"
PROJECT_EVENTS = (*EVENTS, CALLBACK_DISABLED)
"""What an endpoint of the project may want to hear of."""
CAUSES = ("error", "timeout", "oom")

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_EXIT = re.compile(r"exit:([1-9][0-9]{0,2})")


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        if not _LABEL.fullmatch(key):
            raise fault(
                f"{shown(key)} is no label: up to 63 letters, digits and . _ / -, a letter or digit at both ends",
                at=pointer(key),
            )
    return labels


def _check_cause(cause: str) -> str:
    if (exited := _EXIT.fullmatch(cause)) is not None and int(exited[1]) <= 255:
        return cause
    if cause not in CAUSES:
        raise fault(f"must be one of {', '.join(CAUSES)}, or exit: and a code of 1 to 255, such as exit:75")
    return cause


def _check_event(event: str) -> str:
    if event not in EVENTS:
        raise fault(f"must be one of {', '.join(EVENTS)}")
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
        if url is not None and url in urls[:index]:
            raise fault("this url stands twice: name all of its events in one entry", at=pointer(index, "url"))
    return callbacks


class Metadata(Part):
    name: Name
    description: Annotated[str, printable(1000)] = ""
    labels: Annotated[
        dict[str, Annotated[str, printable(256)]],
        at_most(64),
        Check(_check_labels, {"propertyNames": {"pattern": f"^{_LABEL.pattern}$"}}),
    ] = Field(default_factory=dict)


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
        tuple[Annotated[str, Check(_check_cause, {"pattern": f"^({'|'.join(CAUSES)}|{_EXIT.pattern})$"})], ...],
        at_most(20),
        Field(strict=False),
        Check(_check_distinct, {"uniqueItems": True, "minItems": 1}),
    ] = CAUSES
    backoff: Backoff = Backoff()


class Callback(Part):
    """What a job's end causes: a signed message to ``url``, or a job of another ``function`` of the project.

    Left out, ``events`` are all outcomes for a url, and job.succeeded for a function. ``params`` are templates.
    ``secret`` names what signs in place of the project's own key; of two, both sign.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["url"]}, {"required": ["function"]}]})

    url: Annotated[str, checked(lambda _: None), AfterValidator(_check_url)] | None = None
    function: Name | None = None
    params: Annotated[dict[str, Any], AfterValidator(check_params)] | None = None
    secret: SecretNames | None = None
    events: Annotated[
        tuple[Annotated[str, Check(_check_event, {"enum": [*EVENTS]})], ...],
        at_most(20),
        Field(strict=False),
        Check(_check_distinct, {"uniqueItems": True, "minItems": 1}),
    ] = OUTCOMES

    @model_validator(mode="before")
    @classmethod
    def _chained_after_success(cls, given: object) -> object:
        if isinstance(given, dict) and "function" in given:
            return {"events": ["job.succeeded"], "params": {}, **given}
        return given

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.url is None and self.function is None:
            raise fault("is required: an address, or else function", at="/url")
        if self.url is not None and self.function is not None:
            raise fault("stands beside url: make two entries of it", at="/function")
        if self.function is None and self.params is not None:
            raise fault("belongs to function: a url is sent the job object", at="/params")
        if self.function is not None and self.secret is not None:
            raise fault("belongs to url: a function is sent no signature", at="/secret")
        if self.function is not None:
            for index, event in enumerate(self.events):
                if event not in OUTCOMES:
                    raise fault(f"a function is called for {', '.join(OUTCOMES)} only", at=pointer("events", index))
        return self


class Retention(Part):
    """How long what a job leaves is kept after its end; left out, as long as the operator has set."""

    jobs: Annotated[timedelta, duration_between(SHORTEST_JOB, LONGEST_KEPT)] | None = None
    artifacts: Annotated[timedelta, duration_between(SHORTEST_KEPT, LONGEST_KEPT)] | None = None
    logs: Annotated[timedelta, duration_between(SHORTEST_KEPT, LONGEST_KEPT)] | None = None


class Spec(Part):
    """``params`` is a JSON Schema; ``functions/params.py`` reads it."""

    params: dict[str, Any] | None = None
    job: JobSpec
    retry: Retry = Retry()
    queue: QueueOrNone = None
    triggers: TriggersOrNone = None
    callbacks: Annotated[
        tuple[Callback, ...], at_most(MOST_CALLBACKS), Field(strict=False), AfterValidator(_check_callbacks)
    ] = ()
    retention: Retention | None = None


class Manifest(Part):
    api_version: Literal["rgrid/v1"] = Field(alias="apiVersion")
    kind: Literal["Function"]
    metadata: Metadata
    spec: Spec

    def normalised(self) -> dict[str, Any]:
        """As JSON types with every default written out: the same for manifests that mean the same, and one itself."""
        document = self.stored()
        if self.spec.job.runtime is not None:
            del document["spec"]["job"]["image"]
        return document

    def stored(self) -> dict[str, Any]:
        """What a version keeps: ``normalised``, and beside a runtime's name the image that it stands for."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"spec": {"params"}})
        if not self.spec.job.secrets:
            del document["spec"]["job"]["secrets"]  # as releases before it had it
        if self.spec.params is not None:
            document["spec"] = {"params": self.spec.params} | document["spec"]  # null has a meaning in a schema
        return document

    def slots(self, slot_memory: int, max_slots: int) -> int:
        """How many slots of ``slot_memory`` bytes and one CPU a job takes; ``Invalid`` if no node has so many, also
        for an attempt that gets more memory than the first."""
        resources = self.spec.job.resources
        cpus, memory = math.ceil(resources.cpu), math.ceil(resources.memory / slot_memory)
        too_large = []
        if cpus > max_slots:
            too_large.append(("cpu", f"no node has more than {max_slots} CPU"))
        most_memory = f"no node has more than {format_bytes(max_slots * slot_memory)} for jobs"
        if memory > max_slots:
            too_large.append(("memory", most_memory))
        elif (resources.grown_memory or 0) > max_slots * slot_memory:
            too_large.append(("memoryMax", most_memory))
        faults.raise_all(
            [Fault(f"/spec/job/resources/{key}", message, "too_large_for_any_node") for key, message in too_large]
        )
        return max(cpus, memory)

    def grown_slots(self, slot_memory: int) -> int | None:
        """How many an attempt takes that follows one out of memory; None if it gets no more than that had."""
        resources = self.spec.job.resources
        if resources.grown_memory is None:
            return None
        return max(math.ceil(resources.cpu), math.ceil(resources.grown_memory / slot_memory))
