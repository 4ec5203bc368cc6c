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
    ],
)
def test_wrong_use_is_said_in_one_line(rgrid: Rgrid, arguments: tuple[object, ...], said: str) -> None:
    assert said in rgrid("simulate", *arguments).refused(2)


def test_what_cannot_be_read_or_written_is_said_in_one_line(rgrid: Rgrid, tmp_path: Path) -> None:
    assert "cannot read" in rgrid("simulate", tmp_path / "none.csv").refused()
    assert "simulate more hours" in rgrid("simulate", "--load", "poisson:0.001/h,4m", "--hours", 1).refused()
    short = ("--policies", "rgrid", "--svg", tmp_path / "no" / "file.svg")
    assert "cannot write" in rgrid("simulate", *SHORT, *short).refused()
