"""A cloud that says what is not so, for long: no money is spent on it, nothing busy goes, and it is not called too often."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from functions import ids
from nodes import servers
from nodes.policy.state import Caps
from nodes.provider import NODE_LABEL, OWNER_LABEL
from nodes.rented import State
from tests.hetzner.rules import CREATE, DELETE, LIST, Answer, Call, Edit, Fate
from tests.nodes.fleets import A_MINUTE, AN_HOUR, OWNER, Clouded, order, problem

A_ROUND = timedelta(seconds=2)


async def idle(clouded: Clouded) -> None:
    """A node that has done its work."""
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    await clouded.finish()


@pytest.mark.parametrize("answer", [Answer(401, "unauthorized"), Answer(500, "server_error"), Answer(200, "odd")])
async def test_a_price_list_that_cannot_be_read_is_not_asked_for_in_each_round(clouded: Clouded, answer: Answer) -> None:
    clouded.cloud.inject(answer, method="GET", path="/server_types|/pricing", times=None)
    await clouded.pass_time(5 * A_MINUTE, step=A_ROUND)
    assert len(clouded.cloud.made("GET", "/server_types")) <= 6
    assert "prices" in ((await problem(clouded)) or "")


async def test_prices_in_another_currency_are_told_to_the_operator(clouded: Clouded) -> None:
    clouded.cloud.cloud.currency = "USD"
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    assert "USD" in ((await problem(clouded)) or "")
    clouded.cloud.cloud.currency = "EUR"
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states(), await problem(clouded)) == (["ready"], None)


async def test_by_prices_that_are_hours_old_nothing_is_bought(clouded: Clouded) -> None:
    await clouded.round()
    away = clouded.cloud.inject(Answer(500, "server_error"), method="GET", path="/pricing", times=None)
    await clouded.pass_time(2 * AN_HOUR + 15 * A_MINUTE, step=5 * A_MINUTE)
    for type in clouded.wish.types:
        for location in clouded.wish.locations:
            clouded.cloud.cloud.reprice(type, location, "9.0000", "900.00")
    await clouded.submit()
    await clouded.pass_time(3 * A_MINUTE)
    assert clouded.paid == (0, 0)
    assert "prices" in ((await problem(clouded)) or "")
    clouded.cloud.rules.remove(away)


@pytest.mark.parametrize("price", [None, "", "0.0000"])
async def test_one_type_without_a_price_keeps_no_other_from_being_bought(clouded: Clouded, price: str | None) -> None:
    def spoil(document: Any) -> None:
        for kind in document["server_types"]:
            for each in kind["prices"] if kind["name"] == "cx23" else ():
                each["price_hourly"]["net"] = price

    clouded.cloud.inject(Edit(spoil), method="GET", path="/server_types", times=None)
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    assert [row.offer.type for row in await clouded.live() if row.state is State.READY] == ["cx33"]


async def test_a_server_that_is_said_to_be_off_while_its_node_works_is_left_alone(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    assert len(await clouded.work()) == 1
    (server,) = clouded.cloud.cloud.servers.values()
    server.status = "off"
    await clouded.pass_time(4 * A_MINUTE)
    assert await clouded.states() == ["ready"]


async def test_a_deletion_that_the_cloud_agrees_to_and_forgets_is_paid_for_until_it_is_done(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(forgotten_deletes=60), **CREATE)
    await idle(clouded)
    await clouded.pass_time(4 * AN_HOUR, step=A_MINUTE)
    assert await clouded.states() == ["gone"]
    assert clouded.paid[1] > 1


@pytest.mark.parametrize("lies", ["freeze", "boots", "delete"])
async def test_after_its_date_was_wrong_for_long_nothing_waits_for_moments_of_it(clouded: Clouded, lies: str) -> None:
    if lies == "delete":
        await idle(clouded)
    else:
        await clouded.round()
    clouded.cloud.clock.date_shift = 5 * AN_HOUR
    await clouded.pass_time(15 * A_MINUTE, step=A_MINUTE)
    assert clouded.provider.now() > clouded.cloud.now + AN_HOUR, "it is believed by now"
    if lies == "freeze":
        clouded.cloud.cloud.server_cap = 0
        await clouded.submit()
        await clouded.round()
        clouded.cloud.cloud.server_cap = None
    elif lies == "boots":
        never = clouded.cloud.inject(Fate(machine_never=True), times=None, **CREATE)
        await clouded.submit(5)
        await clouded.pass_time(9 * A_MINUTE, step=A_MINUTE)
        clouded.cloud.rules.remove(never)
    else:
        clouded.cloud.inject(Answer(423, "protected"), times=1, **DELETE)
        await clouded.pass_time(43 * A_MINUTE, step=A_MINUTE)
    clouded.cloud.clock.date_shift = timedelta()
    await clouded.pass_time(6 * A_MINUTE)
    assert (await clouded.states())[-1] == ("gone" if lies == "delete" else "ready")


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (Answer(503, "unavailable"), DELETE),
        (Answer(423, "locked"), DELETE),
        (Answer(409, "conflict"), CREATE),
        (Answer(404, "not_found"), CREATE),
        (Answer(403, "maintenance"), CREATE),
    ],
)
async def test_what_goes_on_failing_is_tried_more_and_more_slowly(
    clouded: Clouded, answer: Answer, calls: dict[str, str]
) -> None:
    if calls is DELETE:
        await idle(clouded)
    failing = clouded.cloud.inject(answer, times=None, **calls)
    if calls is DELETE:
        (row,) = await clouded.live()
        async with clouded.pool.acquire() as conn:
            await servers.delete(conn, row.id, reason="a test wants it", now=clouded.cloud.now)
    else:
        await clouded.submit()
    await clouded.pass_time(30 * A_MINUTE, step=timedelta(seconds=5))
    assert 10 <= failing.met <= 50


async def test_a_server_of_another_type_than_was_ordered_is_paid_for_as_what_it_is(clouded: Clouded) -> None:
    def swap(call: Call, phase: str) -> None:
        clouded.watch(call, phase)
        if (call.method, call.path, phase) == ("POST", "/servers", "before"):
            call.body["server_type"] = "cx33"

    clouded.cloud.on_call = swap
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (row,) = await clouded.live()
    assert (row.state, row.offer.type, row.offer.hourly) == (State.READY, "cx33", Decimal("0.0144"))
    assert [said for said in await clouded.history() if "cx33 at" in said and "was ordered" in said]


async def test_a_server_without_a_row_and_an_address_is_paid_for_without_one(clouded: Clouded) -> None:
    await clouded.round()
    cloud, node = clouded.cloud.cloud, ids.new_uuid7().hex
    server = cloud.servers[order(clouded, f"rgrid-{OWNER}-{node}", node)]
    assert server.ipv4 is not None
    cloud.bill.lines = [line for line in cloud.bill.lines if line.kind == "server"]
    server.ipv4 = None
    await clouded.pass_time(5 * A_MINUTE)
    assert await clouded.states() == ["gone"]


async def test_a_server_without_a_row_that_is_said_to_be_made_tomorrow_is_deleted_all_the_same(clouded: Clouded) -> None:
    await clouded.round()
    node = ids.new_uuid7().hex
    labels = {OWNER_LABEL: OWNER, NODE_LABEL: node}
    clouded.cloud.cloud.foreign(f"rgrid-{OWNER}-{node}", labels, age=-24 * AN_HOUR)
    await clouded.pass_time(5 * A_MINUTE)
    assert clouded.existing == []


async def test_a_list_without_a_total_is_whole_if_it_has_one_page(clouded: Clouded) -> None:
    def uncounted(document: Any) -> None:
        document["meta"]["pagination"] |= {"total_entries": None, "last_page": None}

    clouded.cloud.inject(Edit(uncounted), times=None, **LIST)
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    assert await clouded.states() == ["ready"]


async def test_moments_without_a_zone_are_taken_for_utc(clouded: Clouded) -> None:
    def strip(document: Any) -> None:
        for server in document.get("servers", []):
            server["created"] = server["created"].removesuffix("+00:00").removesuffix("Z")
        for kind in document.get("server_types", []):
            for place in kind["locations"]:
                place["deprecation"] = {"announced": "2026-01-01T00:00:00", "unavailable_after": "2027-01-01T00:00:00"}

    clouded.cloud.inject(Edit(strip), method="GET", path="/servers|/server_types", times=None)
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    assert await clouded.states() == ["ready"]


@pytest.mark.parametrize("caps", [Caps(4), Caps(9, hourly=Decimal("0.0400"))])
async def test_servers_without_rows_that_are_left_to_the_operator_count_against_the_caps(
    clouded: Clouded, caps: Caps
) -> None:
    clouded.wish = replace(clouded.wish, caps=caps)
    clouded.autoscaler = clouded.new_autoscaler()
    for node in [ids.new_uuid7().hex for _ in range(3)]:
        order(clouded, f"rgrid-{OWNER}-{node}", node)
    await clouded.submit(6)
    await clouded.pass_time(3 * A_MINUTE)
    assert "RGRID_DELETE_UNKNOWN" in ((await problem(clouded)) or "")
    assert len(clouded.existing) == 4
    clouded.wish = replace(clouded.wish, delete_unknown=True)
    clouded.autoscaler = clouded.new_autoscaler()
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states()).count("gone") == 3
