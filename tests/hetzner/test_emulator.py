"""The emulator's own parts: its bill, labels, rules, machines and metadata."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import requests

from tests.hetzner.billing import Bill
from tests.hetzner.goods import IPV4, Price
from tests.hetzner.labels import selector, valid
from tests.hetzner.rules import CREATE, Answer, Call, Fate, Rules, asks_for
from tests.hetzner.server import Emulator
from tests.hetzner.things import Machine, Server

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
CX23 = Price(Decimal("0.0088"), Decimal("5.49"))


class Recorder:
    """Machines that only say when they would start and stop."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def start(self, machine: Machine) -> None:
        self.seen.append(("start", machine.name, machine.user_data))

    def stop(self, machine: Machine) -> None:
        self.seen.append(("stop", machine.name, machine.user_data))


@pytest.fixture
def machines() -> Recorder:
    return Recorder()


@pytest.fixture
def cloud(machines: Recorder) -> Iterator[Emulator]:
    with Emulator(machines=machines) as running:
        yield running


def call(cloud: Emulator, method: str, path: str, body: object = None) -> requests.Response:
    return requests.request(
        method, f"{cloud.url}{path}", json=body, headers={"Authorization": f"Bearer {cloud.token}"}, timeout=5
    )


def bought(cloud: Emulator, name: str = "a", **changed: object) -> Server:
    order = {"name": name, "server_type": "cx23", "image": "docker-ce", "location": "fsn1", "user_data": "told"}
    answer = call(cloud, "POST", "/servers", order | changed)
    assert answer.status_code == 201, answer.text
    return cloud.cloud.servers[answer.json()["server"]["id"]]


# The bill.


@pytest.mark.parametrize(
    "lived, hours",
    [(timedelta(), 1), (timedelta(seconds=1), 1), (HOUR, 1), (HOUR + timedelta(microseconds=1), 2), (2 * HOUR, 2)],
)
def test_every_hour_begun_is_billed(lived: timedelta, hours: int) -> None:
    bill, at = Bill(), datetime(2026, 11, 3, 10, 17, tzinfo=UTC)
    bill.open("server", 1, "a", at, CX23)
    bill.close("server", 1, at + lived)
    assert bill.total(at + timedelta(days=3)) == hours * CX23.hourly
    assert bill.hours(at + timedelta(days=3)) == hours


def test_a_month_never_costs_more_than_its_price() -> None:
    bill, at = Bill(), datetime(2026, 9, 30, 22, 30, tzinfo=UTC)
    bill.open("server", 1, "a", at, CX23)
    # Two hours of September, all of October (of which 624 h are paid), one hour of November.
    assert bill.total(datetime(2026, 11, 1, 0, 45, tzinfo=UTC)) == 3 * CX23.hourly + CX23.monthly


def test_a_new_price_is_of_new_orders_or_of_all(cloud: Emulator) -> None:
    bought(cloud, "old")
    cloud.advance(30 * MINUTE)
    cloud.cloud.reprice("cx23", "fsn1", "0.02", "12.00")
    bought(cloud, "new")
    cloud.advance(HOUR)
    address = IPV4.hourly
    assert cloud.cloud.bill.total(cloud.now) == 2 * (CX23.hourly + address) + (Decimal("0.02") + address)
    cloud.cloud.reprice("cx23", "fsn1", "0.03", "18.00", existing=True)
    cloud.advance(HOUR)
    dearer = Decimal("0.03")
    assert cloud.cloud.bill.total(cloud.now) == 2 * CX23.hourly + Decimal("0.02") + 2 * dearer + 5 * address


def test_a_deleted_server_is_billed_until_the_deletion_and_a_powered_off_one_goes_on(cloud: Emulator) -> None:
    server = bought(cloud)
    cloud.advance(59 * MINUTE)
    call(cloud, "POST", f"/servers/{server.id}/actions/poweroff")
    cloud.advance(2 * MINUTE)
    assert (server.status, cloud.cloud.bill.hours(cloud.now)) == ("off", 2)
    call(cloud, "DELETE", f"/servers/{server.id}")
    cloud.advance(5 * HOUR)
    assert cloud.cloud.bill.total(cloud.now) == 2 * (CX23.hourly + IPV4.hourly)


def test_an_address_of_no_server_goes_on_costing(cloud: Emulator) -> None:
    cloud.cloud.lone_address("lone")
    cloud.advance(10 * HOUR)
    assert cloud.cloud.bill.total(cloud.now) == 10 * IPV4.hourly


# Labels.


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("", "abc"),
        ("env=prod", "a"),
        ("env==prod", "a"),
        ("env!=prod", "bc"),
        ("env", "ab"),
        ("!env", "c"),
        ("env in (prod, test)", "ab"),
        ("env notin (prod,other)", "bc"),
        ("env,tier=1", "b"),
        ("env in (prod,test),!tier", "a"),
        ("tier=", ""),
    ],
)
def test_a_selector_chooses(text: str, chosen: str) -> None:
    things = {"a": {"env": "prod"}, "b": {"env": "test", "tier": "1"}, "c": {}}
    fits = selector(text)
    assert "".join(name for name, labels in things.items() if fits(labels)) == chosen


@pytest.mark.parametrize("text", ["=a", "a=(", "a in b", "!a=b", "a b", "-a"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        selector(text)


@pytest.mark.parametrize(
    "labels, good",
    [
        ({"a": ""}, True),
        ({"rgrid-owner": "a.b_c-d"}, True),
        ({"a": "x" * 63}, True),
        ({"a": "x" * 64}, False),
        ({"a": "2026-11-25T08:00"}, False),
        ({"hetzner.cloud/a": "b"}, False),
        ({"a": 1}, False),
        ([], False),
    ],
)
def test_labels_are_checked(labels: object, good: bool) -> None:
    assert valid(labels) is good


# Rules.


def matching(rules: Rules, *calls: Call) -> list[bool]:
    return [bool(rules.of(each)) for each in calls]


def seen(index: int = 0, method: str = "POST", path: str = "/servers", body: object = None, at: int = 0) -> Call:
    moment = datetime(2026, 11, 25, tzinfo=UTC) + timedelta(seconds=at)
    return Call(index, method, path, {}, body, "t", moment)


def test_a_rule_meets_the_calls_it_names_as_often_as_it_says() -> None:
    rules = Rules()
    rules.add(Answer(500), **CREATE, times=2, skip=1, where=asks_for("cx23", "fsn1"))
    wanted = {"server_type": "cx23", "location": "fsn1"}
    calls = [seen(body=wanted), seen(body=wanted | {"location": "hel1"}), seen(method="GET"), *[seen(body=wanted)] * 3]
    assert matching(rules, *calls) == [False, False, False, True, True, False]


def test_a_rule_has_its_time_and_its_chance_and_a_seed_repeats_it() -> None:
    rules = Rules()
    rules.add(Answer(500), times=None, since=seen(at=10).at, until=seen(at=20).at)
    assert matching(rules, *(seen(at=at) for at in (9, 10, 19, 20))) == [False, True, True, False]
    drawn = []
    for _ in range(2):
        dice = Rules(seed=7)
        dice.add(Answer(500), times=None, chance=0.3)
        drawn.append(matching(dice, *[seen()] * 200))
    assert drawn[0] == drawn[1] and 40 < sum(drawn[0]) < 80


def test_every_call_can_be_watched_before_and_after_it_is_carried_out(cloud: Emulator) -> None:
    watched = []
    cloud.on_call = lambda each, phase: watched.append((each.index, phase, len(cloud.cloud.servers)))
    bought(cloud)
    call(cloud, "GET", "/servers")
    assert watched == [(0, "before", 0), (0, "after", 1), (1, "before", 1), (1, "after", 1)]


def test_a_fault_of_the_emulator_itself_is_raised_when_it_ends() -> None:
    def breaks(each: Call, phase: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match="the emulator itself"):
        with Emulator() as cloud:
            cloud.on_call = breaks
            with pytest.raises(requests.ConnectionError):
                call(cloud, "GET", "/servers")


# Machines: what runs on a server.


def test_a_machine_starts_with_its_server_and_stops_with_it(cloud: Emulator, machines: Recorder) -> None:
    server = bought(cloud)
    cloud.advance(10 * MINUTE)
    call(cloud, "DELETE", f"/servers/{server.id}")
    assert machines.seen == [("start", "a", "told"), ("stop", "a", "told")]


@pytest.mark.parametrize(
    "fate, after_minutes, starts",
    [
        (Fate(machine_never=True), 60, []),
        (Fate(machine_after=5 * MINUTE), 4, []),
        (Fate(machine_after=5 * MINUTE), 6, ["told"]),
        (Fate(machine_twice=True), 1, ["told", "told"]),
        (Fate(user_data=lambda told: told.replace("told", "wrong")), 1, ["wrong"]),
        (Fate(start_error="action_failed"), 60, []),
        (Fate(machine_after=5 * MINUTE, vanishes_after=2 * MINUTE), 60, []),
    ],
)
def test_a_machine_starts_late_twice_never_or_told_something_else(
    cloud: Emulator, machines: Recorder, fate: Fate, after_minutes: int, starts: list[str]
) -> None:
    cloud.inject(fate, **CREATE)
    bought(cloud)
    cloud.advance(after_minutes * MINUTE)
    assert [told for what, _, told in machines.seen if what == "start"] == starts


def test_a_machine_stops_when_its_host_breaks_and_starts_again_after_a_reset(
    cloud: Emulator, machines: Recorder
) -> None:
    cloud.inject(Fate(vanishes_after=HOUR), **CREATE)
    server = bought(cloud)
    cloud.advance(MINUTE)
    call(cloud, "POST", f"/servers/{server.id}/actions/reset")
    cloud.advance(2 * HOUR)
    assert [what for what, _, _ in machines.seen] == ["start", "stop", "start", "stop"]
    assert cloud.cloud.servers == {} and cloud.cloud.bill.hours(cloud.now) == 1


def test_a_clock_that_runs_lets_things_happen_without_a_call() -> None:
    started = threading.Event()

    class Waiter(Recorder):
        def start(self, machine: Machine) -> None:
            started.set()

    with Emulator(speed=200, machines=Waiter()) as cloud:
        bought(cloud)
        assert started.wait(10)


def test_the_metadata_service_tells_a_server_of_itself(cloud: Emulator) -> None:
    server = bought(cloud)
    url = cloud.metadata_url(server)
    assert requests.get(f"{url}/userdata", timeout=5).text == "told"
    assert requests.get(f"{url}/metadata/instance-id", timeout=5).text == str(server.id)
    assert (
        f"hostname: a\ninstance-id: {server.id}\npublic-ipv4: 198.18."
        in requests.get(f"{url}/metadata", timeout=5).text
    )
    root = f"http://{cloud.host}:{cloud.port}/hetzner/v1/userdata"
    assert requests.get(root, timeout=5).status_code == 404
    server.ipv4.ip = "127.0.0.1"
    assert requests.get(root, timeout=5).text == "told"


def test_addresses_come_from_where_the_test_says() -> None:
    with Emulator(ipv4=iter(["172.30.0.2", "172.30.0.3"])) as cloud:
        assert [bought(cloud, name).ipv4.ip for name in "ab"] == ["172.30.0.2", "172.30.0.3"]


def test_a_thousand_servers_are_listed_in_twenty_pages(cloud: Emulator) -> None:
    for index in range(1000):
        cloud.cloud.foreign(f"s-{index}", {"o": "1"})
    names: list[str] = []
    for page in range(1, 21):
        answer = call(cloud, "GET", f"/servers?per_page=50&label_selector=o&page={page}").json()
        names += [each["name"] for each in answer["servers"]]
    assert len(names) == len(set(names)) == 1000
