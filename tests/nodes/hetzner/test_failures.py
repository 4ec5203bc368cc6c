"""Each failure that a cloud is known for, and what the provider makes of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from nodes.hetzner.provider import HetznerProvider
from nodes.provider import (
    NODE_LABEL,
    OWNER_LABEL,
    AccountLimit,
    Busy,
    Limit,
    NameTaken,
    OfferRefused,
    OutOfStock,
    ProviderError,
    RateLimited,
    Refused,
    Status,
    Uncertain,
    Unreachable,
)
from tests.hetzner.rules import (
    CREATE,
    DELETE,
    LIST,
    Answer,
    Drop,
    Effect,
    Fate,
    Hang,
    Hold,
    Omit,
    Slow,
    Stale,
    asks_for,
    first_page,
    later_page,
)
from tests.hetzner.server import Emulator
from tests.nodes.hetzner.conftest import provider_of
from tests.nodes.hetzner.orders import IMAGE, OWNER, X86, offer_of, order_of

MINUTE = timedelta(minutes=1)


# 1: stock.


async def test_what_is_out_of_stock_is_left_alone_for_longer_each_time(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    """The list says yes and the purchase no: each lasts as long as the cloud is asked for it in vain."""
    order = await order_of(provider)
    cloud.cloud.stock("cx23", "fsn1", shown=True, left=0)
    waits = []
    for _ in range(6):
        with pytest.raises(OutOfStock, match="cx23 at fsn1 is out of stock") as caught:
            await provider.create(order)
        assert caught.value.offer == order.offer
        waits.append((caught.value.again_at - cloud.now) / MINUTE)
        offer = await offer_of(provider)
        assert (offer.available, offer.again_at) == (False, caught.value.again_at)
        assert (await offer_of(provider, "cx23", "nbg1")).available
        cloud.advance(caught.value.again_at - cloud.now)
        assert (await offer_of(provider)).again_at is None
    assert waits == [1, 2, 4, 8, 15, 15]
    assert len(cloud.made("POST", "/servers")) == 6


async def test_the_breaker_forgets_after_a_success_and_after_a_while(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    cloud.cloud.stock("cx23", "fsn1", shown=True, left=0)
    for _ in range(3):
        with pytest.raises(OutOfStock) as caught:
            await provider.create(order)
        cloud.advance(caught.value.again_at - cloud.now)
    cloud.cloud.stock("cx23", "fsn1", left=1)
    await provider.create(order)
    with pytest.raises(OutOfStock) as caught:
        await provider.create(await order_of(provider, "rgrid-a-2"))
    assert caught.value.again_at == cloud.now + MINUTE
    cloud.advance(MINUTE)
    with pytest.raises(OutOfStock) as caught:
        await provider.create(await order_of(provider, "rgrid-a-3"))
    cloud.advance(timedelta(hours=1))
    with pytest.raises(OutOfStock) as caught:
        await provider.create(await order_of(provider, "rgrid-a-4"))
    assert caught.value.again_at == cloud.now + MINUTE


async def test_stock_by_a_schedule_and_a_refused_placement_are_shortages_alike(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    cloud.cloud.at(cloud.now + timedelta(hours=1), lambda: cloud.cloud.stock("cx23", "fsn1", left=0))
    cloud.cloud.at(cloud.now + timedelta(hours=2), lambda: cloud.cloud.stock("cx23", "fsn1"))
    cloud.advance(timedelta(hours=1))
    assert not (await offer_of(provider)).available
    with pytest.raises(OutOfStock):
        await provider.create(order)
    cloud.advance(timedelta(hours=1))
    assert (await offer_of(provider)).available
    cloud.inject(Answer(422, "placement_error", "error during placement"), **CREATE)
    with pytest.raises(OutOfStock):
        await provider.create(order)


# 2: the outcome is unknown.

LOST: list[Effect] = [
    Drop(commit=True),
    Answer(500, "server_error", None, commit=True),
    Answer(502, "bad_gateway", commit=True),
    Answer(503, "unavailable", commit=True),
    Answer(504, "timeout", commit=True),
    Answer(503, html=True, commit=True),
    Answer(504, html=True, commit=True),
    Answer(201, html=True, commit=True),
    Answer(201, "an answer of another shape", commit=True),
]


@pytest.mark.parametrize("effect", LOST, ids=lambda effect: f"{effect!r:.70}")
async def test_a_purchase_whose_answer_is_lost_is_sent_once_and_adopted(
    cloud: Emulator, provider: HetznerProvider, effect: Effect
) -> None:
    order = await order_of(provider)
    await provider.prepare(IMAGE, X86)
    cloud.inject(effect, **CREATE)
    with pytest.raises(Uncertain):
        await provider.create(order)
    assert len(cloud.made("POST", "/servers")) == 1
    (listed,) = (await provider.list_servers()).servers
    assert (listed.name, listed.labels[NODE_LABEL]) == (order.name, order.labels[NODE_LABEL])
    assert (await provider.create(order)).id == listed.id
    assert len(cloud.cloud.servers) == 1


@pytest.mark.parametrize("effect", [Hang(60), Slow(60, pieces=600)], ids=["silent", "trickling"])
async def test_a_purchase_whose_answer_does_not_come_or_trickles_is_given_up_in_time(
    cloud: Emulator, hasty: HetznerProvider, provider: HetznerProvider, effect: Effect
) -> None:
    order = await order_of(provider)
    for each in (hasty, provider):
        await each.prepare(IMAGE, X86)
    cloud.inject(effect, **CREATE)
    began = time.monotonic()
    with pytest.raises(Uncertain):
        await hasty.create(order)
    assert time.monotonic() - began < 30
    assert len(cloud.made("POST", "/servers")) == len(cloud.cloud.servers) == 1
    assert (await provider.create(order)).name == order.name


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_purchase_that_failed_with_a_broken_cloud_can_be_tried_again(
    cloud: Emulator, provider: HetznerProvider, status: int
) -> None:
    order = await order_of(provider)
    code = {500: "server_error", 502: "bad_gateway", 503: "unavailable", 504: "timeout"}[status]
    cloud.inject(Answer(status, code, None), **CREATE)
    cloud.inject(Answer(status, html=True), **CREATE, skip=1)
    for _ in range(2):
        with pytest.raises(Uncertain):
            await provider.create(order)
        assert (await provider.list_servers()).servers == ()
    assert (await provider.create(order)).name == order.name


async def test_a_cloud_that_cannot_be_reached_at_all_has_done_nothing(
    provider: HetznerProvider, cloud: Emulator
) -> None:
    order = await order_of(provider)
    await provider.prepare(IMAGE, X86)
    cloud.__exit__()
    provider.close()
    other = provider_of(cloud)
    for call in (
        other.create(order),
        other.list_servers(),
        other.catalogue(),
        other.delete(1),
        other.prepare("x", X86),
    ):
        with pytest.raises(Unreachable, match="cannot be reached"):
            await call
    other.close()


# 3, 4: names.


async def test_the_name_of_a_foreign_server_is_given_up_after_one_try(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    theirs = cloud.cloud.foreign(order.name, {OWNER_LABEL: OWNER, NODE_LABEL: "another"})
    with pytest.raises(NameTaken, match="another server's"):
        await provider.create(order)
    assert len(cloud.made("POST", "/servers")) == 1
    assert list(cloud.cloud.servers) == [theirs.id]


async def test_a_foreign_server_with_our_prefix_and_another_owner_is_never_seen(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    theirs = cloud.cloud.foreign("rgrid-a-9", {OWNER_LABEL: "another", NODE_LABEL: "a-9"})
    assert (await provider.list_servers()).servers == ()
    with pytest.raises(NameTaken):
        await provider.create(await order_of(provider, "rgrid-a-9"))
    assert theirs.id in cloud.cloud.servers


async def test_a_name_whose_server_is_being_deleted_is_not_free_and_not_ours(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    made = await provider.create(order)
    await provider.delete(made.id)
    with pytest.raises(NameTaken):
        await provider.create(order)


async def test_a_taken_name_that_no_list_shows_is_uncertain(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    cloud.inject(Drop(), **CREATE)
    with pytest.raises(Uncertain):
        await provider.create(order)
    cloud.inject(Omit(lambda server: True), **LIST)
    with pytest.raises(Uncertain, match="no server with it is listed"):
        await provider.create(order)
    assert (await provider.create(order)).name == order.name


async def test_a_conflict_once_is_no_failure_of_the_order(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    cloud.inject(Answer(409, "conflict"), **CREATE)
    with pytest.raises(Busy):
        await provider.create(order)
    assert len(cloud.made("POST", "/servers")) == 1
    await provider.create(order)


# 5, 6: what was bought does not come up.


@pytest.mark.parametrize(
    "fate, words",
    [
        (Fate(create_error="unknown_error"), "create_server failed: creating the server failed (unknown_error)"),
        (Fate(start_error="action_failed"), "start_server failed: starting the server failed (action_failed)"),
    ],
)
async def test_a_failed_creation_or_start_has_a_reason_and_counts_against_its_offer(
    cloud: Emulator, provider: HetznerProvider, fate: Fate, words: str
) -> None:
    cloud.inject(fate, **CREATE)
    made = await provider.create(await order_of(provider))
    assert await provider.failure_of(made.id) is None
    cloud.advance(MINUTE)
    (listed,) = (await provider.list_servers()).servers
    assert listed.status is Status.OFF
    assert [await provider.failure_of(made.id) for _ in range(2)] == [words, words]
    assert (await offer_of(provider)).again_at == cloud.now + MINUTE
    await provider.delete(made.id)
    cloud.advance(MINUTE)
    assert await provider.failure_of(made.id) is None


async def test_a_healthy_server_that_is_off_for_a_moment_has_not_failed(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    made = await provider.create(await order_of(provider))
    cloud.advance(timedelta(seconds=4.5))
    (listed,) = (await provider.list_servers()).servers
    assert (listed.status, await provider.failure_of(made.id)) == (Status.OFF, None)


async def test_a_server_stuck_while_initializing_is_seen_and_can_be_deleted(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    cloud.inject(Fate(initializing_for=timedelta(hours=3)), **CREATE)
    made = await provider.create(await order_of(provider))
    cloud.advance(timedelta(minutes=10))
    listing = await provider.list_servers()
    assert [each.status for each in listing.servers] == [Status.INITIALIZING]
    assert listing.server_now - listing.servers[0].created_at == timedelta(minutes=10)
    await provider.delete(made.id)
    cloud.advance(MINUTE)
    assert (await provider.list_servers()).servers == ()


@pytest.mark.parametrize("fate", [Fate(vanishes_after=timedelta(minutes=20)), Fate(off_after=timedelta(minutes=20))])
async def test_a_server_that_vanishes_or_goes_off_by_itself_is_seen(
    cloud: Emulator, provider: HetznerProvider, fate: Fate
) -> None:
    cloud.inject(fate, **CREATE)
    made = await provider.create(await order_of(provider))
    cloud.advance(timedelta(minutes=19))
    assert [each.status for each in (await provider.list_servers()).servers] == [Status.RUNNING]
    cloud.advance(timedelta(minutes=2))
    left = [each.status for each in (await provider.list_servers()).servers]
    assert left == ([] if fate.vanishes_after else [Status.OFF])
    assert await provider.failure_of(made.id) is None
    await provider.delete(made.id)


# 10, 11, 12: deletes.


async def test_a_locked_server_is_busy_until_it_can_be_deleted(cloud: Emulator, provider: HetznerProvider) -> None:
    cloud.inject(Fate(locked_deletes=3), **CREATE)
    made = await provider.create(await order_of(provider))
    cloud.advance(MINUTE)
    for _ in range(3):
        with pytest.raises(Busy):
            await provider.delete(made.id)
    await provider.delete(made.id)
    cloud.advance(MINUTE)
    assert (await provider.list_servers()).servers == ()


async def test_a_delete_during_a_shutdown_is_busy_for_as_long(cloud: Emulator, provider: HetznerProvider) -> None:
    made = await provider.create(await order_of(provider))
    cloud.advance(MINUTE)
    cloud.cloud.power(cloud.cloud.servers[made.id], "shutdown_server")
    (listed,) = (await provider.list_servers()).servers
    assert (listed.locked, listed.status) == (True, Status.STOPPING)
    with pytest.raises(Busy):
        await provider.delete(made.id)
    cloud.advance(MINUTE)
    await provider.delete(made.id)


async def test_a_deleted_server_that_stays_in_the_list_can_be_deleted_again(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    cloud.inject(Fate(lingers_for=timedelta(minutes=30)), **CREATE)
    made = await provider.create(await order_of(provider))
    for _ in range(3):
        await provider.delete(made.id)
        cloud.advance(timedelta(minutes=9))
        assert [each.status for each in (await provider.list_servers()).servers] == [Status.DELETING]
    cloud.advance(timedelta(minutes=9))
    assert (await provider.list_servers()).servers == ()


async def test_a_cloud_that_is_down_across_the_hour_costs_one_more(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    made = await provider.create(order)
    cloud.advance(timedelta(minutes=57))
    down = cloud.inject(Answer(503, "unavailable"), times=None)
    for _ in range(5):
        with pytest.raises(Uncertain):
            await provider.delete(made.id)
        with pytest.raises(Unreachable):
            await provider.list_servers()
        cloud.advance(MINUTE)
    cloud.rules.remove(down)
    await provider.delete(made.id)
    cloud.advance(timedelta(hours=3))
    assert (await provider.list_servers()).servers == ()
    assert cloud.cloud.bill.total(cloud.now) == 2 * order.offer.hourly


async def test_a_protected_server_needs_the_operator(cloud: Emulator, provider: HetznerProvider) -> None:
    made = await provider.create(await order_of(provider))
    cloud.cloud.servers[made.id].protected = True
    cloud.advance(MINUTE)
    with pytest.raises(Refused, match="lift the protection"):
        await provider.delete(made.id)


async def test_a_delete_whose_answer_is_lost_was_done_all_the_same(cloud: Emulator, provider: HetznerProvider) -> None:
    made = await provider.create(await order_of(provider))
    cloud.inject(Drop(), **DELETE)
    with pytest.raises(Uncertain):
        await provider.delete(made.id)
    await provider.delete(made.id)
    cloud.advance(MINUTE)
    assert cloud.cloud.servers == {}


# 13: the rate.


async def test_a_refusal_for_the_rate_is_not_answered_with_more_calls(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    await provider.prepare(IMAGE, X86)
    cloud.bucket(cloud.token).level = 0
    with pytest.raises(RateLimited, match="Limit of '3600' requests per hour") as caught:
        await provider.create(order)
    assert cloud.calls[-1].status == 429
    assert caught.value.until == cloud.now + timedelta(seconds=30)
    before = len(cloud.calls)
    for call in (provider.list_servers(), provider.delete(1)):
        with pytest.raises(RateLimited) as again:
            await call
        assert again.value.until == caught.value.until
    with pytest.raises(RateLimited) as again:
        await provider.create(order)
    assert again.value.until == cloud.now + timedelta(minutes=3)
    assert len(cloud.calls) == before
    cloud.advance(timedelta(seconds=30))
    await provider.list_servers()


async def test_repeated_refusals_for_the_rate_are_waited_out_longer_each_time_and_never_past_the_reset(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    waits = []
    reset = {"RateLimit-Reset": str(int(cloud.now.timestamp()) + 400)}
    cloud.inject(Answer(429, html=True, headers=reset), times=5)
    for _ in range(5):
        with pytest.raises(RateLimited) as caught:
            await provider.list_servers()
        waits.append((caught.value.until - cloud.now).total_seconds())
        cloud.advance(caught.value.until - cloud.now)
    assert waits == [30, 60, 120, 190, 480]
    await provider.list_servers()


async def test_when_others_used_the_projects_calls_up_only_lists_and_deletes_go_on(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    made = await provider.create(order)
    cloud.bucket(cloud.token).level = 101
    await provider.list_servers()
    with pytest.raises(RateLimited) as caught:
        await provider.create(await order_of(provider, "rgrid-a-2"))
    assert caught.value.until - cloud.now == timedelta(seconds=80)
    await provider.delete(made.id)
    cloud.advance(timedelta(seconds=90))
    await provider.list_servers()
    await provider.create(await order_of(provider, "rgrid-a-3"))


async def test_our_own_calls_never_come_faster_than_the_budget(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    await provider.prepare(IMAGE, X86)
    sent = 0
    with pytest.raises(RateLimited) as caught:
        while True:
            await provider.create(replace(order, name=f"rgrid-b-{sent}"))
            sent += 1
    # Of a burst of 60 a quarter is kept back, and eight were used before.
    assert len(cloud.calls) == provider.calls_sent == 45 and sent == 45 - 8
    assert caught.value.until == cloud.now + timedelta(seconds=2)
    for _ in range(15):
        await provider.list_servers()
    with pytest.raises(RateLimited):
        await provider.list_servers()
    cloud.advance(timedelta(seconds=2))
    await provider.list_servers()


# 14: the account's limits.


async def test_the_accounts_limits_are_told_apart_from_a_shortage(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    cloud.cloud.server_cap = 0
    with pytest.raises(AccountLimit, match="server limit exceeded") as caught:
        await provider.create(order)
    assert caught.value.kind is Limit.SERVERS
    cloud.cloud.server_cap, cloud.cloud.address_cap = None, 0
    with pytest.raises(AccountLimit, match="Primary IP limit exceeded") as caught:
        await provider.create(order)
    assert caught.value.kind is Limit.ADDRESSES
    for said, kind in (("dedicated core limit exceeded", Limit.CORES), ("project limit exceeded", Limit.OTHER)):
        cloud.inject(Answer(403, "resource_limit_exceeded", said), **CREATE)
        with pytest.raises(AccountLimit) as caught:
            await provider.create(order)
        assert caught.value.kind is kind
    assert (await offer_of(provider)).available, "no fault of the offer's"


# 15, 16: what is sold changes.


async def test_a_type_whose_sale_has_ended_is_no_offer_any_more(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    cloud.cloud.end_sale("cx23", cloud.now, cloud.now + MINUTE)
    cloud.advance(2 * MINUTE)
    with pytest.raises(OutOfStock, match="not sold any more"):
        await provider.create(order)
    elsewhere = await offer_of(provider, location="hel1")
    assert (elsewhere.available, elsewhere.again_at, elsewhere.sold(cloud.now)) == (False, None, False)


async def test_a_type_that_was_removed_is_out_of_the_catalogue_at_once(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    cloud.cloud.at(cloud.now + MINUTE, lambda: cloud.cloud.kinds.pop("cx23"))
    cloud.advance(MINUTE)
    with pytest.raises(OutOfStock, match="not sold any more"):
        await provider.create(order)
    assert (await provider.catalogue()).find("cx23", "fsn1") is None


async def test_a_location_where_a_type_is_not_sold_is_no_shortage_of_ours(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    order = await order_of(provider)
    with pytest.raises(OutOfStock, match="unsupported location"):
        await provider.create(replace(order, offer=replace(order.offer, location="ash")))


async def test_a_call_that_the_cloud_has_retired_asks_for_an_upgrade(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    cloud.inject(Answer(410, "deprecated_api_endpoint", "gone"), method="GET", path="/pricing", times=None)
    with pytest.raises(Refused, match="upgrade"):
        await provider.catalogue()


async def test_an_image_that_disappears_needs_the_operator(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    cloud.cloud.images.clear()
    with pytest.raises(OfferRefused, match="in image") as refused:
        await provider.create(order)
    assert refused.value.again_at == cloud.now + MINUTE
    offer = await offer_of(provider, order.offer.type, order.offer.location)
    assert not offer.available and offer.again_at == refused.value.again_at


async def test_a_firewall_or_key_that_was_removed_is_made_anew(cloud: Emulator, provider: HetznerProvider) -> None:
    await provider.prepare(IMAGE, X86)
    for things in (cloud.cloud.firewalls, cloud.cloud.keys):
        things.clear()
        with pytest.raises(Busy, match="made anew"):
            await provider.create(await order_of(provider))
        made = await provider.create(await order_of(provider))
        assert len(things) == 1
        cloud.cloud.lose(made.id)


async def test_a_new_price_is_that_of_the_next_purchase(cloud: Emulator, provider: HetznerProvider) -> None:
    before = await order_of(provider)
    await provider.create(before)
    cloud.cloud.at(cloud.now + MINUTE, lambda: cloud.cloud.reprice("cx23", "fsn1", "0.0200", "12.00"))
    cloud.advance(timedelta(minutes=15))
    after = await order_of(provider, "rgrid-a-2")
    await provider.create(after)
    assert (before.offer.hourly, after.offer.hourly) == (Decimal("0.0096"), Decimal("0.0208"))
    assert cloud.cloud.bill.total(cloud.now) == before.offer.hourly + after.offer.hourly


async def test_while_prices_cannot_be_read_the_last_ones_serve_for_two_hours(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    first = await provider.catalogue()
    down = cloud.inject(Answer(500, "server_error", None), method="GET", path="/server_types", times=None)
    for _ in range(11):
        cloud.advance(timedelta(minutes=10))
        assert (await provider.catalogue()).read_at == first.read_at
    calls = len(cloud.calls)
    await provider.catalogue()
    assert len(cloud.calls) == calls
    cloud.advance(timedelta(minutes=11))
    for _ in range(3):
        with pytest.raises(Unreachable):
            await provider.catalogue()
    assert len(cloud.calls) == calls + 1
    cloud.rules.remove(down)
    cloud.advance(timedelta(minutes=1))
    assert (await provider.catalogue()).read_at == cloud.now


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-0.0088"])
async def test_what_has_no_price_to_reckon_with_is_no_offer(
    cloud: Emulator, provider: HetznerProvider, price: str
) -> None:
    cloud.cloud.reprice("cx23", "fsn1", price, "5.49")
    catalogue = await provider.catalogue()
    assert catalogue.find("cx23", "fsn1") is None
    assert catalogue.find("cx23", "nbg1") is not None


async def test_prices_in_another_currency_are_refused(cloud: Emulator, provider: HetznerProvider) -> None:
    cloud.cloud.currency = "USD"
    with pytest.raises(Refused, match="USD"):
        await provider.catalogue()


# 17, 18: restarts, and two at once.


async def test_two_control_planes_with_one_order_get_one_server(cloud: Emulator, provider: HetznerProvider) -> None:
    """Both calls are at the cloud before either is carried out."""
    other = provider_of(cloud)
    order = await order_of(provider)
    for each in (provider, other):
        await each.prepare(IMAGE, X86)
    holds = [Hold(commit=False), Hold(commit=False)]
    for index, hold in enumerate(holds):
        cloud.inject(hold, **CREATE, skip=index)
    tries = [asyncio.create_task(each.create(order)) for each in (provider, other)]
    for hold in holds:
        assert await asyncio.to_thread(hold.reached.wait, 5)
    for hold in reversed(holds):
        hold.go_on.set()
    one, two = await asyncio.gather(*tries)
    assert one.id == two.id and len(cloud.cloud.servers) == 1
    other.close()


async def test_after_a_restart_everything_is_in_the_list(cloud: Emulator, provider: HetznerProvider) -> None:
    made = {(await provider.create(await order_of(provider, f"rgrid-a-{index}"))).id for index in range(3)}
    provider.close()
    cloud.advance(timedelta(minutes=30))
    again = provider_of(cloud)
    assert {each.id for each in (await again.list_servers()).servers} == made
    again.close()


# 19: lists that do not tell everything.


async def many(cloud: Emulator, count: int) -> None:
    for index in range(count):
        cloud.cloud.foreign(f"rgrid-m-{index}", {OWNER_LABEL: OWNER, NODE_LABEL: f"m-{index}"})


@pytest.mark.parametrize(
    "effect",
    [Answer(500, "server_error", None), Answer(502, html=True), Drop(), Hang(0.5), Answer(429, "rate_limit_exceeded")],
)
async def test_a_list_whose_second_page_fails_is_incomplete(
    cloud: Emulator, provider: HetznerProvider, effect: Effect
) -> None:
    await many(cloud, 60)
    cloud.inject(effect, **LIST, where=later_page)
    listing = await provider.list_servers()
    assert (len(listing.servers), listing.complete) == (50, False)


async def test_a_list_that_omits_a_server_it_counts_is_incomplete(cloud: Emulator, provider: HetznerProvider) -> None:
    await many(cloud, 3)
    cloud.inject(Omit(lambda server: server["name"] == "rgrid-m-1", counted=True), **LIST)
    assert not (await provider.list_servers()).complete
    assert (await provider.list_servers()).complete


async def test_a_deletion_between_two_pages_makes_a_list_incomplete(cloud: Emulator, provider: HetznerProvider) -> None:
    await many(cloud, 60)
    first = min(cloud.cloud.servers)
    hold = Hold(commit=False)
    cloud.inject(hold, **LIST, where=later_page)
    listing = asyncio.create_task(provider.list_servers())
    assert await asyncio.to_thread(hold.reached.wait, 5)
    cloud.cloud.lose(first)
    hold.go_on.set()
    assert not (await listing).complete


async def test_pages_of_a_long_list_do_not_wait_for_each_other(cloud: Emulator, provider: HetznerProvider) -> None:
    for index in range(210):
        cloud.cloud.foreign(f"rgrid-a-{index}", {OWNER_LABEL: OWNER})
    holds = [Hold(commit=False) for _ in range(3)]
    for index, hold in enumerate(holds):
        cloud.inject(hold, **LIST, where=later_page, skip=index)
    listing = asyncio.create_task(provider.list_servers())
    for hold in holds:
        assert await asyncio.to_thread(hold.reached.wait, 5)
    for hold in holds:
        hold.go_on.set()
    found = await listing
    assert (found.complete, len(found.servers)) == (True, 210)
    assert len(cloud.made("GET", "/servers")) == 5


async def test_a_stale_list_is_told_by_no_sign_and_the_next_one_is_right(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    """Which is why absence counts in the second list only, and presence until a delete said so."""
    await provider.list_servers()
    await many(cloud, 1)
    cloud.inject(Stale(), **LIST)
    assert [len((await provider.list_servers()).servers) for _ in range(2)] == [0, 1]


async def test_a_cloud_that_ignores_the_selector_shows_nothing_that_is_not_ours(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    cloud.cloud.foreign("rgrid-x", {OWNER_LABEL: "another"})
    server = cloud.api.handle
    cloud.api.handle = lambda call, effects=(): (call.query.pop("label_selector", None), server(call, effects))[1]
    listing = await provider.list_servers()
    assert (listing.servers, listing.complete) == ((), False)


async def test_a_first_page_that_fails_is_an_error(cloud: Emulator, provider: HetznerProvider) -> None:
    cloud.inject(Answer(503, "unavailable"), **LIST, where=first_page)
    with pytest.raises(Unreachable):
        await provider.list_servers()


# 20: clocks.


@pytest.mark.parametrize("shift_s", [-3600, -90, 90, 3600])
async def test_hours_are_counted_by_the_clouds_clock(cloud: Emulator, provider: HetznerProvider, shift_s: int) -> None:
    cloud.clock.date_shift = cloud.clock.created_shift = shift = timedelta(seconds=shift_s)
    made = await provider.create(await order_of(provider))
    cloud.advance(timedelta(minutes=59))
    listing = await provider.list_servers()
    lived = listing.server_now - listing.servers[0].created_at
    assert abs(lived - timedelta(minutes=59)) <= timedelta(seconds=1)
    assert made.created_at == cloud.now - timedelta(minutes=59) + shift
    assert abs(provider.now() - (cloud.now + shift)) <= timedelta(seconds=1)


async def test_an_answer_without_a_sensible_date_leaves_the_clock_as_it_was(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    cloud.inject(Answer(500, "server_error", headers={"Date": "the other day", "RateLimit-Limit": "a few"}), **LIST)
    with pytest.raises(Unreachable):
        await provider.list_servers()
    assert provider.now() == cloud.now


async def test_a_date_far_off_is_believed_when_all_answers_have_said_it_for_ten_minutes(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    provider.compare_clock(cloud.now, cloud.now)
    for shift in (timedelta(days=365), timedelta(hours=-1)):
        cloud.clock.date_shift = shift
        for _ in range(10):
            await provider.list_servers()
            assert provider.now() == cloud.now
            cloud.advance(timedelta(minutes=1))
        cloud.clock.date_shift = timedelta()  # a single machine of the cloud's: others knew better all the time
        await provider.list_servers()
    cloud.clock.date_shift = timedelta(hours=2)
    for _ in range(11):
        assert provider.now() == cloud.now
        await provider.list_servers()
        cloud.advance(timedelta(minutes=1))
    said = provider.said_now()
    assert said == provider.now()
    assert abs(said - cloud.now - timedelta(hours=2)) < timedelta(seconds=1)


async def test_a_date_far_off_that_our_own_clock_agrees_with_is_believed_at_once(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    """As after the machine slept: its steady clock did, too."""
    provider.compare_clock(cloud.now, cloud.now)
    await provider.list_servers()
    cloud.clock.date_shift = awake = timedelta(hours=8)
    provider.compare_clock(cloud.now + awake, cloud.now)
    await provider.list_servers()
    assert abs(provider.now() - cloud.now - awake) < timedelta(seconds=1)


async def test_a_date_that_is_off_by_little_is_believed_at_once(cloud: Emulator, provider: HetznerProvider) -> None:
    provider.compare_clock(cloud.now, cloud.now)
    cloud.clock.date_shift = timedelta(seconds=100)
    await provider.list_servers()
    assert abs(provider.now() - cloud.now - timedelta(seconds=100)) < timedelta(seconds=1)


# 21, 23, 24: nothing else ever comes out; what is left over; what is blocked.


@pytest.mark.parametrize(
    "effect",
    [
        Answer(200, html=True),
        Answer(200, "x"),
        Answer(400, "json_error"),
        Answer(403, "forbidden"),
        Answer(403, "maintenance"),
        Answer(403, html=True),
        Answer(405, "method_not_allowed"),
        Answer(418, "invented", details={"fields": "none"}),
        Answer(422, "service_error", details={"fields": [None, {"x": 1}]}),
        Answer(422, "invalid_input", None),
        Answer(500, None, None),
        Drop(commit=False),
    ],
    ids=lambda effect: f"{effect!r:.50}",
)
async def test_whatever_the_cloud_answers_only_errors_of_ours_come_out(
    cloud: Emulator, provider: HetznerProvider, effect: Effect
) -> None:
    order = await order_of(provider)
    cloud.inject(effect, times=None)
    fresh = provider_of(cloud)
    for call in (
        provider.prepare(IMAGE, X86),
        provider.create(order),
        provider.list_servers(),
        provider.delete(1),
        provider.failure_of(1),
        provider.stray_addresses(),
        fresh.catalogue(),
    ):
        with pytest.raises(ProviderError):
            await call
    fresh.close()


async def test_an_answer_that_is_late_is_an_answer(cloud: Emulator, provider: HetznerProvider) -> None:
    cloud.inject(Slow(0.15), **LIST)
    assert (await provider.list_servers()).complete


async def test_addresses_of_no_server_are_found(cloud: Emulator, provider: HetznerProvider) -> None:
    await provider.create(await order_of(provider))
    lone = cloud.cloud.lone_address("forgotten")
    assert await provider.stray_addresses() == (f"forgotten ({lone.ip})",)


async def test_a_blocked_address_is_seen(cloud: Emulator, provider: HetznerProvider) -> None:
    made = await provider.create(await order_of(provider))
    cloud.cloud.servers[made.id].ipv4.blocked = True
    (listed,) = (await provider.list_servers()).servers
    assert (made.blocked, listed.blocked) == (False, True)


# 25, 26: the token.


async def test_no_error_shows_the_token_or_its_beginning(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    cloud.bucket(cloud.token).level = 0.5
    said = []
    with pytest.raises(RateLimited) as caught:
        await provider.list_servers()
    said.append(repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__))
    cloud.bucket(cloud.token).level = 3600
    cloud.advance(timedelta(hours=1))
    quoted = f"token {cloud.token} or {cloud.token[:20]}... is odd"
    for status, code in ((422, "invented"), (500, "server_error"), (403, "resource_limit_exceeded"), (409, "conflict")):
        cloud.inject(Answer(status, code, quoted, {"fields": [{"name": cloud.token}]}), **CREATE)
        with pytest.raises(ProviderError, match=r"\[token\]|in a") as error:
            await provider.create(order)
        said.append(repr(error.value))
    assert "[token]" in "".join(said)
    assert cloud.token[:8] not in "".join(said)


async def test_a_token_that_may_only_read_is_found_at_start(cloud: Emulator, provider: HetznerProvider) -> None:
    cloud.tokens[cloud.token].readonly = True
    with pytest.raises(Refused, match="Read & Write"):
        await provider.prepare(IMAGE, X86)
    assert cloud.cloud.keys == {}


async def test_a_token_that_is_wrong_or_revoked_says_so(cloud: Emulator, provider: HetznerProvider) -> None:
    wrong = provider_of(cloud, token="w" * 64)
    with pytest.raises(Refused, match="does not know the token"):
        await wrong.prepare(IMAGE, X86)
    wrong.close()
    await provider.prepare(IMAGE, X86)
    cloud.tokens[cloud.token].revoked = True
    for call in (provider.list_servers(), provider.delete(1)):
        with pytest.raises(Refused, match="does not know the token"):
            await call


async def test_the_probe_of_the_token_makes_nothing(cloud: Emulator, provider: HetznerProvider) -> None:
    await provider.prepare(IMAGE, X86)
    probe = cloud.made("POST", "/ssh_keys")[0]
    assert (probe.body, probe.status) == ({}, 422)


async def test_a_shortage_of_one_type_leaves_the_others_alone(cloud: Emulator, provider: HetznerProvider) -> None:
    cloud.inject(Answer(412, "resource_unavailable"), **CREATE, where=asks_for("cx23"), times=None)
    for location in ("fsn1", "nbg1"):
        with pytest.raises(OutOfStock):
            await provider.create(await order_of(provider, location=location))
    assert (await provider.create(await order_of(provider, type="cx33"))).type == "cx33"
