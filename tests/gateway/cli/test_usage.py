"""``rgrid usage``."""

from __future__ import annotations

import pytest

from gateway.cli.show import _cost
from gateway.cli.usage import _warn
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


@pytest.mark.parametrize("day", ["2026-13-01", "2026-02-30", "1.2.2026", "20261101", "yesterday", ""])
async def test_what_is_no_day_is_refused_in_plain_words(call: Connected, day: str) -> None:
    said = (await call("usage", "--from", day)).refused(2)
    assert f"{day!r} is no day: write one like 2026-11-25" in said and "%" not in said


async def test_a_job_shows_its_cost_if_it_has_any() -> None:
    cost = {"currency": "EUR", "amount": "0.000853", "estimated": True}
    shown = [_cost(cost), _cost(cost | {"estimated": False}), _cost(cost | {"amount": "0.000000"})]
    assert shown == ["0.000853 EUR so far", "0.000853 EUR", None]


async def test_a_budget_is_set_shown_and_removed(call: Connected) -> None:
    assert "no limit" in (await call("usage", "budget")).out
    assert (await call("usage", "budget", "25.5", "--json")).json["left"] == "25.500000"
    for wrong in ("much", "-5", "1e3", "12,50"):
        assert "write EUR like 25 or 12.50, or none" in (await call("usage", "budget", "--", wrong)).refused(2)
    assert "more than 0" in (await call("usage", "budget", "0")).refused()
    assert "no limit" in (await call("usage", "budget", "none")).out


def test_a_budget_that_is_nearly_used_up_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    budget = {"monthly": "25.000000", "used_percent": 83, "warning": True}
    _warn(budget)
    _warn(budget | {"used_percent": 79, "warning": False})
    _warn(None)
    assert capsys.readouterr().err.strip() == "83% of the month's budget of 25.000000 EUR are used or reserved"
