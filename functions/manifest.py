"""A function's manifest as a user sends it and as the database keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from functions import faults, ids, schedule_spec
from functions.chaining import chain_lookups, output_fault
from functions.documents import load_json, load_yaml, pointer, strings
from functions.egress import EgressPolicy, EgressRefused, check_url
from functions.errors import Invalid, TooLarge
from functions.expressions import Template
from functions.faults import Fault
from functions.fields import BAD_TEMPLATE, BAD_URL
from functions.grammar import OUTCOMES, Callback, Manifest, Metadata, Retry, Spec
from functions.jobspec import JobSpec
from functions.params import ParamsSchema
from functions.queue_spec import keys_of
from functions.rendering import templates_of
from functions.webhook_spec import impossible_params

__all__ = ["OUTCOMES", "Callback", "Manifest", "Metadata", "Retry", "Spec", "parse_manifest", "stored_manifest"]

LARGEST_BYTES = 1024 * 1024
MOST_VALUES = 10_000
MOST_LOOKUPS = 1000
NO_RUNTIMES: Mapping[str, str] = MappingProxyType({})


def parse_manifest(
    data: bytes,
    *,
    yaml: bool,
    policy: EgressPolicy,
    callbacks: EgressPolicy | None = None,
    runtimes: Mapping[str, str] = NO_RUNTIMES,
) -> Manifest:
    """Read what a user sent; raises ``Malformed``, or ``Invalid`` with a pointer to each fault.

    ``policy`` is for addresses of inputs, and of ``callbacks`` unless they have one of their own. ``runtimes`` is the
    operator's catalogue: what images their names stand for now.
    """
    if len(data) > LARGEST_BYTES:
        raise TooLarge(f"a manifest has at most {LARGEST_BYTES} bytes")
    document = load_yaml(data) if yaml else load_json(data)
    if not isinstance(document, dict):
        raise Invalid("a manifest is a mapping with apiVersion, kind, metadata and spec", code="manifest_invalid")
    if _more_values_than(document, MOST_VALUES):
        raise Invalid(f"more than {MOST_VALUES} values, which no manifest has", code="manifest_invalid")
    if sum(text.count("{{") for _, text in strings(document)) > MOST_LOOKUPS:
        raise Invalid(f"more than {MOST_LOOKUPS} look-ups, which no manifest has", code="manifest_invalid")
    found: list[Fault] = []
    document = _without_nulls(document, (), found)
    excused = {fault.pointer for fault in found}
    manifest = None
    try:
        manifest = Manifest.model_validate(document, context={"policy": callbacks or policy})
    except ValidationError as error:
        found += [one for one in faults.of_pydantic(error, Manifest) if one.pointer not in excused]
    spec = document.get("spec")
    schema = spec.get("params") if isinstance(spec, dict) else None
    if isinstance(schema, dict):
        found += [Fault("/spec/params" + one.pointer, one.message) for one in ParamsSchema(schema).faults()]
    if manifest is not None:
        manifest, unknown = _with_image(manifest, runtimes)
        found += unknown
    if manifest is not None and not found:
        found += _lookup_faults(manifest.spec)
        found += _address_faults(manifest.spec.job, policy)
    faults.raise_all(found)
    assert manifest is not None
    return manifest


def stored_manifest(document: Mapping[str, Any]) -> Manifest:
    """What ``stored`` wrote, read again."""
    return Manifest.model_validate(document)


def _with_image(manifest: Manifest, runtimes: Mapping[str, str]) -> tuple[Manifest, list[Fault]]:
    """The manifest with the image that its runtime stands for now."""
    job = manifest.spec.job
    if job.runtime is None:
        return manifest, []
    if job.runtime not in runtimes:
        known = f"it has {', '.join(sorted(runtimes)[:50])}" if runtimes else "it has none"
        return manifest, [Fault("/spec/job/runtime", f"this installation has no runtime {job.runtime}: {known}")]
    job = job.model_copy(update={"image": runtimes[job.runtime]})
    return manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"job": job})}), []


def _lookup_faults(spec: Spec) -> list[Fault]:
    """Look-ups of params that the schema never lets through."""
    schema = ParamsSchema(spec.params)
    outputs = frozenset(one.name for one in spec.job.files.outputs)
    chained = []
    for path, lookup in chain_lookups(spec.callbacks):
        message = None
        if lookup.path[0] == "params" and not schema.may_have(lookup.path[1:]):
            message = f"{lookup} can have no value: spec.params has no such property"
        elif lookup.path[0] == "outputs":
            message = output_fault(lookup, outputs)
        if message is not None:
            chained.append(Fault(pointer("spec", *path), message, BAD_TEMPLATE))
    for index, webhook in enumerate(() if spec.triggers is None else spec.triggers.webhooks):
        at = pointer("spec", "triggers", "webhooks", index)
        chained += [Fault(at + place, message) for place, message in impossible_params(webhook, schema)]
    for index, schedule in enumerate(() if spec.triggers is None else spec.triggers.schedules):
        at = pointer("spec", "triggers", "schedules", index)
        impossible = schedule_spec.impossible_params(schedule, schema)
        chained += [Fault(at + place, message) for place, message in impossible]
    return chained + [
        Fault(pointer("spec", *path), f"{lookup} can have no value: spec.params has no such property", BAD_TEMPLATE)
        for path, template in _templates(spec)
        for lookup in template.lookups
        if lookup.path[0] == "params" and not schema.may_have(lookup.path[1:])
    ]


def _templates(spec: Spec) -> Iterator[tuple[tuple[str | int, ...], Template]]:
    """Every template of a job, with its path in ``spec``."""
    yield from ((("job", *path), template) for path, template in templates_of(spec.job))
    yield from ((("queue", *path), template) for path, template in keys_of(spec.queue))


def _address_faults(job: JobSpec, policy: EgressPolicy) -> list[Fault]:
    """Addresses of inputs that are the same for every job, and can never be fetched."""
    found = []
    for index, one in enumerate(job.files.inputs):
        if one.url is None or one.url.lookups:
            continue
        at = pointer("spec", "job", "files", "inputs", index, "url")
        url = str(one.url)
        if url.startswith("artifact:"):
            if ids.decode(ids.ARTIFACT, url.removeprefix("artifact:")) is None:
                found.append(Fault(at, "not an artifact: write artifact:art_… as an upload or an output shows it"))
            continue
        try:
            check_url(url, policy)
        except EgressRefused as error:
            found.append(Fault(at, error.message, BAD_URL))
    return found


def _without_nulls(value: Any, at: tuple[str | int, ...], found: list[Fault]) -> Any:
    """A key without a value is forgotten rather than meant, which is a fault; ``null`` has a meaning in params only."""
    if isinstance(value, list):
        return [_without_nulls(item, (*at, index), found) for index, item in enumerate(value)]
    chained = at[:2] == ("spec", "callbacks") and at[3:] == ("params",)
    triggered = at[:2] == ("spec", "triggers") and at[4:] == ("params",)
    if not isinstance(value, dict) or at == ("spec", "params") or chained or triggered:
        return value
    for key in [key for key, item in value.items() if item is None]:
        found.append(Fault(pointer(*at, key), "has no value: give it one, or leave the key out"))
    return {key: _without_nulls(item, (*at, key), found) for key, item in value.items() if item is not None}


def _more_values_than(document: Any, most: int) -> bool:
    """Whether it has more keys and values than that; costs no more than the answer needs."""
    count = 0
    stack = [document]
    while stack:
        item = stack.pop()
        if isinstance(item, (dict, list)):
            count += len(item)
            if count > most:
                return True
            stack.extend(item.values() if isinstance(item, dict) else item)
    return False
