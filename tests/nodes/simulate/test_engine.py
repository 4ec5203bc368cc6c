from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from functions.errors import Invalid
from nodes.policy.decision import Decision
from nodes.policy.spare_hours import NEVER
from nodes.policy.spare_hours import parse as hours_of
from nodes.policy.state import Caps, FleetState, Rules
from nodes.simulate.baselines import POLICIES, Ours
from nodes.simulate.clouds import Cloud, even, offer, rough
from nodes.simulate.engine import Run, play
from nodes.simulate.loads import Job, in_paid_lane, parse
from nodes.simulate.report import billed_hours, report
from nodes.simulate.timeline import draw

CX23 = offer("cx23")
EVEN = even([CX23])
HOUR = 3600.0


def played(jobs: Sequence[Job], cloud: Cloud = EVEN, policy: str = "rgrid", nodes: int = 50, seed: int = 1) -> Run:
    return play(jobs, cloud, POLICIES[policy](), caps=Caps(nodes=nodes), rules=Rules(), seed=seed)


def poisson(hours: float, spec: str = "poisson:60/h,4m", seed: int = 1) -> list[Job]:
    return parse(spec).jobs(hours * HOUR, seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_paid_job_that_comes_alone_starts_by_its_deadline(policy: str) -> None:
    [(_, started)] = played([Job(at=0.0, runs=60.0, paid=True, deadline=HOUR)], policy=policy).starts
    assert HOUR - 60 < started <= HOUR


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(at=0.0, runs=60.0, slots=3), "a job takes 3 slots: no server of cx23"),
        (Job(at=0.0, runs=60.0, memory=5 * 1024**3), "a job takes 1 slots and 5.0 GiB"),
    ],
)
def test_a_job_that_no_server_can_hold_is_refused_rather_than_waited_for(job: Job, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        played([job])


def test_one_job_costs_one_hour_and_waits_for_one_boot() -> None:
    run = played([Job(at=1.0, runs=100.0)])
    [machine] = run.machines
    found = report(run, [CX23])
    assert (found.eur, found.hours, found.bound, found.ratio) == (Decimal("0.0096"), 1, Decimal("0.0096"), 1.0)
    # It woke the round that bought, and the node was ready a minute later.
    assert machine.node.created_at == 1.0
    assert found.waits.longest == 60.0
    assert 1 + HOUR - 120 <= machine.gone <= 1 + HOUR - 110


class Counted(Ours):
    """Knows when its rounds were."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def decide(self, state: FleetState, caps: Caps, now: float, rules: Rules) -> Decision:  # type: ignore[override]  # ours is static
        self.at.append(now)
        return Ours.decide(state, caps, now, rules)


def test_jobs_without_room_wake_rounds_that_stay_apart() -> None:
    policy = Counted()
    flood = [Job(at=5.0 + n / 100, runs=60.0) for n in range(300)]
    play(flood, EVEN, policy, caps=Caps(nodes=10), rules=Rules(), seed=1)
    assert policy.at[:3] == [5.0, 5.5, 6.0]
    assert min(after - before for before, after in itertools.pairwise(policy.at)) >= Rules().apart_s


def test_rounds_that_nothing_wakes_follow_one_another_regularly() -> None:
    policy = Counted()
    play([Job(5.3, 100.0)], EVEN, policy, caps=Caps(nodes=10), rules=Rules(), seed=1)
    turns = [(at - 5.3) / Rules().round_s for at in policy.at]
    assert turns == pytest.approx([round(turn) for turn in turns])


def test_a_second_job_in_the_hour_uses_the_same_node() -> None:
    run = played([Job(0.0, 100.0), Job(3000.0, 100.0)])
    assert len(run.machines) == 1
    assert [at - job.at for job, at in run.starts] == [60.0, 0.0]


def test_the_same_seed_plays_the_same() -> None:
    cloud = rough([CX23, offer("cpx22")])
    assert _essence(played(poisson(12), cloud, seed=5)) == _essence(played(poisson(12), cloud, seed=5))
    assert _essence(played(poisson(12), cloud, seed=5)) != _essence(played(poisson(12), cloud, seed=6))


def _essence(run: Run) -> object:
    return (
        run.calls,
        run.rounds,
        [(machine.node.offer.type, machine.node.created_at, machine.gone) for machine in run.machines],
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_job_runs_and_every_server_goes_under_every_policy_on_bad_days(policy: str) -> None:
    cloud = replace(
        rough([CX23, offer("cpx22")]), lost_an_hour=0.3, failed_boots=0.2, refused=0.2, outages=((HOUR, 1.5 * HOUR),)
    )
    jobs = in_paid_lane(poisson(8), 0.3, 1800.0, 1)
    run = played(jobs, cloud, policy)
    assert {id(job) for job, _ in run.starts} == {id(job) for job in jobs}
    assert all(math.isfinite(machine.gone) for machine in run.machines)
    assert not [at for job, at in run.starts if HOUR <= at < 1.5 * HOUR]
    found = report(run, cloud.offers)
    assert (found.failed_servers > 0, found.lost > 0, found.losses["failures"] > 0) == (True, True, True)


def test_two_idle_hours_later_no_server_is_left() -> None:
    run = played(poisson(6, "poisson:300/h,4m"))
    last = max(at + job.runs for job, at in run.starts)
    assert run.ended < last + 2 * HOUR


def test_caps_hold_at_every_moment() -> None:
    run = played(poisson(2, "poisson:60/h,4m"), nodes=2)
    assert run.most_nodes == 2
    assert _most_at_a_time(run) == 2


def _most_at_a_time(run: Run) -> int:
    changes = sorted([(m.node.created_at, 1) for m in run.machines] + [(m.gone, -1) for m in run.machines])
    there = most = 0
    for _, change in changes:
        there += change
        most = max(most, there)
    return most


def test_no_server_is_kept_idle_while_a_stranger_to_its_account_waits() -> None:
    jobs = [Job(0.0, 60.0, account=1), Job(200.0, 60.0, account=2)]
    run = played(jobs)
    assert {machine.node.account for machine in run.machines} == {1, 2}


def test_losses_add_up_to_what_was_paid_over_the_bound() -> None:
    for cloud, policy in (
        (EVEN, "rgrid"),
        (EVEN, "when-idle"),
        (rough([CX23, offer("cx33"), offer("cpx22")]), "rgrid"),
    ):
        found = report(played(poisson(10), cloud, policy), cloud.offers)
        assert sum(found.losses.values()) == found.eur - found.bound


def test_a_bill_counts_hours_begun_of_each_server_at_the_price_of_its_purchase() -> None:
    cloud = replace(EVEN, dearer=(2 * HOUR, Decimal(2)))
    run = played(poisson(5), cloud)
    prices = {machine.node.offer.hourly for machine in run.machines}
    assert prices == {Decimal("0.0096"), Decimal("0.0192")}
    assert all((m.node.offer.hourly > Decimal("0.0096")) == (m.node.created_at > 2 * HOUR) for m in run.machines)
    assert report(run, [CX23]).eur == sum(billed_hours(m) * m.node.offer.hourly for m in run.machines)


def test_a_spare_that_a_job_takes_is_replaced_at_the_autoscalers_next_turn_in_the_hours_for_it() -> None:
    jobs = [Job(at=0.0, runs=8000.0), Job(at=300.5, runs=8000.0), Job(at=600.0, runs=1.0)]
    for hours, bought in (
        (NEVER, [0.0, 600.0]),
        (hours_of("thu 00:00-01:00"), [0.0, 302.0]),
        (hours_of("thu 00:07-01:00"), [0.0, 420.0]),
    ):
        run = play(jobs, EVEN, Ours(), caps=Caps(9), rules=Rules(spares=hours), seed=1)
        assert [machine.node.created_at for machine in run.machines] == bought


def test_the_rate_limit_of_the_cloud_is_kept_far_from() -> None:
    run = played(poisson(6, "poisson:300/h,4m"))
    calls_of_nodes = run.calls / len(run.machines)
    assert calls_of_nodes <= 3
    assert report(run, [CX23]).calls_an_hour <= 180 + 3 * len(run.machines) / 6


def test_servers_are_listed_thrice_a_minute_and_once_while_there_is_none() -> None:
    run = played([Job(at=2 * HOUR, runs=100.0), Job(at=2 * HOUR + 1, runs=100.0), Job(at=5 * HOUR, runs=100.0)])
    first, second = run.machines
    served = first.gone - first.node.created_at + second.gone - second.node.created_at
    calls = report(run, [CX23]).calls_an_hour * run.ended / HOUR
    assert calls == pytest.approx(run.calls + served / 20 + (run.ended - served) / 60)


def test_a_timeline_shows_every_node_and_is_well_formed() -> None:
    run = played(in_paid_lane(poisson(5), 0.5, 3600, 1), rough([CX23]))
    drawn = ElementTree.fromstring(draw(run, report(run, [CX23]), "a <load> & more"))
    text = "".join(drawn.itertext())
    assert "rgrid: a <load> & more" in text
    assert len(drawn.findall(".//{*}rect")) > len(run.starts)
