"""``rgrid simulate``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Rgrid

SHORT = ("--load", "poisson:30/h,4m", "--hours", 3)


def test_policies_are_compared_side_by_side(rgrid: Rgrid) -> None:
    done = rgrid("simulate", *SHORT)
    assert done.status == 0
    assert [line.split()[0] for line in done.out.splitlines()[1:5]] == ["rgrid", "keep-hour", "idle-10m", "when-idle"]
    for word in ("EUR", "x BOUND", "P95", "STRADDLE", "FAILURES"):
        assert word in done.out
    assert "jobs, bound 0." in done.err


def test_json_has_each_run_with_its_seed_and_its_losses(rgrid: Rgrid) -> None:
    found = rgrid("simulate", *SHORT, "--policies", "rgrid", "--seed", 3, "--seeds", 2, "--paid", 0.5, "--json").json
    assert [(run["policy"], run["seed"]) for run in found["runs"]] == [("rgrid", 3), ("rgrid", 4)]
    for run in found["runs"]:
        assert float(run["bound"]) > 0
        assert sum(map(float, run["losses"].values())) == pytest.approx(float(run["eur"]) - float(run["bound"]))
        assert run["waits"]["jobs"] + run["paid_waits"]["jobs"] == run["jobs"]


def test_a_trace_is_played_and_drawn(rgrid: Rgrid, tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text("arrival,duration,class\n0,4m,clip\n30,90,mail\n")
    done = rgrid("simulate", tmp_path / "jobs.csv", "--policies", "rgrid", "--svg", tmp_path / "run.svg")
    assert done.status == 0
    assert (tmp_path / "run.svg").read_text().startswith("<svg")
    assert done.out.splitlines()[1].split()[:4] == ["rgrid", "0.0096", "1", "1.000"]


def test_spares_shorten_waits_and_cost_money(rgrid: Rgrid) -> None:
    some = ("--load", "poisson:30/h,4m", "--hours", 24, "--policies", "rgrid", "--json")
    [bare], [spared] = (rgrid("simulate", *some, *more).json["runs"] for more in ((), ("--spares", "always")))
    assert float(spared["eur"]) > float(bare["eur"])
    assert spared["waits"]["p95"] < bare["waits"]["p95"]


def test_spares_are_set_beside_the_same_policy_without_them(rgrid: Rgrid, tmp_path: Path) -> None:
    # Drawn loads begin on a Monday, at midnight; traces when they did.
    some = ("--load", "poisson:30/h,4m", "--hours", 10, "--spares")
    done = rgrid("simulate", *some, "mon 02:00-08:00")
    assert [line.split()[0] for line in done.out.splitlines()[1:3]] == ["rgrid", "no-spares"]
    assert "spares: +0." in done.err
    assert "spares: +0.0000 EUR (+0.0 %)" in rgrid("simulate", *some, "tue 02:00-08:00").err
    jobs = "".join(
        f"2026-11-28T{hour:02}:{minute:02}:00+01:00,4m\n" for hour in range(12) for minute in range(0, 60, 2)
    )
    (tmp_path / "jobs.csv").write_text(f"arrival,duration\n{jobs}")
    trace = ("simulate", tmp_path / "jobs.csv", "--spares")
    assert "spares: +0.0000 EUR" in rgrid(*trace, "sat 13:00-24:00 Europe/Berlin").err
    assert "spares: +0.0000 EUR" not in rgrid(*trace, "sat 00:00-12:00 Europe/Berlin").err


def test_types_prices_and_a_rough_cloud_are_chosen(rgrid: Rgrid) -> None:
    types = ("--types", "cx23,cx33", "--price", "cx23=1", "--cloud", "rough", "--policies", "rgrid", "--json")
    [run] = rgrid("simulate", *SHORT, *types).json["runs"]
    assert 0 < float(run["eur"]) < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a trace or --load"),
        (("jobs.csv", "--load", "poisson:1/h,1m"), "give a trace or --load"),
        (("--load", "poisson"), "'poisson' is no load; loads are poisson:60/h,4m"),
        ((*SHORT, "--policies", "best"), "--policies has best; there are rgrid, keep-hour"),
        ((*SHORT, "--policies", ","), "--policies has nothing"),
        ((*SHORT, "--cloud", "sky"), "--cloud has sky; there are even, rough"),
        ((*SHORT, "--types", "cx22"), "--types has cx22"),
        ((*SHORT, "--price", "cx23=x"), "write for instance cx23=0.0096"),
        ((*SHORT, "--price", "cx23=-1"), "write for instance cx23=0.0096"),
        ((*SHORT, "--paid", 2), "'--paid'"),
        ((*SHORT, "--spares", "mon"), "--spares: “mon” has no times"),
    ],
)
def test_wrong_use_is_said_in_one_line(rgrid: Rgrid, arguments: tuple[object, ...], said: str) -> None:
    assert said in rgrid("simulate", *arguments).refused(2)


def test_what_cannot_be_read_or_written_is_said_in_one_line(rgrid: Rgrid, tmp_path: Path) -> None:
    assert "cannot read" in rgrid("simulate", tmp_path / "none.csv").refused()
    assert "simulate more hours" in rgrid("simulate", "--load", "poisson:0.001/h,4m", "--hours", 1).refused()
    short = ("--policies", "rgrid", "--svg", tmp_path / "no" / "file.svg")
    assert "cannot write" in rgrid("simulate", *SHORT, *short).refused()


def test_what_a_trace_has_besides_and_no_server_can_hold_is_said(rgrid: Rgrid, tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("arrival,duration,slot,lane\n0,4m,2,paid\n")
    done = rgrid("simulate", path, "--deadline", "10m")
    assert done.status == 0 and "jobs.csv: not used: slot; columns are arrival," in done.err
    path.write_text("arrival,duration,slots\n0,4m,3\n")
    done = rgrid("simulate", path)
    assert (done.status, done.err) == (1, "error: invalid: a job takes 3 slots: no server of cx23 can hold it\n")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--svg", "/nowhere/run.svg"), 1, "cannot write /nowhere/run.svg"),
        (("--price", "cx33=0.01"), 2, "cx33 is not among --types"),
        (("--price", "cx23=free"), 2, "write for instance cx23=0.0096"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_played(
    rgrid: Rgrid, options: tuple[str, ...], status: int, said: str
) -> None:
    done = rgrid("simulate", *SHORT, *options)
    assert (done.status, done.out) == (status, "") and said in done.err
