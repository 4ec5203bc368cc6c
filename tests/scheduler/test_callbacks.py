"""Who hears of an event, and what a message says: values only."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.grammar import Callback
from functions.ids import EndpointId, FunctionId
from functions.listening import Listener
from scheduler.callbacks import BODY_BYTES, body_of, endpoints_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = "https://a.example/", "https://b.example/"
FUNCTION = FunctionId(uuid4())


def listener(url: str, *events: str, of: FunctionId | None = None, **more: Any) -> Listener:
    values: dict[str, Any] = {"functions": None, "enabled": True} | more
    return Listener(EndpointId(uuid4()), of, url, events, **values)


def callback(url: str, *events: str, **more: Any) -> Callback:
    return Callback(url=url, events=events, **more)


def test_a_versions_callback_is_told_by_its_row_and_without_one_as_well() -> None:
    named = [callback(A, "job.failed", secret=["KEY"])]
    (bare,) = endpoints_of(named, None, None, "job.failed")
    assert (bare.id, bare.secrets, bare.enabled) == (None, ("KEY",), True)
    row = listener(A, "job.succeeded", of=FUNCTION, enabled=False)
    (told,) = endpoints_of(named, None, None, "job.failed", listeners=[row])
    assert (told.id, told.enabled) == (row.id, False)
    # What it hears of is said by the version, not by the row.
    assert endpoints_of(named, None, None, "job.succeeded", listeners=[row]) == []
    assert endpoints_of([], None, None, "job.succeeded", listeners=[row]) == []


@pytest.mark.parametrize(
    ("functions", "function", "told"),
    [(None, "f", 1), (None, None, 1), (("f", "g"), "f", 1), (("g",), "f", 0), (("g",), None, 0)],
)
def test_an_endpoint_of_the_project_hears_of_the_functions_that_it_asks_for(
    functions: tuple[str, ...] | None, function: str | None, told: int
) -> None:
    row = listener(A, "job.failed", functions=functions)
    assert len(endpoints_of([], None, None, "job.failed", listeners=[row], function=function)) == told
    assert endpoints_of([], None, None, "job.expired", listeners=[row], function=function) == []


def test_the_jobs_own_address_is_told_once_and_the_others_each() -> None:
    rows = [listener(A, "job.failed"), listener(A, "job.failed"), listener(B, "job.failed", enabled=False)]
    told = endpoints_of([callback(A, "job.failed")], A, None, "job.failed", listeners=rows)
    assert [(each.url, each.id) for each in told] == [(A, None), (A, rows[0].id), (A, rows[1].id), (B, rows[2].id)]
    # One that is disabled is told nothing: the job's own address stands for itself then.
    told = endpoints_of([], B, None, "job.failed", listeners=rows)
    assert [(each.url, each.id is None) for each in told] == [(A, False), (A, False), (B, False), (B, True)]


@pytest.mark.parametrize("kind", ["job.started", "job.progress"])
def test_what_passes_is_not_kept_for_an_endpoint_that_is_disabled(kind: str) -> None:
    rows = [listener(A, kind, enabled=False), listener(B, kind)]
    assert [each.url for each in endpoints_of([], None, None, kind, listeners=rows)] == [B]
    assert endpoints_of([], A, None, kind) == [], "only to those that ask"
    assert len(endpoints_of([], A, [kind], kind)) == 1


def job(**more: Any) -> dict[str, Any]:
    return {"id": "job_1", "params": {}, "result": None, "error": None, "outputs": []} | more


def output(number: int, padding: int) -> dict[str, Any]:
    link = "https://store.example/" + "x" * padding
    return {"name": f"o{number}", "sha256": f"{number:064x}", "url": link, "url_expires_at": "t", "link": "/r/1"}


def sent(data: dict[str, Any]) -> dict[str, Any]:
    body = body_of("job.succeeded", NOW, data)
    assert len(body.encode()) <= BODY_BYTES
    message: dict[str, Any] = json.loads(body)
    assert (message["type"], message["timestamp"]) == ("job.succeeded", "2026-01-01T00:00:00.000Z")
    told: dict[str, Any] = message["data"]
    return told


def test_a_message_that_fits_is_sent_whole() -> None:
    whole = job(params={"a": "x" * 18_000}, outputs=[output(1, 500)])
    assert sent(whole) == whole


def test_what_is_too_large_is_left_out_and_named() -> None:
    large = job(params={"a": "x" * 20_000}, result=[1], outputs=[output(1, 500)])
    assert sent(large) == large | {"params": None, "result": None, "omitted": ["params", "result"]}

    error = {"code": "exit_nonzero", "message": "é" * 4096, "attempt": 1}
    told = sent(job(error=error))
    assert told["omitted"] == ["error.message"]
    assert told["error"] == error | {"message": "é" * 500}

    files = [output(number, 900) for number in range(40)]
    told = sent(job(outputs=files))
    assert told["omitted"] == ["outputs.url"]
    assert [each["sha256"] for each in told["outputs"]] == [each["sha256"] for each in files]
    assert {each["url"] for each in told["outputs"]} == {None}

    files = [output(number, 900) for number in range(1000)]
    told = sent(job(outputs=files))
    assert told["omitted"] == ["outputs.url", "outputs"]
    assert [each["name"] for each in told["outputs"]] == [f"o{number}" for number in range(len(told["outputs"]))]
    with_one_more = told | {"outputs": [*told["outputs"], output(0, 0) | {"url": None, "url_expires_at": None}]}
    assert len(json.dumps(with_one_more, separators=(",", ":"))) > BODY_BYTES - 200


@given(
    params=st.integers(0, 30_000), result=st.integers(0, 30_000), message=st.integers(0, 4096),
    files=st.integers(0, 60), padding=st.integers(0, 1500), letter=st.sampled_from(["x", "é", "\ud800", "🙂"]),
)  # fmt: skip
def test_no_job_makes_a_message_too_large(
    params: int, result: int, message: int, files: int, padding: int, letter: str
) -> None:
    data = job(
        params={"a": letter * params},
        result=letter * result,
        error={"code": "c", "message": letter * message, "attempt": 1},
        outputs=[output(number, padding) for number in range(files)],
    )
    before = json.dumps(data)
    sent(data)
    assert json.dumps(data) == before, "the job object is the caller's"
