"""How an hour's price is divided."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.ids import JobId, ProjectId
from nodes.receipts import NOBODY, Ran, divided, price_of_hour, receipts

HOUR_MS = 3_600_000
SERVER, IPV4 = Decimal("0.0088"), Decimal("0.0008")


def ran(project: int, slot_ms: int, number: int = 1) -> Ran:
    return Ran(ProjectId(project), None, JobId(UUID(int=number)), 1, slot_ms)


def test_a_job_that_fills_a_slot_for_half_the_hour_pays_its_time_and_what_nobody_filled() -> None:
    (only,) = receipts(SERVER, IPV4, slots=2, ran=[ran(1, HOUR_MS // 2)], payers=[])
    assert (only.server, only.ipv4, only.idle) == (SERVER / 4, IPV4 / 4, (SERVER + IPV4) * 3 / 4)


def test_those_who_ran_share_by_what_they_filled() -> None:
    made = receipts(SERVER, IPV4, slots=2, ran=[ran(1, HOUR_MS, 1), ran(2, HOUR_MS // 2, 2)], payers=[])
    assert [each.amount for each in made] == [Decimal("0.0064"), Decimal("0.0032")]
    assert [each.idle for each in made] == [Decimal("0.0016"), Decimal("0.0008")]


def test_an_hour_in_which_nothing_ran_is_paid_by_whom_it_was_reserved_for_and_else_by_nobody() -> None:
    payers = [(ProjectId(1), Decimal("0.0064")), (ProjectId(2), Decimal("0.0032"))]
    made = receipts(SERVER, IPV4, slots=2, ran=[ran(3, 0)], payers=payers)
    assert [(each.project, each.job, each.idle) for each in made] == [
        (1, None, Decimal("0.0064")), (2, None, Decimal("0.0032"))
    ]  # fmt: skip
    assert [(each.project, each.amount) for each in receipts(SERVER, IPV4, slots=2, ran=[], payers=[])] == [
        (NOBODY, SERVER + IPV4)
    ]


@given(
    st.decimals("0", "9", places=4), st.decimals("0", "1", places=12), st.integers(1, 64),
    st.lists(st.integers(0, 5 * HOUR_MS), max_size=20),
    st.lists(st.decimals("0", "1", places=6), max_size=4),
)  # fmt: skip
def test_receipts_add_up_to_the_hour_and_none_is_negative(
    server: Decimal, ipv4: Decimal, slots: int, filled: list[int], payers: list[Decimal]
) -> None:
    jobs = [ran(1, slot_ms, number) for number, slot_ms in enumerate(filled)]
    whom = [(ProjectId(number + 1), share) for number, share in enumerate(payers)]
    made = receipts(server, ipv4, slots=slots, ran=jobs, payers=whom)
    assert sum(each.amount for each in made) == server + ipv4
    assert all(min(each.server, each.ipv4, each.idle) >= 0 for each in made)
    if any(filled):
        assert {each.job for each in made} == {each.job for each in jobs if each.slot_ms}


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**12), min_size=1).filter(any))
def test_parts_are_within_one_of_their_due_and_add_up(units: int, weights: list[int]) -> None:
    parts = divided(units, weights)
    assert sum(parts) == units
    assert all(abs(part * sum(weights) - units * weight) < sum(weights) for part, weight in zip(parts, weights, strict=True))


@pytest.mark.parametrize("begun", [datetime(2026, 9, 30, 22, 30, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)])
def test_the_hours_of_a_month_never_cost_more_than_its_price(begun: datetime) -> None:
    hourly, monthly = Decimal("0.0088"), Decimal("5.49")
    months: dict[int, Decimal] = {}
    for hour in range(24 * 32):
        month = (begun + timedelta(hours=hour)).month
        months[month] = months.get(month, Decimal(0)) + price_of_hour(hourly, monthly, created=begun, hour=hour)
    assert months[10] == monthly
    first = 2 if begun.month == 9 else 0
    assert (months.get(9, 0), months[11]) == (first * hourly, (24 * 32 - first - 24 * 31) * hourly)
