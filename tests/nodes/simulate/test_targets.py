"""What the policy must reach, on the loads that docs/measurements.md has for longer and more seeds."""

from __future__ import annotations

import pytest

from nodes.policy.state import Caps, Rules
from nodes.simulate.baselines import POLICIES
from nodes.simulate.clouds import even, offer
from nodes.simulate.engine import play
from nodes.simulate.loads import in_paid_lane, parse
from nodes.simulate.report import Report, report

CLOUD = even([offer("cx23")])
SIX = {
    "poisson:10/h,4m": 96,
    "poisson:60/h,4m": 48,
    "poisson:300/h,4m": 8,
    "burst:240/h,3m,10m/1h": 48,
    "poisson:60/h,20m": 48,
    "diurnal:5-200/h,6m": 24,
}
"""The loads, and for how many hours they are played here."""


def played(spec: str, policy: str, *, paid: float = 0.0) -> Report:
    jobs = in_paid_lane(parse(spec).jobs(SIX[spec] * 3600.0, 1), paid, 6 * 3600.0, 1)
    run = play(jobs, CLOUD, POLICIES[policy](), caps=Caps(nodes=100), rules=Rules(), seed=1)
    return report(run, CLOUD.offers)


@pytest.mark.parametrize("spec", SIX)
def test_a_load_costs_little_more_than_the_least_it_could_and_less_than_under_other_policies(spec: str) -> None:
    ours = played(spec, "rgrid")
    assert ours.ratio <= 1.08
    assert ours.waits.p95 <= 60
    assert all(played(spec, other).eur > ours.eur for other in POLICIES if other not in ("rgrid", "no-spares"))


@pytest.mark.parametrize("spec", SIX)
def test_with_half_of_the_work_in_the_paid_lane_a_load_costs_no_more_than_the_bound(spec: str) -> None:
    ours = played(spec, "rgrid", paid=0.5)
    assert ours.ratio <= 1.0
    assert ours.late == 0
