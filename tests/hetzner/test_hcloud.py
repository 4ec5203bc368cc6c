"""hcloud, unchanged, against the emulator: every call that we or an operator's script may make of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import hcloud
import pytest
import requests
from hcloud.actions import ActionFailedException
from hcloud.firewalls import FirewallRule
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hcloud.servers import BoundServer, CreateServerResponse, ServerCreatePublicNetwork
from hcloud.ssh_keys import SSHKey

from tests.hetzner.rules import CREATE, Answer, Drop, Fate, Hang
from tests.hetzner.server import Emulator

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
S = timedelta(seconds=1)


@pytest.fixture
def cloud() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def client(cloud: Emulator) -> Iterator[hcloud.Client]:
    made = hcloud.Client(cloud.token, cloud.url, timeout=(1, 0.3), poll_interval=0, poll_max_retries=3)
    made._client._retry_interval_func = lambda retries: 0.0
    yield made
    made._client._session.close()


def create(client: hcloud.Client, name: str = "a", *, type: str = "cx23", **given: object) -> CreateServerResponse:
    place = Location(name="fsn1")
    return client.servers.create(name, ServerType(name=type), Image(name="docker-ce"), location=place, **given)


def refused(call: object, *args: object, **given: object) -> tuple[object, object]:
    with pytest.raises(hcloud.APIException) as caught:
        call(*args, **given)  # type: ignore[operator]
    return caught.value.code, caught.value.details


def test_a_server_comes_up_by_way_of_off_and_goes_by_way_of_deleting(cloud: Emulator, client: hcloud.Client) -> None:
    made = create(client, labels={"a": "b"}, user_data="x")
    assert (made.action.command, made.action.status) == ("create_server", "running")
    assert [each.command for each in made.next_actions] == ["start_server"]
    assert made.root_password and cloud.cloud.servers[made.server.id].password_mailed
    seen = [made.server.status]
    for _ in range(12):
        cloud.advance(S)
        seen.append(client.servers.get_by_id(made.server.id).status)
    assert list(dict.fromkeys(seen)) == ["initializing", "off", "starting", "running"]
    for action in (made.action, *made.next_actions):
        action.wait_until_finished()
    raw = client.request("GET", "/actions", params={"id": [made.action.id, made.next_actions[0].id]})
    assert [each["status"] for each in raw["actions"]] == ["success", "success"]
    deletion = client.servers.delete(made.server)
    assert (deletion.command, deletion.status) == ("delete_server", "running")
    assert client.servers.get_by_id(made.server.id).status == "deleting"
    assert refused(create, client)[0] == "uniqueness_error", "the name is not free yet"
    cloud.advance(6 * S)
    assert refused(client.servers.get_by_id, made.server.id)[0] == "not_found"
    assert client.actions.get_by_id(deletion.id).status == "success"
    create(client)


def test_a_server_has_all_that_hcloud_reads(cloud: Emulator, client: hcloud.Client) -> None:
    key = client.ssh_keys.create("k", PUBLIC_KEY, {"l": "1"})
    wall = client.firewalls.create("w", rules=[]).firewall
    made = create(client, ssh_keys=[SSHKey(name="k")], firewalls=[wall])
    assert made.root_password is None and [each.command for each in made.next_actions] == [
        "start_server",
        "apply_firewall",
    ]
    server = client.servers.get_by_name("a")
    assert server is not None
    assert (server.server_type.name, server.location.name, server.image.name) == ("cx23", "fsn1", "docker-ce")
    assert server.created == cloud.now and server.locked and server.public_net.ipv6.network_mask == "64"
    assert [each.status for each in server.public_net.firewalls] == ["pending"]
    assert (server.volumes, server.private_net, server.iso, server.placement_group) == ([], [], None, None)
    address = client.primary_ips.get_all()
    assert {each.assignee_id for each in address} == {server.id} and {each.type for each in address} == {"ipv4", "ipv6"}
    assert client.ssh_keys.get_by_fingerprint(key.fingerprint).labels == {"l": "1"}
    applied = client.firewalls.get_by_name("w").applied_to
    assert [each.server.id for each in applied] == [server.id]
    assert refused(client.firewalls.delete, wall)[0] == "resource_in_use"
    cloud.advance(20 * S)
    assert [each.status for each in client.servers.get_by_name("a").public_net.firewalls] == ["applied"]


def test_a_server_can_be_without_an_address_and_not_started(cloud: Emulator, client: hcloud.Client) -> None:
    net = ServerCreatePublicNetwork(enable_ipv4=False)
    made = create(client, public_net=net, start_after_create=False)
    cloud.advance(60 * S)
    server = client.servers.get_by_id(made.server.id)
    assert (server.status, server.public_net.ipv4, made.next_actions) == ("off", None, [])
    assert (
        cloud.cloud.bill.total(cloud.now).as_tuple() == cloud.cloud.kinds["cx23"].sales["fsn1"].price.hourly.as_tuple()
    )


def test_power_is_cut_and_given_and_a_second_action_meanwhile_is_locked(cloud: Emulator, client: hcloud.Client) -> None:
    server = create(client).server
    cloud.advance(60 * S)

    def after(action: object, seconds: int = 30) -> str:
        cloud.advance(seconds * S)
        return str(client.servers.get_by_id(server.id).status)

    client.servers.shutdown(server)
    assert refused(client.servers.power_on, server)[0] == "locked"
    assert refused(client.servers.delete, server)[0] == "locked"
    assert after(None) == "off"
    assert after(client.servers.power_on(server)) == "running"
    assert after(client.servers.reboot(server)) == "running"
    assert after(client.servers.reset(server)) == "running"
    assert after(client.servers.power_off(server)) == "off"
    assert after(client.servers.rebuild(server, Image(name="debian-13"), user_data="new").action) == "running"
    assert client.servers.get_by_id(server.id).image.name == "debian-13"
    assert cloud.cloud.servers[server.id].user_data == "new"
    shot = client.servers.create_image(server, labels={"v": "1"}).image
    assert (shot.type, client.images.get_all(label_selector="v=1")[0].id) == ("snapshot", shot.id)
    assert client.images.delete(shot)
    client.servers.change_protection(server, delete=True, rebuild=True)
    assert refused(client.servers.delete, server)[0] == "protected"
    client.servers.change_protection(server, delete=False, rebuild=False)
    assert [each.command for each in client.servers.get_actions(server, status=["success"])][:3] == [
        "create_server",
        "start_server",
        "shutdown_server",
    ]
    client.servers.delete(server)


def test_names_and_labels_can_be_changed(client: hcloud.Client) -> None:
    server = create(client).server
    create(client, "b")
    changed = client.servers.update(server, name="c", labels={"x": ""})
    assert (changed.name, changed.labels) == ("c", {"x": ""})
    assert refused(client.servers.update, server, name="b")[0] == "uniqueness_error"
    assert refused(client.servers.update, server, labels={"bad key": "1"})[0] == "invalid_input"


def test_pages_are_of_25_and_at_most_50(cloud: Emulator, client: hcloud.Client) -> None:
    for index in range(120):
        cloud.cloud.foreign(f"s-{index:03}", {"n": str(index % 2), "all": "1"})
    page = client.servers.get_list()
    pages = page.meta.pagination
    assert (len(page.servers), pages.next_page, pages.last_page, pages.total_entries) == (25, 2, 5, 120)
    assert (len(client.servers.get_list(page=3, per_page=500).servers)) == 20
    assert [each.name for each in client.servers.get_all()] == [f"s-{index:03}" for index in range(120)]
    assert len(client.servers.get_all(label_selector="n=1,all")) == 60
    assert len(client.servers.get_all(status=["running"])) == 120 and client.servers.get_all(status=["off"]) == []
    answer = requests.get(
        f"{cloud.url}/servers?sort=name:desc&page=2", headers={"Authorization": f"Bearer {cloud.token}"}
    )
    assert answer.json()["servers"][0]["name"] == "s-094"
    assert answer.links["next"]["url"] == "/v1/servers?page=3" and answer.links["prev"]["url"] == "/v1/servers?page=1"


def test_the_shop_has_types_prices_places_and_images(cloud: Emulator, client: hcloud.Client) -> None:
    cx23 = client.server_types.get_by_name("cx23")
    assert (cx23.id, cx23.cores, cx23.memory, cx23.disk, cx23.architecture) == (114, 2, 4.0, 40, "x86")
    assert [(each.location.name, each.available, each.recommended) for each in cx23.locations] == [
        (place, True, True) for place in ("fsn1", "nbg1", "hel1")
    ]
    assert cx23.prices[0]["price_hourly"]["net"] == "0.0088000000"
    assert client.server_types.get_by_id(114).name == "cx23" and client.server_types.get_by_name("cx22") is None
    assert [each.name for each in client.locations.get_all()] == ["fsn1", "nbg1", "hel1", "ash", "hil", "sin"]
    arm = client.images.get_by_name_and_architecture("docker-ce", "arm")
    assert (arm.type, arm.architecture) == ("app", "arm")
    assert client.images.get_by_name_and_architecture("ubuntu-20.04", "x86") is None
    old = client.images.get_by_name_and_architecture("ubuntu-20.04", "x86", include_deprecated=True)
    assert old.deprecation.announced < cloud.now < old.deprecation.unavailable_after
    pricing = client.request("GET", "/pricing")["pricing"]
    assert (pricing["currency"], pricing["primary_ips"][0]["type"]) == ("EUR", "ipv4")
    assert pricing["primary_ips"][0]["prices"][0]["price_monthly"]["net"] == "0.5000000000"
    end = cloud.now + timedelta(days=1)
    cloud.cloud.end_sale("cx23", cloud.now, end)
    assert client.server_types.get_by_name("cx23").locations[0].deprecation.unavailable_after == end


def test_keys_and_firewalls_are_unique_by_name_and_checked(client: hcloud.Client) -> None:
    key = client.ssh_keys.create("k", PUBLIC_KEY)
    assert refused(client.ssh_keys.create, "k2", PUBLIC_KEY)[0] == "uniqueness_error"
    assert refused(client.ssh_keys.create, "k2", "no key")[0] == "invalid_input"
    assert client.ssh_keys.delete(key) and client.ssh_keys.get_by_name("k") is None
    rule = FirewallRule("in", "tcp", source_ips=["0.0.0.0/0"], port="22")
    wall = client.firewalls.create("w", rules=[rule]).firewall
    assert client.firewalls.get_by_name("w").rules[0].port == "22"
    assert refused(client.firewalls.create, "w")[0] == "uniqueness_error"
    assert client.firewalls.delete(wall) and client.firewalls.get_all() == []


@pytest.mark.parametrize(
    "changed, code, field",
    [
        ({"name": "a_b"}, "invalid_input", "name"),
        ({"server_type": "cx22"}, "invalid_input", "server_type"),
        ({"image": "docker-cd"}, "invalid_input", "image"),
        ({"location": "mars1"}, "invalid_input", "location"),
        ({"labels": {"a": "b c"}}, "invalid_input", "labels"),
        ({"user_data": "x" * 32769}, "invalid_input", "user_data"),
        ({"ssh_keys": ["none"]}, "invalid_input", "ssh_keys"),
        ({"firewalls": [{"firewall": 1}]}, "not_found", None),
        ({"location": "ash"}, "invalid_input", None),
    ],
)
def test_an_order_is_checked_in_every_field(
    client: hcloud.Client, changed: dict[str, object], code: str, field: str | None
) -> None:
    order = {"name": "a", "server_type": "cx23", "image": "docker-ce", "location": "fsn1", **changed}
    got, details = refused(client.request, "POST", "/servers", json=order)
    assert got == code
    assert field is None or [each["name"] for each in details["fields"]] == [field]  # type: ignore[index]


def test_without_a_location_the_cloud_chooses_one_in_stock(cloud: Emulator, client: hcloud.Client) -> None:
    cloud.cloud.stock("cx23", "fsn1", left=0)
    made = client.servers.create("a", ServerType(name="cx23"), Image(name="docker-ce"))
    assert made.server.location.name == "nbg1"


def test_tokens_paths_and_methods_are_checked(cloud: Emulator, client: hcloud.Client) -> None:
    stranger = hcloud.Client("x" * 64, cloud.url)
    assert refused(stranger.servers.get_list)[0] == "unauthorized"
    stranger._client._session.close()
    assert refused(client.request, "GET", "/nothing")[0] == "not_found"
    assert refused(client.request, "PUT", "/servers")[0] == "method_not_allowed"
    assert refused(client.request, "POST", "/servers", data="{")[0] == "json_error"
    assert refused(client.request, "GET", "/datacenters")[0] == "deprecated_api_endpoint"
    assert refused(client.request, "GET", "/actions")[0] == "deprecated_api_endpoint"
    assert refused(client.servers.get_list, label_selector="a=(")[0] == "invalid_input"
    cloud.tokens[cloud.token].readonly = True
    client.servers.get_list()
    assert refused(create, client)[0] == "token_readonly"


def test_the_rate_limit_is_a_bucket_that_the_headers_tell_of(cloud: Emulator, client: hcloud.Client) -> None:
    headers: list[dict[str, str]] = []
    client._client._session.hooks["response"].append(lambda answer, **_: headers.append(dict(answer.headers)))
    client.servers.get_list()
    assert headers[0]["RateLimit-Limit"] == "3600" and headers[0]["RateLimit-Remaining"] == "3599"
    assert int(headers[0]["RateLimit-Reset"]) == cloud.now.timestamp() + 1
    assert headers[0]["Date"] == "Wed, 25 Nov 2026 08:00:00 GMT" and headers[0]["X-Correlation-Id"]
    cloud.bucket(cloud.token).level = 0
    assert refused(client.servers.get_list)[0] == "rate_limit_exceeded"
    assert len(cloud.calls) == 1 + 6, "hcloud makes it worse"
    cloud.advance(2 * S)
    client.servers.get_list()
    assert cloud.made("GET", "/servers")[1].answered.decode().count(cloud.token[:32]) == 1


def test_what_hcloud_does_by_itself_with_a_lost_answer(cloud: Emulator, client: hcloud.Client) -> None:
    """Why the provider turns its retries off: the server exists, and hcloud says that its name is taken."""
    cloud.inject(Hang(0.5), **CREATE)
    assert refused(create, client)[0] == "uniqueness_error"
    assert [each.name for each in cloud.cloud.servers.values()] == ["a"]
    cloud.inject(Drop(), **CREATE)
    with pytest.raises(requests.ConnectionError):
        create(client, "b")
    cloud.inject(Answer(504, html=True), **CREATE, times=None)
    assert refused(create, client, "c")[0] == 504
    assert [len([call for call in cloud.made("POST", "/servers") if call.name == name]) for name in "abc"] == [2, 1, 6]


def test_a_failed_action_fails_whoever_waits_for_it(cloud: Emulator, client: hcloud.Client) -> None:
    cloud.inject(Fate(start_error="action_failed"), **CREATE)
    made = create(client)
    cloud.advance(60 * S)
    made.action.wait_until_finished()
    with pytest.raises(ActionFailedException, match="starting the server failed"):
        made.next_actions[0].wait_until_finished()


def test_deleting_a_server_that_starts_takes_its_actions_with_it(cloud: Emulator, client: hcloud.Client) -> None:
    made = create(client)
    cloud.advance(2 * S)
    client.servers.delete(BoundServer(client.servers, {"id": made.server.id}))
    cloud.advance(60 * S)
    assert {each.status for each in (client.actions.get_by_id(made.action.id),)} == {"error"}
    assert (cloud.cloud.servers, cloud.cloud.addresses) == ({}, {})
