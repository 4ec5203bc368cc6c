"""Manifests for tests: a small one that is right, and one with a change in it."""

from __future__ import annotations

import copy
import json
from typing import Any

from functions.egress import EgressPolicy
from functions.manifest import Manifest, parse_manifest

POLICY = EgressPolicy()

SMALL: dict[str, Any] = {
    "apiVersion": "rgrid/v1",
    "kind": "Function",
    "metadata": {"name": "thumbnail"},
    "spec": {"job": {"image": "ffmpeg:7"}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """``SMALL`` with ``value`` at a path such as ``spec.job.env.A``; mappings on the way are made."""
    document = copy.deepcopy(SMALL)
    *way, last = path.split(".")
    here = document
    for key in way:
        here = here.setdefault(key, {})
    here[last] = value
    return document


def parsed(document: dict[str, Any], policy: EgressPolicy = POLICY) -> Manifest:
    return parse_manifest(json.dumps(document).encode(), yaml=False, policy=policy)


def manifest(name: str = "thumbnail", **job: Any) -> Manifest:
    """A right manifest with these keys in ``spec.job``."""
    document = copy.deepcopy(SMALL)
    document["metadata"]["name"] = name
    document["spec"]["job"].update(job)
    return parsed(document)
