from __future__ import annotations

import copy
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.egress import EgressPolicy
from functions.errors import Invalid, Malformed, RGridError, TooLarge
from functions.grammar import OUTCOMES
from functions.manifest import LARGEST_BYTES, MOST_VALUES, Manifest, parse_manifest, stored_manifest
from tests.functions.manifests import POLICY, SMALL, changed, parsed

TEMPLATES = Path(__file__).parents[2] / "templates/functions"

PRODUCT = b"""
apiVersion: rgrid/v1
kind: Function
metadata:
  name: thumbnail
  description: First frame of a video as a JPEG
  labels: {team: media}
spec:
  params:
    type: object
    required: [video]
    properties:
      video: {type: string, format: uri}
      width: {type: integer, default: 320, minimum: 16, maximum: 4096}
      customer: {type: string, default: none}
  job:
    image: ghcr.io/acme/ffmpeg:7
    command: ["ffmpeg", "-i", "/in/video.mp4", "-vf", "scale={{ params.width }}:-1", "/out/thumb.jpg"]
    env: {LOG_LEVEL: info, CUSTOMER: "{{ params.customer }}"}
    resources: {cpu: 1, memory: 1Gi, disk: 2Gi}
    files:
      inputs:
        - {path: /in/video.mp4, url: "{{ params.video }}"}
      outputs:
        - {path: /out/thumb.jpg, name: thumbnail, contentType: image/jpeg, required: true}
    timeout: 10m
    network: false
    user: 65532
  retry: {attempts: 3, on: [error, timeout, oom], backoff: {initial: 5s, factor: 2, max: 5m}}
  triggers:
    webhooks:
      - {name: github, verify: github, secret: GITHUB_WEBHOOK_SECRET, filter: {header.x-github-event: [push]}, params: {ref: "{{ body.ref }}"}}
    schedules:
      - {name: nightly, cron: "0 3 * * *", timezone: Europe/Berlin, params: {}, overlap: skip, catchUp: one, jitter: 30s}
  callbacks:
    - {url: https://example.com/hook, events: [job.succeeded, job.failed], secret: CALLBACK_SECRET}
    - {function: publish, events: [job.succeeded], params: {image: "{{ outputs.thumbnail.uri }}"}}
  retention: {jobs: 30d, artifacts: 7d, logs: 7d}
"""


def refused(document: Any, policy: EgressPolicy = POLICY) -> Invalid:
    with pytest.raises(Invalid) as caught:
        parsed(document, policy)
    return caught.value


def test_the_manifest_of_the_product_page_is_read() -> None:
    read = parse_manifest(PRODUCT, yaml=True, policy=POLICY)
    job, retry = read.spec.job, read.spec.retry
    assert (read.metadata.name, read.metadata.labels) == ("thumbnail", {"team": "media"})
    assert (job.resources.cpu, job.resources.memory, job.resources.disk) == (1.0, 2**30, 2 * 2**30)
    assert (job.timeout, job.grace, job.network, job.user) == (
        timedelta(minutes=10),
        timedelta(seconds=10),
        False,
        65532,
    )
    assert [str(part) for part in job.command or ()][-2:] == ["scale={{ params.width }}:-1", "/out/thumb.jpg"]
    [output] = job.files.outputs
    assert (output.path, output.name, output.content_type, output.required) == (
        "/out/thumb.jpg", "thumbnail", "image/jpeg", True,
    )  # fmt: skip
    assert (retry.attempts, retry.on) == (3, ("error", "timeout", "oom"))
    assert (retry.backoff.initial, retry.backoff.factor, retry.backoff.max) == (
        timedelta(seconds=5),
        2,
        timedelta(minutes=5),
    )
    hook, publish = read.spec.callbacks
    assert (hook.url, hook.events) == ("https://example.com/hook", ("job.succeeded", "job.failed"))
    assert (publish.function, publish.events) == ("publish", ("job.succeeded",))
    assert publish.params == {"image": "{{ outputs.thumbnail.uri }}"}
    assert read.spec.retention is not None and read.spec.retention.jobs == timedelta(days=30)


def test_what_is_left_out_has_its_default_written_out() -> None:
    assert parsed(SMALL).normalised() == {
        "apiVersion": "rgrid/v1",
        "kind": "Function",
        "metadata": {"name": "thumbnail", "description": "", "labels": {}},
        "spec": {
            "job": {
                "image": "ffmpeg:7",
                "env": {},
                "resources": {"cpu": "1", "memory": "1Gi", "disk": "2Gi"},
                "files": {"inputs": [], "outputs": []},
                "timeout": "10m",
                "grace": "10s",
                "network": False,
                "user": 65532,
            },
            "retry": {
                "attempts": 1,
                "on": ["error", "timeout", "oom"],
                "backoff": {"initial": "5s", "factor": 2.0, "max": "5m"},
            },
            "callbacks": [],
        },
    }
    assert parsed(changed("spec.callbacks", [{"url": "https://example.com/"}])).spec.callbacks[0].events == OUTCOMES
    [output] = parsed(changed("spec.job.files.outputs", [{"path": "/out/a/thumb.jpg"}])).spec.job.files.outputs
    assert (output.name, output.content_type, output.required) == ("thumb.jpg", None, False)


@pytest.mark.parametrize("data", [PRODUCT, json.dumps(SMALL).encode()])
def test_a_normalised_manifest_reads_as_the_same_one(data: bytes) -> None:
    read = parse_manifest(data, yaml=True, policy=POLICY)
    document = json.loads(json.dumps(read.normalised()))
    assert stored_manifest(document) == read
    assert parsed(document) == read
    assert parsed(document).normalised() == read.normalised()


def test_manifests_that_mean_the_same_are_normalised_to_the_same() -> None:
    written = changed("spec.job.resources", {"cpu": "1000m", "memory": 1024**3, "disk": "2048Mi"})
    written["spec"]["job"]["timeout"] = "600s"
    assert parsed(written).normalised() == parsed(SMALL).normalised()


def test_a_callback_that_names_one_secret_reads_as_it_was_written() -> None:
    for secret in ("NEW", ["NEW", "OLD"]):
        read = parsed(changed("spec.callbacks", [{"url": "https://example.com/", "secret": secret}]))
        assert read.normalised()["spec"]["callbacks"][0]["secret"] == secret
    one = parsed(changed("spec.callbacks", [{"url": "https://example.com/", "secret": ["NEW"]}]))
    assert one.normalised()["spec"]["callbacks"][0]["secret"] == "NEW"


def test_a_schedule_is_read_and_written_out_with_its_defaults() -> None:
    small = {"name": "nightly", "cron": "0 3 * * *"}
    read = parsed(changed("spec.triggers.schedules", [small]))
    written = {"timezone": "UTC", "params": {}, "overlap": "skip", "catchUp": "one", "jitter": "0s"}
    assert read.normalised()["spec"]["triggers"] == {"webhooks": [], "schedules": [small | written]}
    params = {"at": "{{ schedule.time }}", "none": None, "list": [1, None]}
    full = small | {"timezone": "Asia/Tokyo", "params": params, "overlap": "replace", "catchUp": "all", "jitter": "1m30s"}
    read = parsed(changed("spec.triggers.schedules", [full]))
    assert read.normalised()["spec"]["triggers"]["schedules"] == [full]
    assert stored_manifest(read.stored()) == read
    assert parsed(changed("spec.triggers", {"schedules": []})).normalised() == parsed(SMALL).normalised()


@pytest.mark.parametrize(
    ("schedules", "pointer", "words"),
    [
        ([{"name": "a", "cron": "0 0 30 2 *"}], "/0/cron", "never fires"),
        ([{"name": "a", "cron": "* * * * * *"}], "/0/cron", "no seconds"),
        ([{"name": "a", "cron": "@daily", "timezone": "CEST"}], "/0/timezone", "no time zone"),
        ([{"name": "a", "cron": "@daily", "overlap": "queue"}], "/0/overlap", "'skip', 'allow' or 'replace'"),
        ([{"name": "a", "cron": "@daily", "catchUp": "two"}], "/0/catchUp", "'none', 'one' or 'all'"),
        ([{"name": "a", "cron": "@daily", "catchup": "one"}], "/0/catchup", "did you mean"),
        ([{"name": "a", "cron": "@daily", "jitter": "25h"}], "/0/jitter", "between 0s and 1d"),
        ([{"name": "a", "cron": "@daily", "params": {"a": {"b": "{{ body.x }}"}}}], "/0/params/a/b", "of a webhook"),
        ([{"name": "a", "cron": "@daily", "params": {"a": "{{ schedule.day }}"}}], "/0/params/a", "schedule.time"),
        ([{"name": "a", "cron": "@daily", "params": {"a": "x" * 70_000}}], "/0/params", "64 KiB"),
        ([{"name": "a", "cron": "@daily"}, {"name": "a", "cron": "@weekly"}], "/1/name", "stands twice"),
        ([{"name": "A", "cron": "@daily"}], "/0/name", "lower-case"),
        ([{"cron": "@daily"}], "/0/name", "is required"),
        ([{"name": "a"}], "/0/cron", "is required"),
        ([{"name": f"s{n}", "cron": "@daily"} for n in range(21)], "", "20 is the most"),
    ],
)
def test_a_schedule_that_can_never_work_is_refused(schedules: list[Any], pointer: str, words: str) -> None:
    error = refused(changed("spec.triggers.schedules", schedules))
    assert [one.pointer for one in error.errors] == ["/spec/triggers/schedules" + pointer]
    assert words in error.errors[0].message


def test_params_of_a_schedule_that_the_function_never_takes_are_refused() -> None:
    schema = {"required": ["a", "b"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    document = changed("spec.params", schema | {"properties": schema["properties"] | {"b": {"type": "object"}}})
    for params, faults in (
        ({"a": "{{ schedule.time }}"}, ["/params/a"]),
        ({"a": 1, "b": {}, "c": 1}, ["/params/c"]),
        ({"b": 1, "a": "x"}, ["/params/a", "/params/b"]),
        ({"a": 1}, []),  # what is missing may be given a default before the time comes
        ({}, []),
    ):
        document["spec"]["triggers"] = {"schedules": [{"name": "s", "cron": "@daily", "params": params}]}
        if not faults:
            parsed(document)
        else:
            pointers = [one.pointer for one in refused(document).errors]
            assert sorted(pointers) == ["/spec/triggers/schedules/0" + fault for fault in faults]


def test_null_in_a_schema_is_kept() -> None:
    schema = {"properties": {"a": {"default": None}, "b": {"enum": [None, 1]}}}
    read = parsed(changed("spec.params", schema))
    assert stored_manifest(read.normalised()).spec.params == schema


def test_several_faults_are_told_together() -> None:
    document = changed("spec.job", {"image": "Bad Image", "timeout": "soon", "env": {"A": 1, "1B": "x"}, "cpus": 2})
    document["metadata"] = {"name": "Bad"}
    document["kind"] = "Job"
    document["spec"]["params"] = {"required": 1}
    error = refused(document)
    assert error.code == "manifest_invalid"
    assert {one.pointer for one in error.errors} == {
        "/kind",
        "/metadata/name",
        "/spec/job/image",
        "/spec/job/timeout",
        "/spec/job/env/A",
        "/spec/job/cpus",
        "/spec/params/required",
    }
    assert str(error).startswith(error.errors[0].pointer)


def test_faults_with_nothing_in_common_have_the_general_code() -> None:
    document = changed("spec.job.env", {"A": "{{ body.x }}"})
    document["spec"]["job"]["user"] = 0
    assert refused(document).code == "manifest_invalid"


MISSING = object()
INPUTS, OUTPUTS, CALLBACKS = "spec.job.files.inputs", "spec.job.files.outputs", "spec.callbacks"
HOOK = "https://x.example/"
INPUT = {"path": "/in/a", "url": "{{ params.a }}"}
OUTPUT = {"path": "/out/a", "name": "a"}

BAD: list[tuple[str, Any, str, str]] = [
    # path of the key, value, pointer from there, words of the message
    ("apiVersion", MISSING, "", "is required"),
    ("apiVersion", "rgrid/v2", "", "rgrid/v1"),
    ("apiVersion", 1, "", "rgrid/v1"),
    ("kind", MISSING, "", "is required"),
    ("kind", "function", "", "Function"),
    ("api_version", "rgrid/v1", "", "no such key"),
    ("status", {}, "", "no such key"),
    ("metadata", MISSING, "", "is required"),
    ("metadata", [], "", "a mapping"),
    ("metadata", "x", "", "a mapping"),
    ("metadata.name", MISSING, "", "is required"),
    ("metadata.name", "", "", "lower-case"),
    ("metadata.name", "1a", "", "lower-case"),
    ("metadata.name", "a-", "", "lower-case"),
    ("metadata.name", "a_b", "", "lower-case"),
    ("metadata.name", "a" * 64, "", "63"),
    ("metadata.name", "ä", "", "lower-case"),
    ("metadata.name", "a\n", "", "lower-case"),
    ("metadata.name", "a/../b", "", "lower-case"),
    ("metadata.name", 5, "", "must be text: put it in quotes"),
    ("metadata.name", None, "", "has no value"),
    ("metadata.name", "{{ params.a }}", "", "no template"),
    ("metadata.description", 1, "", "must be text"),
    ("metadata.description", "x" * 1001, "", "1000"),
    ("metadata.description", "a\x1b[2J", "", "cannot be printed"),
    ("metadata.labels", [], "", "a mapping"),
    ("metadata.labels", {"a": 1}, "/a", "must be text"),
    ("metadata.labels", {"a b": "x"}, "/a b", "no label"),
    ("metadata.labels", {"a": "x" * 257}, "/a", "256"),
    ("metadata.labels", {str(n): "x" for n in range(65)}, "", "64"),
    ("metadata.labes", {}, "", "did you mean “labels”"),
    ("spec", MISSING, "", "is required"),
    ("spec", None, "", "has no value"),
    ("spec", [], "", "a mapping"),
    ("spec.jobs", {}, "", "did you mean “job”"),
    ("spec.params", [], "", "a mapping"),
    ("spec.params", True, "", "a mapping"),
    ("spec.params", {"properties": {"a": {"$ref": "http://x"}}}, "/properties/a/$ref", "nothing is fetched"),
    ("spec.params", {"type": "string"}, "/type", "object"),
    ("spec.job", MISSING, "", "is required"),
    ("spec.job", None, "", "has no value"),
    ("spec.job", {}, "/image", "is required"),
    ("spec.job.imag", "x", "", "did you mean “image”"),
    ("spec.job.content_type", "x", "", "no such key"),
    ("spec.job.image", 7, "", "must be text"),
    ("spec.job.image", "", "", "image's name"),
    ("spec.job.image", "{{ params.image }}", "", "no template"),
    ("spec.job.command", "ffmpeg -i", "", "must be a list"),
    ("spec.job.command", [], "", "must begin with a program"),
    ("spec.job.command", [""], "", "must begin with a program"),
    ("spec.job.command", ["a", 23], "/1", "must be text: put it in quotes"),
    ("spec.job.command", ["a", None], "/1", "must be text"),
    ("spec.job.command", ["a", ["b"]], "/1", "must be text"),
    ("spec.job.command", ["a", "{{ }}"], "/1", "names no value"),
    ("spec.job.command", ["a", "{{ params.a | b }}"], "/1", "no filters"),
    ("spec.job.command", ["a"] * 1025, "", "1024"),
    ("spec.job.command", ["a", "x" * 131072], "/1", "131071"),
    ("spec.job.env", [], "", "a mapping"),
    ("spec.job.env", {"A": 8080}, "/A", "must be text: put it in quotes"),
    ("spec.job.env", {"A": True}, "/A", "must be text: put it in quotes"),
    ("spec.job.env", {"A": None}, "/A", "has no value"),
    ("spec.job.env", {"A=B": "x"}, "/A=B", "name of a variable"),
    ("spec.job.env", {"A B": "x"}, "/A B", "name of a variable"),
    ("spec.job.env", {"1A": "x"}, "/1A", "name of a variable"),
    ("spec.job.env", {"": "x"}, "/", "name of a variable"),
    ("spec.job.env", {"É": "x"}, "/É", "name of a variable"),
    ("spec.job.env", {"A\n": "x"}, "/A\n", "name of a variable"),
    ("spec.job.env", {"A" * 256: "x"}, "/" + "A" * 256, "name of a variable"),
    ("spec.job.env", {"RGRID_JOB_ID": "x"}, "/RGRID_JOB_ID", "set by RGrid"),
    ("spec.job.env", {"A": "x" * 500_000}, "/A", "131071"),
    ("spec.job.env", {f"A{n}": "x" for n in range(257)}, "", "256"),
    ("spec.job.env", {"A": "{{ env.HOME }}"}, "/A", "begins with params"),
    ("spec.job.resources", 1, "", "a mapping"),
    ("spec.job.resources.gpu", 1, "", "no such key"),
    ("spec.job.resources.cpu", "lots", "", "500m"),
    ("spec.job.resources.cpu", True, "", "500m"),
    ("spec.job.resources.cpu", 0, "", "between 10m and 256"),
    ("spec.job.resources.cpu", -1, "", "500m"),
    ("spec.job.resources.cpu", 257, "", "between"),
    ("spec.job.resources.cpu", [], "", "500m"),
    ("spec.job.resources.memory", "1GB", "", "512Mi"),
    ("spec.job.resources.memory", "1K", "", "512Mi"),
    ("spec.job.resources.memory", "1Mi", "", "between 16Mi and 1Ti"),
    ("spec.job.resources.memory", 2**63, "", "between"),
    ("spec.job.resources.memory", None, "", "has no value"),
    ("spec.job.resources.disk", "0", "", "between"),
    ("spec.job.resources.disk", "2Ti", "", "between"),
    ("spec.job.files", [], "", "a mapping"),
    (INPUTS, {}, "", "must be a list"),
    (INPUTS, [INPUT] * 101, "", "100"),
    (INPUTS, ["/in/a"], "/0", "a mapping"),
    (INPUTS, [{"url": HOOK}], "/0/path", "is required"),
    (INPUTS, [{"path": "/in/a"}], "/0", "either url or content"),
    (INPUTS, [{**INPUT, "content": "x"}], "/0", "either url or content"),
    (INPUTS, [{**INPUT, "mode": 1}], "/0/mode", "no such key"),
    (INPUTS, [INPUT, INPUT], "/1/path", "twice"),
    (INPUTS, [INPUT, {**INPUT, "path": "/in/a/b"}], "/1/path", "file and a folder"),
    (INPUTS, [{**INPUT, "path": "/in/a/b"}, INPUT], "/1/path", "file and a folder"),
    (INPUTS, [{"path": "/in/a", "url": 5}], "/0/url", "must be text"),
    (INPUTS, [{"path": "/in/a", "url": "x" * 8193}], "/0/url", "8192"),
    (INPUTS, [{"path": "/in/a", "url": "https://x/{{"}], "/0/url", "not closed"),
    (INPUTS, [{"path": "/in/a", "url": "http://example.com/"}], "/0/url", "https"),
    (INPUTS, [{"path": "/in/a", "url": "https://127.0.0.1/"}], "/0/url", "public"),
    (INPUTS, [{"path": "/in/a", "url": "/etc/passwd"}], "/0/url", "https"),
    (INPUTS, [{"path": "/in/a", "url": ""}], "/0/url", "https"),
    (INPUTS, [{"path": "/in/a", "url": "artifact:x"}], "/0/url", "artifact:art_"),
    (INPUTS, [{"path": "/in/a", "content": 5}], "/0/content", "must be text"),
    (INPUTS, [{"path": "/in/a", "content": "x" * 262145}], "/0/content", "262144"),
    (OUTPUTS, [OUTPUT] * 101, "", "100"),
    (OUTPUTS, [{"name": "a"}], "/0/path", "is required"),
    (OUTPUTS, [{"path": "/out/*.jpg"}], "/0/name", "is required"),
    (OUTPUTS, [OUTPUT, {**OUTPUT, "path": "/out/b"}], "/1/name", "twice"),
    (OUTPUTS, [OUTPUT, {**OUTPUT, "name": "b"}], "/1/path", "twice"),
    (OUTPUTS, [{**OUTPUT, "name": "a b"}], "/0/name", "letters"),
    (OUTPUTS, [{**OUTPUT, "name": "../a"}], "/0/name", "letters"),
    (OUTPUTS, [{**OUTPUT, "name": ""}], "/0/name", "letters"),
    (OUTPUTS, [{**OUTPUT, "contentType": "jpeg"}], "/0/contentType", "content type"),
    (OUTPUTS, [{**OUTPUT, "contentType": "a/b\r\nX: y"}], "/0/contentType", "content type"),
    (OUTPUTS, [{**OUTPUT, "contenttype": "a/b"}], "/0/contenttype", "did you mean “contentType”"),
    (OUTPUTS, [{**OUTPUT, "required": "yes"}], "/0/required", "true or false"),
    (OUTPUTS, [{**OUTPUT, "required": 1}], "/0/required", "true or false"),
    ("spec.job.timeout", 600, "", "with its unit"),
    ("spec.job.timeout", "10", "", "write 30s"),
    ("spec.job.timeout", "10 minutes", "", "write 30s"),
    ("spec.job.timeout", "0s", "", "between 1s and 7d"),
    ("spec.job.timeout", "8d", "", "between"),
    ("spec.job.timeout", "-1m", "", "write 30s"),
    ("spec.job.timeout", "{{ params.t }}", "", "write 30s"),
    ("spec.job.timeout", "9" * 5000 + "d", "", "write 30s"),
    ("spec.job.grace", "11m", "", "between 0s and 10m"),
    ("spec.job.network", "yes", "", "true or false"),
    ("spec.job.network", 1, "", "true or false"),
    ("spec.job.user", 0, "", "at least 1"),
    ("spec.job.user", -1, "", "at least 1"),
    ("spec.job.user", 2**31, "", "at most 2147483647"),
    ("spec.job.user", 1.5, "", "whole number"),
    ("spec.job.user", 1.0, "", "whole number"),
    ("spec.job.user", "1000", "", "whole number"),
    ("spec.job.user", True, "", "whole number"),
    ("spec.job.user", "nobody", "", "whole number"),
    ("spec.retry", 3, "", "a mapping"),
    ("spec.retry.attempts", 0, "", "at least 1"),
    ("spec.retry.attempts", 101, "", "at most 100"),
    ("spec.retry.attempts", "3", "", "whole number"),
    ("spec.retry.on", "error", "", "must be a list"),
    ("spec.retry.on", [], "", "at least one"),
    ("spec.retry.on", ["crash"], "/0", "error, timeout, oom"),
    ("spec.retry.on", ["exit:0"], "/0", "1 to 255"),
    ("spec.retry.on", ["exit:256"], "/0", "1 to 255"),
    ("spec.retry.on", ["exit:075"], "/0", "1 to 255"),
    ("spec.retry.on", ["exit:-1"], "/0", "1 to 255"),
    ("spec.retry.on", ["exit:"], "/0", "1 to 255"),
    ("spec.retry.on", ["exit:75", "exit:75"], "/1", "twice"),
    ("spec.job.resources.memoryMax", "512Mi", "", "must not be less than memory, which is 1Gi"),
    ("spec.job.resources.memoryMax", "lots", "", "number of bytes"),
    ("spec.job.resources.memoryMax", None, "", "has no value"),
    ("spec.job.resources.memoryMax", "2Ti", "", "between"),
    ("spec.job.secrets", "TOKEN", "", "must be a list"),
    ("spec.job.secrets", {"TOKEN": "x"}, "", "must be a list"),
    ("spec.job.secrets", [7], "/0", "must be text"),
    ("spec.job.secrets", ["1TOKEN"], "/0", "named as a variable"),
    ("spec.job.secrets", [""], "/0", "named as a variable"),
    ("spec.job.secrets", ["A=B"], "/0", "named as a variable"),
    ("spec.job.secrets", ["A", "B", "A"], "/2", "twice"),
    ("spec.job.secrets", ["RGRID_TOKEN"], "/0", "set by RGrid"),
    ("spec.job.secrets", ["{{ params.name }}"], "/0", "no template"),
    ("spec.job.secrets", [f"S{n}" for n in range(65)], "", "64 is the most"),
    ("spec.job.pullSecret", "ghcr login", "", "named as a variable"),
    ("spec.job.pullSecret", ["GHCR"], "", "must be text"),
    ("spec.job.pullSecret", "RGRID_LOGIN", "", "set by RGrid"),
    ("spec.job.runtime", "python3.12", "", "goes without image"),
    ("spec.job.runtime", "Python 3", "", "named like python3.12"),
    ("spec.job.runtime", 3.12, "", "must be text"),
    ("spec.retry.on", ["error", "error"], "/1", "twice"),
    ("spec.retry.on", [1], "/0", "must be text"),
    ("spec.retry.backoff.initial", 5, "", "with its unit"),
    ("spec.retry.backoff.initial", "2d", "", "between"),
    ("spec.retry.backoff.factor", 0.5, "", "at least 1"),
    ("spec.retry.backoff.factor", 101, "", "at most 100"),
    ("spec.retry.backoff.factor", "2", "", "a number"),
    ("spec.retry.backoff.factor", True, "", "a number"),
    ("spec.retry.backoff.max", "1s", "", "not be shorter than initial"),
    (CALLBACKS, [{"url": "https://example.com", "secret": ""}], "/0/secret", "named as a variable"),
    (CALLBACKS, [{"url": "https://example.com", "secret": "whsec_YQ=="}], "/0/secret", "named as a variable"),
    (CALLBACKS, [{"url": "https://example.com", "secret": []}], "/0/secret", "must name a secret"),
    (CALLBACKS, [{"url": "https://example.com", "secret": ["A", "A"]}], "/0/secret/1", "stands twice"),
    (CALLBACKS, [{"url": "https://example.com", "secret": ["A", 7]}], "/0/secret/1", "name of a secret"),
    (CALLBACKS, [{"url": "https://example.com", "secret": ["A", "B", "C"]}], "/0/secret", "the old one and the new"),
    (CALLBACKS, [{"function": "next", "secret": "A"}], "/0/secret", "belongs to url"),
    (CALLBACKS, [{"url": "https://example.com", "events": ["callback.disabled"]}], "/0/events/0", "must be one of"),
    (CALLBACKS, [{"function": "next", "events": ["job.started"]}], "/0/events/0", "is called for"),
    (CALLBACKS, {}, "", "must be a list"),
    (CALLBACKS, [{}], "/0/url", "is required"),
    (CALLBACKS, [{"url": HOOK}] * 11, "", "10"),
    (CALLBACKS, [{"url": HOOK}] * 2, "/1/url", "twice"),
    (CALLBACKS, [{"url": 5}], "/0/url", "must be text"),
    (CALLBACKS, [{"url": "https://x.example/{{ params.a }}"}], "/0/url", "no template"),
    (CALLBACKS, [{"url": HOOK, "events": []}], "/0/events", "at least one"),
    (CALLBACKS, [{"url": HOOK, "events": ["job.done"]}], "/0/events/0", "job.succeeded"),
    (CALLBACKS, [{"url": HOOK, "events": ["job.failed"] * 2}], "/0/events/1", "twice"),
    (CALLBACKS, [{"url": HOOK, "event": []}], "/0/event", "did you mean “events”"),
    (CALLBACKS, [{"url": HOOK, "function": "publish"}], "/0/function", "make two entries"),
    (CALLBACKS, [{"url": HOOK, "params": {}}], "/0/params", "belongs to function"),
    (CALLBACKS, [{"function": 5}], "/0/function", "must be text"),
    (CALLBACKS, [{"function": "Publish"}], "/0/function", "lower-case"),
    (CALLBACKS, [{"function": "{{ params.f }}"}], "/0/function", "no template"),
    (CALLBACKS, [{"function": "f", "events": []}], "/0/events", "at least one"),
    (CALLBACKS, [{"function": "f", "params": []}], "/0/params", "must be a mapping"),
    (CALLBACKS, [{"function": "f", "params": {"a": ["{{ x.y }}"]}}], "/0/params/a/0", "there is no “x”"),
    (CALLBACKS, [{"function": "f", "params": {"a": "{{ params.a | b }}"}}], "/0/params/a", "no filters"),
    (CALLBACKS, [{"function": "f", "params": {"a": "{{ job.url }}"}}], "/0/params/a", "it may be job.attempt"),
    (CALLBACKS, [{"function": "f", "params": {"a": "{{ outputs }}"}}], "/0/params/a", "is no output's"),
    (CALLBACKS, [{"function": "f", "params": {"a": "{{ outputs.x.uri }}"}}], "/0/params/a", "no output “x”"),
    ("spec.job.command", ["a", "{{ outputs.x.uri }}"], "/1", "only in the params of a callback"),
    ("spec.retention", [], "", "must be a mapping"),
    ("spec.retention", {"job": "30d"}, "/job", "did you mean “jobs”"),
    ("spec.retention", {"jobs": "1h"}, "/jobs", "between 1d and 3650d"),
    ("spec.retention", {"logs": "10s"}, "/logs", "between 1m and"),
    ("spec.retention", {"artifacts": 7}, "/artifacts", "with its unit"),
]  # fmt: skip


def without(path: str) -> dict[str, Any]:
    """``SMALL`` without that key."""
    document = copy.deepcopy(SMALL)
    here: Any = document
    *way, last = path.split(".")
    for key in way:
        here = here[key]
    del here[last]
    return document


@pytest.mark.parametrize(("path", "value", "at", "words"), BAD, ids=[f"{n}-{case[0]}" for n, case in enumerate(BAD)])
def test_a_bad_value_is_refused_at_its_place(path: str, value: Any, at: str, words: str) -> None:
    error = refused(without(path) if value is MISSING else changed(path, value))
    assert "/" + path.replace(".", "/") + at in [one.pointer for one in error.errors]
    assert any(words in one.message for one in error.errors)
    assert all(len(one.message) < 300 for one in error.errors)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/in", "/in/", "in/a", "/out/a", "/in/../etc", "/in/./a", "/in//a", "/in/a/", "/inn/a", "/in/a\nb",
        "/in/params.json", "/in/params.json/x", "/in/" + "x" * 256, "/in/" + "a/" * 600 + "b", "/in/{{ params.a }}",
        "/in/a\x00", "/in/a\u202eb", 5, None, ["/in/a"],
    ],
)  # fmt: skip
def test_an_input_is_a_plain_path_below_in(path: object) -> None:
    error = refused(changed(INPUTS, [{**INPUT, "path": path}]))
    assert [one.pointer for one in error.errors] == ["/spec/job/files/inputs/0/path"]


@pytest.mark.parametrize(
    "path",
    [
        "", "/out", "/out/", "/in/a", "/out/../a", "/out//a", "/out/a/", "/out/a**", "/out/" + "*" * 17,
        "/out/" + "?" * 17, "/out/a\x7f", "/outer/a", 5, None,
    ],
)  # fmt: skip
def test_an_output_is_a_plain_path_or_a_glob_below_out(path: object) -> None:
    error = refused(changed(OUTPUTS, [{**OUTPUT, "path": path}]))
    assert [one.pointer for one in error.errors] == ["/spec/job/files/outputs/0/path"]


@pytest.mark.parametrize(
    "path", ["/out/a b", "/out/é/日本", "/out/*.jpg", "/out/**/x-[0-9]?.png", "/out/result.json", "/out/..a"]
)
def test_paths_that_are_taken(path: str) -> None:
    [output] = parsed(changed(OUTPUTS, [{**OUTPUT, "path": path}])).spec.job.files.outputs
    assert output.path == path


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "https://10.0.0.1/", "https://localhost/", "https://a:b@example.com/",
        "https://169.254.169.254/", "https://example.com:22/", "javascript:alert(1)", "https://2130706433/",
        "//example.com/",
    ],
)  # fmt: skip
def test_a_callback_to_an_address_that_may_not_be_called_is_refused(url: str) -> None:
    error = refused(changed("spec.callbacks", [{"url": url}]))
    assert (error.code, [one.pointer for one in error.errors]) == ("url_refused", ["/spec/callbacks/0/url"])


def test_an_operator_opens_addresses_and_a_stored_manifest_is_not_vetted_again() -> None:
    document = changed("spec.callbacks", [{"url": "http://127.0.0.1:9000/"}])
    document["spec"]["job"]["files"] = {"inputs": [{"path": "/in/a", "url": "http://127.0.0.1:9000/a"}]}
    read = parsed(document, EgressPolicy(allow=("127.0.0.1",)))
    assert stored_manifest(read.normalised()) == read


@pytest.mark.parametrize(
    "image",
    [
        "alpine",
        "alpine:3",
        "a",
        "acme/tool",
        "ghcr.io/acme/tool:1.2-rc.1_x",
        "localhost/tool",
        "localhost:5000/a/b/c:latest",
        "registry.example.com:443/a__b/c--d.e",
        "[::1]:5000/tool",
        "MyRegistry/tool",
        "tool@sha256:" + "a" * 64,
        "ghcr.io/acme/tool:7@sha256:" + "0" * 64,
        "sha256:" + "f" * 64,
        "a" * 255,
        "tool:" + "x" * 128,
    ],
)
def test_an_image_is_named_as_docker_names_it(image: str) -> None:
    assert parsed(changed("spec.job.image", image)).spec.job.image == image


@pytest.mark.parametrize(
    "image",
    [
        "Alpine", "alpine:", ":3", "alpine:3:4", "alpine@", "alpine@sha256:", "alpine@sha256:" + "a" * 63,
        "alpine@sha256:" + "A" * 64, "alpine@md5:" + "a" * 32, "sha256:" + "a" * 63, "a" * 64, "https://ghcr.io/acme/tool",
        "ghcr.io//tool", "/tool", "tool/", "a..b", "-tool", "tool-", "a b", "tool:a b", "tool:" + "x" * 129, "a" * 256,
        "ghcr.io:port/tool", "ghcr.io:/tool", "to\nol", "tool\n", "../tool", "tool:../x", "-v", "--privileged",
        "tool;rm", "tól",
    ],
)  # fmt: skip
def test_what_docker_would_not_take_for_an_image_is_refused(image: str) -> None:
    error = refused(changed("spec.job.image", image))
    assert [one.pointer for one in error.errors] == ["/spec/job/image"]


def test_a_look_up_of_a_param_that_the_schema_does_not_have_is_refused() -> None:
    document = changed("spec.job.command", ["run", "{{ params.widht }}", "{{ params.width }}"])
    document["spec"]["params"] = {"properties": {"width": {}}, "additionalProperties": False}
    error = refused(document)
    assert (error.code, [one.pointer for one in error.errors]) == ("template_invalid", ["/spec/job/command/1"])
    document["spec"]["params"] = {"properties": {"width": {}}}
    assert parsed(document)


@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        ({}, 1),
        ({"cpu": "100m", "memory": "64Mi"}, 1),
        ({"cpu": "1001m"}, 2),
        ({"memory": "2Gi"}, 1),
        ({"memory": 2 * 1024**3 + 1}, 2),
        ({"cpu": 2, "memory": "4Gi"}, 2),
    ],
)
def test_a_job_takes_as_many_slots_as_its_cpu_or_memory_needs(resources: dict[str, Any], slots: int) -> None:
    assert parsed(changed("spec.job.resources", resources)).slots(2 * 1024**3, 2) == slots


def test_a_job_that_no_node_can_hold_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        parsed(changed("spec.job.resources", {"cpu": 3, "memory": "5Gi"})).slots(2 * 1024**3, 2)
    assert caught.value.code == "too_large_for_any_node"
    assert [one.pointer for one in caught.value.errors] == ["/spec/job/resources/cpu", "/spec/job/resources/memory"]


def test_what_is_no_mapping_or_too_much_is_refused() -> None:
    for data in (b"[]", b'"x"', b"3", b"null"):
        with pytest.raises(Invalid, match="mapping with apiVersion"):
            parse_manifest(data, yaml=False, policy=POLICY)
    with pytest.raises(Malformed):
        parse_manifest(b"{", yaml=False, policy=POLICY)
    with pytest.raises(TooLarge):
        parse_manifest(b" " * (LARGEST_BYTES + 1), yaml=False, policy=POLICY)
    with pytest.raises(Invalid, match="look-ups"):
        parsed(changed("spec.job.command", ["{{ params.a }}" * 100] * 11))
    with pytest.raises(Invalid, match="values"):
        parsed({str(n): [[]] for n in range(MOST_VALUES // 2 + 1)})


def test_no_more_than_twenty_faults_are_listed() -> None:
    error = refused(changed("spec.job.env", {f"{n}X": 1 for n in range(100)}))
    assert len(error.errors) == 20
    assert "more)" in str(error)


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*/function.yaml")), ids=lambda path: path.parent.name)
def test_the_templates_are_good_manifests(template: Path) -> None:
    assert parse_manifest(template.read_bytes(), yaml=True, policy=POLICY).metadata.name == template.parent.name


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode), st.booleans())
def test_no_bytes_make_it_raise_anything_else(data: bytes, yaml: bool) -> None:
    with pytest.raises(RGridError):
        parse_manifest(data, yaml=yaml, policy=POLICY)


KEYS = st.sampled_from(
    [
        "metadata", "name", "labels", "spec", "params", "job", "image", "command", "env", "resources", "cpu", "memory",
        "files", "inputs", "outputs", "path", "url", "content", "contentType", "timeout", "user", "retry", "on",
        "backoff", "max", "callbacks", "events", "function", "queue", "type", "properties", "$ref", "default", "x",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["{{ params.a }}", "{{", "10m", "1Gi", "/in/a", "/out/*", "https://example.com/", "error", "job.failed"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


@given(
    st.sampled_from(["metadata", "spec", "spec.params", "spec.job", "spec.job.files", "spec.retry", "spec.callbacks"]),
    VALUES,
)
def test_any_value_in_a_manifest_is_read_or_refused_with_pointers(path: str, value: Any) -> None:
    document = changed(path, value)
    try:
        read = parsed(document)
    except RGridError as error:
        assert error.errors or error.code == "malformed"
    else:
        assert isinstance(read, Manifest)
        assert stored_manifest(json.loads(json.dumps(read.normalised()))) == read
