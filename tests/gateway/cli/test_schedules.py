"""``rgrid schedules``."""

from __future__ import annotations

from tests.gateway.cli.conftest import Connected

NIGHTLY = {"name": "nightly", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "jitter": "30s"}
JOB = {"image": "busybox:1", "command": ["true"]}


async def test_schedules_are_added_listed_shown_and_removed(call: Connected) -> None:
    assert "no schedules yet" in (await call("schedules")).err
    await call.apply(triggers={"schedules": [NIGHTLY]}, job=JOB, params={"type": "object"})
    added = await call("schedules", "add", "greet", "own", "*/10 * * * *", "-p", "n=3", "--overlap", "allow", "--jitter", "1m")
    assert added.out.startswith("greet/own  next 20")
    lines = (await call("schedules")).out.splitlines()
    assert [line.split()[0] for line in lines] == ["SCHEDULE", "greet/own", "greet/nightly"]
    assert lines[1].split()[-1] == "api" and lines[2].split()[-1] == "manifest" and "Europe/Berlin" in lines[2]
    shown = (await call("schedules", "show", "greet/own")).out
    assert shown.count("next ") == 5 and '{"n": 3}' in shown and "allow" in shown and "1m" in shown
    found = (await call("schedules", "list", "--function", "greet", "--json")).json["data"]
    assert (await call("schedules", "show", found[0]["id"], "--json")).json == found[0]
    assert (await call("schedules", "rm", "greet/own")).out == "greet/own removed\n"
    assert (await call("schedules", "rm", "greet/own")).refused().startswith("there is no schedule greet/own")
    assert (await call("schedules", "rm", "greet/nightly")).refused().startswith("schedule_of_manifest: ")


async def test_a_schedule_is_paused_resumed_and_triggered(call: Connected) -> None:
    await call.apply(triggers={"schedules": [NIGHTLY]}, job=JOB, params={"type": "object"})
    assert (await call("schedules", "pause", "greet/nightly")).out == "greet/nightly  paused\n"
    assert "paused" in (await call("schedules")).out
    job = (await call("schedules", "trigger", "greet/nightly")).out.strip()
    assert job.startswith("job_")
    assert "next 20" in (await call("schedules", "resume", "greet/nightly")).out
    rows = (await call("schedules", "runs", "greet/nightly")).out.splitlines()
    assert len(rows) == 2 and job in rows[1] and "submitted" in rows[1] and "asked for" in rows[1]
    assert (await call("schedules", "runs", "greet/nightly", "--state", "missed")).err == "no such times yet\n"
    assert (await call("schedules", "show", "greet/nightly", "--json")).json["last_run"]["job"] == job


async def test_what_is_wrong_is_one_line(call: Connected) -> None:
    await call.apply(job=JOB, params={"type": "object"})
    assert "/cron" in (await call("schedules", "add", "greet", "own", "0 0 30 2 *")).refused()
    assert "did you mean Europe/Berlin" in (
        await call("schedules", "add", "greet", "own", "@daily", "--timezone", "Europe/Berln")
    ).refused()
    assert "function_not_found" in (await call("schedules", "add", "none", "own", "@daily")).refused()
    assert "FUNCTION/NAME" in (await call("schedules", "show", "a b")).refused(2)
    assert "schedule_not_found" in (await call("schedules", "pause", "sch_" + "0" * 32)).refused()
