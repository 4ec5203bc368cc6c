"""A job for people: as fields, as a row of a table, and its failure in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.cli.output import age, fields, moment, out, size, span, table

COLUMNS = ("ID", "FUNCTION", "STATUS", "CREATED", "TOOK", "NOTE")
LONGEST = 2000
"""Characters of params or result that are shown; --json has all of them."""


def show_job(job: dict[str, Any]) -> None:
    fields(_fields(job))
    if job["outputs"]:
        out("")
        table(("OUTPUT", "PATH", "SIZE", "TYPE", "LINK"), (_output(output) for output in job["outputs"]))


def row(job: dict[str, Any]) -> tuple[object, ...]:
    """The job under ``COLUMNS``."""
    return (job["id"], _function(job), job["status"], age(job["created_at"]), _took(job), _note(job))


def why(job: dict[str, Any]) -> str:
    """Why the job is no success, in one line."""
    error = job.get("error")
    if not error:
        return f"{job['id']} {job['status']}"
    return f"{job['id']} {job['status']}: {error['code']}: {error['message']}"


def event_rows(events: list[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """Time, type and whatever else each event has."""
    for event in events:
        rest = {
            name: value for name, value in event.items() if name not in ("at", "type") and value is not None
        }
        said = " ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in rest.items()
        )
        yield event["at"], event["type"], said


def _fields(job: dict[str, Any]) -> Iterator[tuple[str, object]]:
    error = job["error"]
    yield "id", job["id"]
    yield "function", _function(job)
    yield "status", job["status"]
    yield "waits for", job["wait_reason"]
    yield "due", job["eta"]
    if job["status"] == "running" and job["progress"] is not None:
        yield "progress", f"{job['progress']:.0%}"
    if error:
        yield "error", f"{error['code']}: {error['message']}"
    yield "exit code", job["exit_code"]
    yield "attempt", f"{job['attempt']} of {job['max_attempts']}" if job["attempt"] else None
    yield "retried from", job.get("retried_from")
    yield "trigger", " ".join(str(value) for value in job["trigger"].values())
    yield "params", _json(job["params"])
    yield "result", None if job["result"] is None else _json(job["result"])
    yield "created", f"{job['created_at']} ({age(job['created_at'])})"
    yield "took", _took(job)
    yield "node", job["node"]
    yield "cost", _cost(job["cost"])
    yield "may cost", f"{job['max_cost']} {job['cost']['currency']}" if job.get("max_cost") else None
    yield "callback", job["callback_url"]


def _output(output: dict[str, Any]) -> tuple[object, ...]:
    return output["name"], output["path"], size(output["size"]), output["content_type"], output["link"]


def _function(job: dict[str, Any]) -> str:
    return f"{job['function']} v{job['version']}" if job["function"] else ""


def _took(job: dict[str, Any]) -> str:
    """Queueing and running, as far as they have come."""
    started, finished = job["started_at"], job["finished_at"]
    if job["status"] == "running" and started:
        return span(datetime.now(UTC) - moment(started))
    if not finished:
        return ""
    parts = [span(timedelta(milliseconds=job["run_ms"]))] if job["run_ms"] else []
    if job["queue_ms"]:
        booting = f" (a node booted for {span(timedelta(milliseconds=job['boot_ms']))})" if job["boot_ms"] else ""
        parts.append(f"queued {span(timedelta(milliseconds=job['queue_ms']))}{booting}")
    return ", ".join(parts)


def _cost(cost: dict[str, Any]) -> str | None:
    """None for what costs nothing, as on machines of one's own."""
    if not cost["amount"].strip("0."):
        return None
    return f"{cost['amount']} {cost['currency']}{' so far' if cost.get('estimated') else ''}"


def _note(job: dict[str, Any]) -> str:
    if job["error"]:
        return str(job["error"]["code"])
    if job["status"] == "running" and job["progress"] is not None:
        return f"{job['progress']:.0%}"
    if job["status"] == "scheduled" and job["eta"]:
        return f"due {job['eta']}"
    return str(job["wait_reason"] or "")


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
