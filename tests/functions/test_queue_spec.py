"""``spec.queue``: what it may say, and which limits a job passes by it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from functions.egress import EgressPolicy
from functions.errors import Invalid
from functions.manifest import Manifest, parse_manifest, stored_manifest
from functions.queue_spec import BY_KEY, IN_TOTAL, OF_STARTS, gates_of

PARAMS = {"properties": {"customer": {"type": ["string", "null", "integer"]}, "n": {"type": "integer"}}}
KEY = "{{ params.customer }}"


def parsed(queue: Any, params: Any = PARAMS) -> Manifest:
    document = {
        "apiVersion": "rgrid/v1",
        "kind": "Function",
        "metadata": {"name": "f"},
        "spec": {"params": params, "job": {"image": "busybox"}, "queue": queue},
    }
    return parse_manifest(json.dumps(document).encode(), yaml=False, policy=EgressPolicy())


def test_everything_that_a_queue_can_say_is_read_and_kept() -> None:
    manifest = parsed(
        {
            "priority": "60s",
            "ttl": "24h",
            "lane": "paid",
            "deadline": "6h",
            "concurrency": {"limit": 10, "perKey": 2, "key": KEY, "onLimit": "replace"},
            "rate": {"limit": 60, "per": "1m", "key": KEY},
        }
    )
    queue = manifest.spec.queue
    assert queue is not None
    assert (queue.priority, queue.ttl, queue.lane) == (timedelta(minutes=1), timedelta(days=1), "paid")
    again = stored_manifest(json.loads(json.dumps(manifest.normalised())))
    assert again.spec.queue == queue


def test_a_queue_that_asks_for_nothing_is_none() -> None:
    assert parsed({}).normalised() == parsed({"lane": "standard"}).normalised()
    assert "queue" not in parsed({}).normalised()["spec"]


@pytest.mark.parametrize(
    ("queue", "at", "code"),
    [
        ([], "", "manifest_invalid"),
        ({"prio": "1s"}, "/prio", "manifest_invalid"),
        ({"priority": 60}, "/priority", "manifest_invalid"),
        ({"priority": "-1s"}, "/priority", "manifest_invalid"),
        ({"priority": "25h"}, "/priority", "manifest_invalid"),
        ({"ttl": "0s"}, "/ttl", "manifest_invalid"),
        ({"ttl": "31d"}, "/ttl", "manifest_invalid"),
        ({"ttl": "soon"}, "/ttl", "manifest_invalid"),
        ({"lane": "fast"}, "/lane", "manifest_invalid"),
        ({"deadline": "1h"}, "/deadline", "manifest_invalid"),
        ({"lane": "paid", "deadline": "2h", "ttl": "1h"}, "/deadline", "manifest_invalid"),
        ({"concurrency": 5}, "/concurrency", "manifest_invalid"),
        ({"concurrency": {}}, "/concurrency", "manifest_invalid"),
        ({"concurrency": {"limit": 0}}, "/concurrency/limit", "manifest_invalid"),
        ({"concurrency": {"limit": "5"}}, "/concurrency/limit", "manifest_invalid"),
        ({"concurrency": {"limit": True}}, "/concurrency/limit", "manifest_invalid"),
        ({"concurrency": {"limit": 1_000_001}}, "/concurrency/limit", "manifest_invalid"),
        ({"concurrency": {"perKey": 2}}, "/concurrency/perKey", "manifest_invalid"),
        ({"concurrency": {"per_key": 2, "key": KEY}}, "/concurrency/per_key", "manifest_invalid"),
        ({"concurrency": {"limit": 2, "key": KEY}}, "/concurrency/key", "manifest_invalid"),
        ({"concurrency": {"limit": 2, "onLimit": "drop"}}, "/concurrency/onLimit", "manifest_invalid"),
        ({"concurrency": {"perKey": 2, "key": "{{ job.id }}"}}, "/concurrency/key", "template_invalid"),
        ({"concurrency": {"perKey": 2, "key": "{{ params.n | int }}"}}, "/concurrency/key", "template_invalid"),
        ({"concurrency": {"perKey": 2, "key": "{{ params.none }}"}}, "/concurrency/key", "template_invalid"),
        ({"concurrency": {"perKey": 2, "key": 7}}, "/concurrency/key", "manifest_invalid"),
        ({"concurrency": {"perKey": 2, "key": "k" * 1025}}, "/concurrency/key", "manifest_invalid"),
        ({"rate": {"limit": 1}}, "/rate/per", "manifest_invalid"),
        ({"rate": {"per": "1m"}}, "/rate/limit", "manifest_invalid"),
        ({"rate": {"limit": 1, "per": "0s"}}, "/rate/per", "manifest_invalid"),
        ({"rate": {"limit": 1, "per": "2d"}}, "/rate/per", "manifest_invalid"),
        ({"rate": {"limit": -1, "per": "1m"}}, "/rate/limit", "manifest_invalid"),
        ({"rate": {"limit": 1, "per": "1m", "key": "{{ function.name }}"}}, "/rate/key", "template_invalid"),
    ],
)
def test_bad_values_are_refused_with_their_place(queue: Any, at: str, code: str) -> None:
    params = PARAMS | {"additionalProperties": False}
    with pytest.raises(Invalid) as caught:
        parsed(queue, params)
    assert [error.pointer for error in caught.value.errors] == [f"/spec/queue{at}"]
    assert caught.value.code == code


def gates(queue: Any, customer: Any) -> list[tuple[int, bytes, int]]:
    found = gates_of(parsed(queue).spec.queue, params={"customer": customer, "n": 1}, trigger={"kind": "manual"})
    return [(each.level, each.key, each.limit) for each in found]


def test_a_job_passes_its_limits_in_the_order_key_total_starts() -> None:
    queue = {"rate": {"limit": 3, "per": "1m"}, "concurrency": {"limit": 2, "perKey": 1, "key": KEY}}
    found = gates(queue, "a")
    assert [(level, limit) for level, _, limit in found] == [(BY_KEY, 1), (IN_TOTAL, 2), (OF_STARTS, 3)]
    assert [len(key) for _, key, _ in found] == [32, 0, 0]


def test_values_of_a_key_are_told_apart_as_the_values_that_they_are() -> None:
    queue = {"concurrency": {"perKey": 1, "key": KEY}}
    keys = [gates(queue, value)[0][1] for value in ("a", "A", None, "null", "", 1, "1")]
    assert len(set(keys)) == len(keys)
    assert gates(queue, "a") == gates(queue, "a")


def test_a_key_without_a_value_is_a_fault_of_the_invocation() -> None:
    spec = parsed({"rate": {"limit": 1, "per": "1m", "key": "c-{{ params.customer }}"}}).spec.queue
    for params in ({}, {"customer": None}):
        with pytest.raises(Invalid) as caught:
            gates_of(spec, params=params, trigger={})
        assert (caught.value.code, caught.value.errors[0].pointer) == ("template_invalid", "/spec/queue/rate/key")
