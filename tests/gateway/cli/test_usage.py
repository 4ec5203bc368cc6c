"""``rgrid usage``."""

from __future__ import annotations

from gateway.cli.show import _cost
from tests.gateway.cli.conftest import Connected


async def test_usage_is_shown_by_function_or_day(call: Connected) -> None:
    assert "nothing was used" in (await call("usage")).err
    await call.apply(job={"image": "busybox:1", "command": ["true"]})
    await call("invoke", "greet")
    job = (await call("jobs", "--json")).json["data"][0]["id"]
    await call("cancel", job)
    assert (await call("usage")).out.splitlines()[1].split()[:2] == ["greet", "1"]
    found = (await call("usage", "--by", "day", "--json")).json
    assert [(row["group"], row["jobs"]) for row in found["data"]] == [(found["to"], 1)]
    assert "--by" in (await call("usage", "--by", "node")).refused(2)
    assert "/query/to" in (await call("usage", "--from", "2026-11-02", "--to", "2026-11-01")).refused()


async def test_a_job_shows_its_cost_if_it_has_any() -> None:
    cost = {"currency": "EUR", "amount": "0.000853", "estimated": True}
    shown = [_cost(cost), _cost(cost | {"estimated": False}), _cost(cost | {"amount": "0.000000"})]
    assert shown == ["0.000853 EUR so far", "0.000853 EUR", None]


async def test_a_budget_is_set_shown_and_removed(call: Connected) -> None:
    assert "no limit" in (await call("usage", "budget")).out
    assert (await call("usage", "budget", "25.5", "--json")).json["left"] == "25.500000"
    assert "/monthly" in (await call("usage", "budget", "much")).refused()
    assert "no limit" in (await call("usage", "budget", "none")).out
