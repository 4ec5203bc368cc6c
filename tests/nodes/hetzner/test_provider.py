"""What the provider does while nothing goes wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from nodes.hetzner.provider import HetznerProvider
from nodes.provider import OWNER_LABEL, Refused, Status
from tests.hetzner.server import Emulator
from tests.nodes.hetzner.conftest import provider_of
from tests.nodes.hetzner.orders import IMAGE, OWNER, X86, offer_of, order_of

GIB = 1024**3


async def test_the_catalogue_has_prices_with_the_address_and_the_end_of_a_sale(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    end = cloud.now + timedelta(days=30)
    cloud.cloud.end_sale("cpx22", cloud.now - timedelta(days=1), end)
    cloud.cloud.stock("cx33", "hel1", left=0)
    catalogue = await provider.catalogue()
    cx23, cpx22, cx33 = [await offer_of(provider, name, "hel1") for name in ("cx23", "cpx22", "cx33")]
    assert (cx23.slots, cx23.memory, cx23.disk, cx23.architecture) == (2, 4 * GIB, 40 * 10**9, "x86")
    assert (cx23.hourly, cx23.monthly) == (Decimal("0.0096"), Decimal("5.99"))
    assert (cx23.ipv4_hourly, cx23.ipv4_monthly) == (Decimal("0.0008"), Decimal("0.50"))
    assert (cx23.available, cx23.gone_after, cpx22.gone_after, cx33.available) == (True, None, end, False)
    assert catalogue.read_at == cloud.now
    assert catalogue.find("cx22", "fsn1") is None


async def test_the_catalogue_is_read_again_after_ten_minutes_only(cloud: Emulator, provider: HetznerProvider) -> None:
    await provider.catalogue()
    before = len(cloud.calls)
    cloud.advance(timedelta(minutes=9))
    await provider.catalogue()
    assert len(cloud.calls) == before == 2
    cloud.advance(timedelta(minutes=2))
    await provider.catalogue()
    assert len(cloud.calls) == 4


async def test_prices_are_read_anew_when_the_clock_turns_out_to_have_been_ahead(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    wrong = cloud.now + timedelta(hours=3)
    provider.compare_clock(wrong, wrong)
    await provider.catalogue()
    for _ in range(12):
        cloud.advance(timedelta(minutes=1))
        await provider.list_servers()
    assert abs(provider.now() - cloud.now) < timedelta(seconds=2)
    assert (await provider.catalogue()).read_at == provider.now()


async def test_a_server_lives_from_order_to_absence_with_two_calls_of_its_own(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    await provider.prepare(IMAGE, X86)
    order = await order_of(provider, user_data="#cloud-config\n")
    made = await provider.create(order)
    assert (made.name, made.status, made.created_at) == (order.name, Status.INITIALIZING, cloud.now)
    assert (made.type, made.location, dict(made.labels)) == ("cx23", "fsn1", dict(order.labels))
    real = cloud.cloud.servers[made.id]
    assert made.ipv4 == real.ipv4.ip and real.user_data == "#cloud-config\n"
    assert real.firewalls == list(cloud.cloud.firewalls) and not real.password_mailed
    cloud.advance(timedelta(minutes=1))
    assert [each.status for each in (await provider.list_servers()).servers] == [Status.RUNNING]
    await provider.delete(made.id)
    assert [each.status for each in (await provider.list_servers()).servers] == [Status.DELETING]
    cloud.advance(timedelta(minutes=1))
    gone = await provider.list_servers()
    assert (gone.servers, gone.complete) == ((), True)
    assert cloud.cloud.bill.total(cloud.now) == order.offer.hourly
    assert [len(cloud.made(*call)) for call in (("POST", "/servers"), ("DELETE", f"/servers/{made.id}"))] == [1, 1]


async def test_deleting_twice_and_deleting_what_never_was_are_no_errors(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    made = await provider.create(await order_of(provider))
    await provider.delete(made.id)
    await provider.delete(made.id)
    cloud.advance(timedelta(minutes=1))
    await provider.delete(made.id)
    await provider.delete(12345)
    assert cloud.cloud.servers == {}


async def test_a_listing_reads_all_pages_and_nobody_elses_servers(cloud: Emulator, provider: HetznerProvider) -> None:
    mine = {cloud.cloud.foreign(f"rgrid-mine-{index}", {OWNER_LABEL: OWNER}).id for index in range(120)}
    cloud.cloud.foreign("rgrid-mine-other", {OWNER_LABEL: "another"})
    cloud.cloud.foreign("rgrid-mine-longer", {OWNER_LABEL: f"{OWNER}-2"})
    cloud.cloud.foreign("db", {})
    listing = await provider.list_servers()
    assert ({each.id for each in listing.servers}, listing.complete) == (mine, True)
    assert len(cloud.made("GET", "/servers")) == 3


async def test_the_firewall_and_the_key_are_made_once_and_found_again(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    await provider.prepare(IMAGE, X86)
    again = provider_of(cloud)
    await again.prepare(IMAGE, X86)
    again.close()
    (wall,), (key,) = cloud.cloud.firewalls.values(), cloud.cloud.keys.values()
    assert (wall.name, wall.rules, key.name) == (f"rgrid-{OWNER}", [], f"rgrid-{OWNER}")
    assert wall.labels == key.labels == {OWNER_LABEL: OWNER}


async def test_a_firewall_that_somebody_opened_is_refused(cloud: Emulator, provider: HetznerProvider) -> None:
    await provider.prepare(IMAGE, X86)
    (wall,) = cloud.cloud.firewalls.values()
    ssh = {"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["0.0.0.0/0"]}
    wall.rules.append({**ssh, "destination_ips": [], "description": None})
    again = provider_of(cloud)
    with pytest.raises(Refused, match="remove its inbound rules"):
        await again.prepare(IMAGE, X86)
    with pytest.raises(Refused, match="remove its inbound rules"):
        await again.missing_fittings()
    again.close()


async def test_whoever_only_looks_is_told_what_would_be_made(cloud: Emulator, provider: HetznerProvider) -> None:
    assert await provider.missing_fittings() == ("firewall", "SSH key")
    assert not cloud.cloud.firewalls and not cloud.cloud.keys
    await provider.prepare(IMAGE, X86)
    assert await provider.missing_fittings() == ()
    cloud.cloud.keys.clear()
    assert await provider.missing_fittings() == ("SSH key",)


@pytest.mark.parametrize("image, words", [("ubuntu-20.04", "can be used until 2027-01-30"), ("docker-ce", None)])
async def test_an_old_image_is_warned_of(provider: HetznerProvider, image: str, words: str | None) -> None:
    warnings = await provider.prepare(image, X86)
    assert (len(warnings), words is None or words in warnings[0]) == (0 if words is None else 1, True)


async def test_an_image_must_exist_for_each_architecture(provider: HetznerProvider) -> None:
    await provider.prepare("docker-ce", frozenset({"x86", "arm"}))
    with pytest.raises(Refused, match="no image debian-13 for arm"):
        await provider.prepare("debian-13", frozenset({"x86", "arm"}))
    with pytest.raises(Refused, match="no image docker-cd for x86"):
        await provider.prepare("docker-cd", X86)


async def test_an_order_that_nobody_could_recognise_is_not_sent(cloud: Emulator, provider: HetznerProvider) -> None:
    order = await order_of(provider)
    before = len(cloud.calls)
    with pytest.raises(ValueError, match="labels of its owner"):
        await provider.create(replace(order, labels={}))
    with pytest.raises(Refused, match="32768"):
        await provider.create(replace(order, user_data="ä" * 16385))
    assert len(cloud.calls) == before


def test_an_owner_that_is_no_label_is_refused(cloud: Emulator) -> None:
    with pytest.raises(ValueError, match="owner must be a label"):
        provider_of(cloud, owner="a,b")


async def test_forty_nodes_in_twenty_minutes_cost_two_calls_each_beside_the_lists(
    cloud: Emulator, provider: HetznerProvider
) -> None:
    await provider.prepare(IMAGE, X86)
    before = len(cloud.calls)
    made = []
    for index in range(40):
        cloud.advance(timedelta(seconds=15))
        made.append(await provider.create(await order_of(provider, f"rgrid-n-{index}")))
        await provider.list_servers()
    for each in made:
        cloud.advance(timedelta(seconds=15))
        await provider.delete(each.id)
        await provider.list_servers()
    # Two calls a node, a list every 15 s; the catalogue, of two calls, was needed for ten minutes.
    assert len(cloud.calls) - before == 2 * 40 + 80 + 2
