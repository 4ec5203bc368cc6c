"""What a job with ``network: true`` reaches (SECURITY §1.4; attacks S28, S29, S37, S53 to S63), against the
real engine and the real packet filter. Each target is shown to answer a container that is not behind the rules."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from nodes.agent import firewall
from nodes.agent.containers import Engine
from nodes.agent.failures import AttemptFailed
from nodes.protocol import ErrorCode, Image
from tests.attacks.images import hostile
from tests.attacks.internet import FORBIDDEN, PORT, PUBLIC, SMTP, Internet
from tests.conftest import docker_works
from tests.images.build import busybox
from tests.nodes.agent.jobs import PlainFolders, lease, run, shell

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]

NODE = "node-network"
DENIED = "11.22.33.55"
"""A public address that the operator has closed to jobs; nobody is there in the control either."""


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    made = Internet()
    yield made
    made.close()


@pytest.fixture(scope="module")
async def engine(internet: Internet) -> AsyncIterator[Engine]:
    opened = await Engine.open(NODE, dns=[PUBLIC], deny=[IPv4Network(f"{DENIED}/32")])
    yield opened
    for each in await opened.find():
        await opened.remove(each.container_id)
    await opened.aclose()
    assert mine() == []


@pytest.fixture(scope="module")
async def image(engine: Engine) -> str:
    return (await engine.ensure_image(Image(reference=busybox()))).id


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> PlainFolders:
    return PlainFolders.below(tmp_path_factory.mktemp("job"))


def mine() -> list[str]:
    """The rules of this test's node."""
    listed = subprocess.run(["iptables", "-t", "mangle", "-S"], check=True, capture_output=True, text=True).stdout
    prefix = firewall.Firewall(NODE, dns=[]).prefix
    return [line for line in listed.splitlines() if prefix[2:] in line]


@pytest.fixture(scope="module")
async def local_port() -> AsyncIterator[int]:
    """Something that listens at every address of this machine."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def asking(targets: dict[str, tuple[str, int]]) -> str:
    """A script that says for each target whether it could connect."""
    lines = [
        f"(timeout 4 nc -w 3 {host} {port} </dev/null >/dev/null 2>&1 && echo {name} open || echo {name} closed) &"
        for name, (host, port) in targets.items()
    ]
    return "gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')\n" + "\n".join([*lines, "wait"])


def answers(output: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in output.splitlines() if line)


def own_addresses() -> dict[str, str]:
    listed = subprocess.run(["ip", "-4", "-o", "address"], check=True, capture_output=True, text=True).stdout
    found = [line.split()[3].split("/")[0] for line in listed.splitlines() if " lo " not in line]
    return {f"own_{address}": address for address in found if not address.startswith("198.1")}


@pytest.fixture(scope="module")
async def neighbour(engine: Engine, image: str, folders: PlainFolders) -> AsyncIterator[str]:
    """The address of another job that listens."""
    container = await engine.create(shell("exec nc -ll -p 7777 -e echo hello", network=True), image, folders)
    await engine.start(container)
    client = docker.from_env()
    about = client.api.inspect_container(container)
    client.close()
    (network,) = about["NetworkSettings"]["Networks"].values()
    sockets = [Path(f"/proc/{about['State']['Pid']}/net/{table}") for table in ("tcp", "tcp6")]
    async with asyncio.timeout(10):
        while not any(":1E61 " in table.read_text() for table in sockets):  # 7777
            await asyncio.sleep(0.05)
    yield str(network["IPAddress"])
    await engine.kill(container)
    await engine.remove(container)


@pytest.fixture(scope="module")
def targets(local_port: int, neighbour: str) -> dict[str, tuple[str, int]]:
    return {
        "public": (PUBLIC, PORT),
        "smtp": (PUBLIC, SMTP),
        "gateway": ("$gateway", local_port),
        "neighbour": (neighbour, 7777),
        "mapped_metadata": ("::ffff:169.254.169.254", PORT),
        **{name: (address, PORT) for name, address in FORBIDDEN.items()},
        **{name: (address, local_port) for name, address in own_addresses().items()},
    }


@pytest.fixture(scope="module")
async def reached(
    engine: Engine, image: str, folders: PlainFolders, targets: dict[str, tuple[str, int]]
) -> dict[str, str]:
    ran = await run(engine, image, shell(asking(targets), network=True), folders)
    return answers(ran.output)


async def test_a_job_reaches_the_internet_and_nothing_else(reached: dict[str, str]) -> None:
    assert {name for name, answer in reached.items() if answer == "open"} == {"public"}
    assert len(reached) >= 14


async def test_the_same_targets_answer_whoever_is_not_behind_the_rules(
    image: str, targets: dict[str, tuple[str, int]], reached: dict[str, str]
) -> None:
    client = docker.from_env()
    network = client.networks.create(f"rgrid-test-{uuid4().hex}", driver="bridge")
    try:
        output = await asyncio.to_thread(
            client.containers.run,
            image, ["sh", "-c", asking(targets)], network=network.name, remove=True, user="65532",
        )  # fmt: skip
    finally:
        network.remove()
        client.close()
    got = answers(output.decode())
    # Docker itself keeps two bridges apart, and nobody listens in a group of multicast.
    closed = {"neighbour", "multicast"}
    assert {name for name, answer in got.items() if answer == "closed"} == closed, got


async def test_names_are_looked_up_at_the_named_server_and_lead_nowhere_private(
    engine: Engine, image: str, folders: PlainFolders
) -> None:
    script = f"""nslookup evil.example; nc -w 1 evil.example {PORT} </dev/null && echo open
    cat /etc/resolv.conf; cat /proc/net/if_inet6 | wc -l"""
    ran = await run(engine, image, shell(script, network=True), folders)  # S60, S57
    assert "10.77.0.1" in ran.output
    assert "open" not in ran.output
    assert "search" not in ran.output
    assert ran.output.endswith("\n0\n")


async def test_new_connections_are_limited(
    internet: Internet, image: str, folders: PlainFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "NEW_A_SECOND", 1)
    monkeypatch.setattr(firewall, "NEW_BURST", 20)
    limited = await Engine.open("node-limited")
    try:
        many = asking({f"try{number}": (PUBLIC, PORT) for number in range(60)})
        ran = await run(limited, image, shell(many, network=True), folders)  # S28, S61
        assert 15 < list(answers(ran.output).values()).count("open") < 40
    finally:
        await limited.aclose()


async def test_a_flood_of_datagrams_stops_at_the_bandwidth_of_a_job(
    internet: Internet, folders: PlainFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def arrived(node: str) -> int:
        """Bytes that left this machine of a job's flood of a second."""
        engine = await Engine.open(node)
        try:
            found = (await engine.ensure_image(Image(reference=hostile()))).id
            before = internet.received_bytes()
            ran = await run(engine, found, lease(["/bin/probe", "flood", PUBLIC, "1"], network=True), folders)
            assert ran.code == 0, ran
            return internet.received_bytes() - before
        finally:
            await engine.aclose()

    wide = await arrived("node-wide")  # S62
    monkeypatch.setattr(firewall, "BYTES_A_SECOND", "32kb")
    narrow = await arrived("node-narrow")
    assert narrow * 4 < wide, (narrow, wide)


async def test_a_firewall_that_does_not_hold_is_noticed_and_the_job_refused(
    internet: Internet, image: str, folders: PlainFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "dropping_rules", lambda **_: [])
    leaky = await Engine.open("node-leaky")
    try:
        with pytest.raises(AttemptFailed, match="lets through to") as failed:
            await leaky.create(shell("true", network=True), image, folders)
        assert failed.value.code is ErrorCode.INTERNAL and failed.value.retryable
        await run(leaky, image, shell("true"), folders)  # jobs without a network are fine
        monkeypatch.undo()
        await run(leaky, image, shell("true", network=True), folders)
    finally:
        await leaky.aclose()


async def test_rules_that_somebody_took_away_are_put_back_before_the_next_job(
    engine: Engine, image: str, folders: PlainFolders, local_port: int
) -> None:
    await run(engine, image, shell("true", network=True), folders)
    jump = next(rule for rule in mine() if rule.startswith("-A PREROUTING"))
    subprocess.run(["iptables", "-t", "mangle", *jump.replace("-A", "-D", 1).split()], check=True)
    ran = await run(
        engine, image, shell(asking({"gateway": ("$gateway", local_port)}), network=True), folders
    )
    assert answers(ran.output) == {"gateway": "closed"}
    assert sum(rule == jump for rule in mine()) == 1


async def test_two_nodes_of_one_machine_leave_each_others_rules_alone(
    engine: Engine, image: str, folders: PlainFolders
) -> None:
    await run(engine, image, shell("true", network=True), folders)
    ours = firewall.Firewall(NODE, dns=[])
    other = firewall.Firewall("node-network-other", dns=[])
    await other.install()
    try:
        assert await ours.in_place() and await other.in_place()
        subprocess.run(["iptables", "-t", "mangle", "-I", "PREROUTING", "-i", "rgnone0", "-j", "ACCEPT"], check=True)
        assert not await ours.in_place()
        subprocess.run(["iptables", "-t", "mangle", "-D", "PREROUTING", "-i", "rgnone0", "-j", "ACCEPT"], check=True)
        assert await ours.in_place()
    finally:
        await other.remove()
    assert await ours.in_place() and not await other.in_place()


async def test_networks_and_rules_go_with_their_jobs_and_their_agent(
    internet: Internet, image: str, folders: PlainFolders
) -> None:
    first = await Engine.open("node-network-gone")
    await first.start(await first.create(shell("sleep 60", network=True), image, folders))
    await first.aclose()
    second = await Engine.open("node-network-gone")
    client = docker.from_env()

    def networks() -> int:
        return len(client.networks.list(filters={"label": "rgrid.node=node-network-gone"}))

    def rules() -> int:
        prefix = firewall.Firewall("node-network-gone", dns=[]).prefix
        listed = subprocess.run(["iptables", "-t", "mangle", "-S"], check=True, capture_output=True, text=True).stdout
        return listed.count(prefix[2:])

    try:
        found = await second.find()
        assert networks() == 1 and rules() > 0, "a job that may go on stays behind its rules"
        await second.prune_networks()
        assert networks() == 1, "it is in use"
        for each in found:
            await second.remove(each.container_id)
        await second.aclose()
        assert networks() == 0 and rules() == 0
    finally:
        client.close()


async def test_a_network_left_by_a_killed_agent_is_removed_at_the_next_start(
    engine: Engine, image: str, folders: PlainFolders
) -> None:
    client = docker.from_env()
    left = client.networks.create(f"rgrid-test-{uuid4().hex}", labels={"rgrid.node": NODE})
    namespace = f"{firewall.Firewall(NODE, dns=[]).prefix}0000000-probe"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        await engine.prune_networks()
        assert not client.networks.list(filters={"id": left.id})
        assert not Path("/run/netns", namespace).exists()
    finally:
        client.close()


@pytest.mark.parametrize(
    ("text", "named", "found"),
    [
        ("nameserver 9.9.9.9\nnameserver 185.12.64.1\n", (), ("9.9.9.9", "185.12.64.1")),
        ("nameserver 10.0.0.2\nnameserver 9.9.9.9\n", (), ("9.9.9.9",)),
        ("nameserver 127.0.0.53\noptions edns0\n", (), firewall.PUBLIC_RESOLVERS),
        ("nameserver fe80::1%eth0\nnameserver ::1\nnameserver\n", (), firewall.PUBLIC_RESOLVERS),
        ("nameserver 9.9.9.9\n", ("10.0.0.2",), ("10.0.0.2",)),
    ],
)
def test_jobs_ask_public_name_servers_unless_the_operator_names_others(
    tmp_path: Path, text: str, named: tuple[str, ...], found: tuple[str, ...]
) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    assert firewall.resolvers(named, file) == found
    assert firewall.resolvers((), tmp_path / "none") == firewall.PUBLIC_RESOLVERS


def test_a_private_name_server_gets_a_hole_for_its_port_only() -> None:
    rules = firewall.dropping_rules(dns=["10.0.0.2", "9.9.9.9"], deny=[IPv4Network("11.0.0.1/32")])
    assert rules[:2] == [
        "-d 10.0.0.2/32 -p udp --dport 53 -j RETURN",
        "-d 10.0.0.2/32 -p tcp --dport 53 -j RETURN",
    ]
    assert "-d 11.0.0.1/32 -j DROP" in rules
    assert not [rule for rule in rules if "RETURN" in rule][2:]


def test_what_a_developer_allows_comes_before_all_that_is_dropped() -> None:
    rules = firewall.dropping_rules(dns=[], deny=[], allow=[IPv4Network("172.17.0.1/32")])
    assert rules[0] == "-d 172.17.0.1/32 -j RETURN"
    assert rules[1:] == firewall.dropping_rules(dns=[], deny=[])
