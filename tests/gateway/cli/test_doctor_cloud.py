"""What ``rgrid doctor`` says about rented nodes, against a cloud whose clock is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from functions.db import Pool
from gateway.autoscaling import owner_of
from gateway.cli.doctor import renting
from gateway.cli.doctor.cloud import cloud as looked_at
from gateway.cli.doctor.findings import Finding
from gateway.settings import Settings
from nodes.agent.facts import agent_version
from nodes.provider import OWNER_LABEL
from tests.gateway.cli.conftest import Connected
from tests.gateway.conftest import make_settings
from tests.hetzner.api import Token
from tests.hetzner.server import Emulator
from tests.hetzner.things import Address
from tests.postgres import free_port
from tests.s3 import S3Server

HEALTHY = [
    "cloud token", "cloud clock", "type cx23", "worst case", "server image", "cloud project", "cloud servers",
    "cloud addresses",
]  # fmt: skip


@pytest.fixture
def cloud() -> Iterator[Emulator]:
    with Emulator(start=datetime.now(UTC), speed=1) as running:
        yield running


def agent_in(folder: Path, version: str = "", content: bytes = b"agent") -> Path:
    """Stands for what `make agent` builds."""
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / f"{sha256}.pyz").write_bytes(content)
    files = {"cp312-x86_64": {"sha256": sha256, "size": len(content)}}
    (folder / "index.json").write_text(json.dumps({"version": version or agent_version(), "files": files}))
    return folder


@pytest.fixture
def rented(database: str, s3_server: S3Server, cloud: Emulator, tmp_path: Path) -> Settings:
    return make_settings(
        database, s3_server, provider="hetzner", public_url="https://rgrid.example.com", agent_dir=agent_in(tmp_path),
        hcloud_token=cloud.token, hcloud_endpoint=cloud.url, node_types="cx22,cx23", max_eur_hour="0.03",
    )  # fmt: skip


async def seen(settings: Settings) -> dict[str, Finding]:
    async with renting.opened_books(settings) as books:
        return {one.part: one async for one in looked_at(settings, books)}


async def test_it_says_what_can_be_bought_and_at_what_price_and_changes_nothing(
    cloud: Emulator, rented: Settings
) -> None:
    cloud.cloud.stock("cx23", "hel1", left=0)
    found = await seen(rented)
    assert [part for part, one in found.items() if one.state == "ok"] == HEALTHY
    assert found["type cx23"].found == "2 slots at 0.0048 EUR an hour each, in stock at fsn1, nbg1; sold out at hel1"
    assert (found["type cx22"].state, found["type cx22"].found) == ("skipped", "the cloud does not sell cx22 (any more)")
    # Five servers would cost 0.048 EUR, were it not for the limit.
    assert found["worst case"].found == "5 servers, 0.0300 EUR an hour, 21.90 EUR a month of 730 hours"
    assert found["firewall and key"].state == "skipped" and "no firewall and no SSH key yet" in found["firewall and key"].found
    assert not cloud.cloud.firewalls and not cloud.cloud.keys and not cloud.cloud.servers
    assert len(cloud.calls) <= 12


async def test_a_token_that_will_not_do_is_all_that_is_said(cloud: Emulator, rented: Settings) -> None:
    cloud.tokens[cloud.token] = Token(readonly=True)
    (only,) = (await seen(rented)).values()
    assert (only.part, only.state) == ("cloud token", "wrong") and "Read & Write" in only.found
    cloud.tokens.clear()
    (only,) = (await seen(rented)).values()
    assert only.state == "wrong" and "does not know the token" in only.found and cloud.token[:8] not in str(only)
    (only,) = (await seen(rented.model_copy(update={"hcloud_endpoint": f"http://127.0.0.1:{free_port()}/v1"}))).values()
    assert only.state == "wrong" and "cannot be reached" in only.found
    (only,) = (await seen(rented.model_copy(update={"hcloud_token": None}))).values()
    assert only.state == "skipped" and "only the scheduler" in only.advice


async def test_types_that_are_sold_out_ending_too_dear_or_unknown_are_told_apart(
    cloud: Emulator, rented: Settings
) -> None:
    for place in ("fsn1", "nbg1", "hel1"):
        cloud.cloud.stock("cx23", place, left=0)
    cloud.cloud.end_sale("cx33", cloud.now - timedelta(days=1), cloud.now + timedelta(days=90))
    wish = {"node_types": ("cx23", "cx33", "ccx13", "cx99")}
    found = await seen(rented.model_copy(update=wish))
    assert [found[f"type {name}"].state for name in wish["node_types"]] == ["warning", "warning", "skipped", "skipped"]
    assert "sold out at fsn1, nbg1, hel1" in found["type cx23"].found
    assert f"sold until {cloud.now + timedelta(days=90):%Y-%m-%d}" in found["type cx33"].found
    assert "more than the ceiling" in found["type ccx13"].found
    assert "server types" not in found
    assert (await seen(rented))["server types"].found == "all are sold out"
    nothing = (await seen(rented.model_copy(update={"node_types": ("cx99",)})))["server types"]
    assert (nothing.state, nothing.found) == ("wrong", "none of RGRID_NODE_TYPES can be bought")


async def test_what_stands_in_the_way_of_servers_or_costs_beside_them_is_told(
    cloud: Emulator, rented: Settings, pool: Pool
) -> None:
    async with pool.acquire() as conn:
        owner = await owner_of(conn, rented)
    at = cloud.now
    cloud.cloud.foreign("rgrid-lost", {OWNER_LABEL: owner})
    cloud.cloud.foreign("somebody-elses", {})
    cloud.cloud.addresses[7] = Address(7, "forgotten", "198.51.100.7", "ipv4", "fsn1", at)
    cloud.clock.date_shift = timedelta(minutes=-9)
    found = await seen(rented.model_copy(update={"node_image": "docker-new", "max_nodes": 0}))
    assert found["cloud servers"].state == "warning"
    assert found["cloud servers"].found == f"1 with the label of {owner}, 1 unknown to the database: rgrid-lost"
    assert found["cloud project"].state == "warning" and "servers of others in the token's project: 1" in found["cloud project"].found
    assert found["cloud addresses"].state == "warning" and "forgotten (198.51.100.7)" in found["cloud addresses"].found
    assert found["cloud clock"].state == "warning" and found["cloud clock"].found.startswith(("539 s", "540 s", "541 s"))
    assert found["server image"].state == "wrong" and "no image docker-new" in found["server image"].found
    assert (found["worst case"].state, found["worst case"].found) == ("warning", "nothing may be bought")


async def needed(settings: Settings) -> dict[str, Finding]:
    async with renting.opened_books(settings) as books:
        return {one.part: one async for one in renting.renting(settings, books)}


@pytest.mark.parametrize(
    ("url", "addresses", "state", "words"),
    [
        ("https://rgrid.example.com", ["2001:4860::1", "8.8.4.4"], "ok", "leads to 8.8.4.4"),
        ("http://rgrid.example.com", ["8.8.4.4"], "warning", "is not encrypted"),
        ("https://rgrid.example.com", ["8.8.4.4", "10.1.2.3"], "wrong", "10.1.2.3, which is not reached from outside"),
        ("https://rgrid.example.com", ["2001:4860::1"], "wrong", "rgrid.example.com has no IPv4 address"),
        ("https://rgrid.example.com", None, "wrong", "rgrid.example.com: its host is not found"),
        ("https://[rgrid", [], "wrong", "https://[rgrid: its host is not found"),
        (None, [], "wrong", "none is set"),
    ],
)
async def test_nodes_must_reach_the_public_url_from_outside(
    monkeypatch: pytest.MonkeyPatch, url: str | None, addresses: list[str] | None, state: str, words: str
) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        if addresses is None:
            raise OSError("no such host")
        return addresses

    monkeypatch.setattr(renting, "system_resolver", lookup)
    found = await renting.public_url(url)
    assert (found.state, words in found.found) == (state, True), found


async def _nothing(base_url: str) -> None:
    """What a gateway says that does not answer."""


async def test_the_agents_files_are_built_of_this_release_and_those_of_the_gateway(
    rented: Settings, call: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = rented.model_copy(update={"public_url": call.url})
    found = (await needed(settings))["agent files"]
    assert found.state == "wrong" and "the gateway has others" in found.found, "it has none"
    monkeypatch.setattr(renting, "_served", _nothing)
    found = (await needed(settings))["agent files"]
    assert found.state == "ok" and "for cp312-x86_64; the gateway does not answer there" in found.found
    agent_in(tmp_path, version="0.0.9")
    assert "this is rgrid" in (await needed(settings))["agent files"].found
    (tmp_path / "index.json").unlink()
    assert "make agent" in (await needed(settings))["agent files"].advice


async def test_the_fleets_problem_its_scheduler_and_its_learned_limit_are_told(
    rented: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renting, "_served", _nothing)
    found = await needed(rented)
    assert (found["fleet"].state, found["account limit"].state) == ("skipped", "ok")
    await pool.execute("UPDATE fleet SET told_at = now() - interval '3 s', reconciled_at = now() - interval '40 s'")
    found = await needed(rented)
    assert (found["fleet"].state, found["fleet"].found) == ("ok", "last round 3 s ago, last whole list 40 s ago")
    await pool.execute("UPDATE fleet SET told_at = now() - interval '5 min', problem = NULL")
    assert (await needed(rented))["fleet"].advice.startswith("is a scheduler running")
    await pool.execute("UPDATE fleet SET told_at = now(), reconciled_at = now() - interval '20 min'")
    assert (await needed(rented))["fleet"].advice.startswith("the cloud does not answer")
    await pool.execute(
        "UPDATE fleet SET problem = 'no type can be bought', server_limit = 2, limit_until = now() + interval '50 min'"
    )
    found = await needed(rented)
    assert (found["fleet"].state, found["fleet"].found) == ("wrong", "no type can be bought")
    assert found["account limit"].state == "warning"
    assert found["account limit"].found.startswith("no more than 2 servers, as a refusal taught; tried again in 50 min")


async def test_the_command_has_it_all_and_without_a_database_what_the_cloud_says(
    cloud: Emulator, rented: Settings, call: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: getattr(rented, name) for name in rented.model_fields_set} | {"public_url": call.url}
    for name, value in given.items():
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        text = ",".join(text) if isinstance(text, tuple) else str(text)
        monkeypatch.setenv(f"RGRID_{name.upper()}", text)
    done = await call("doctor", "--json")
    found = {one["part"]: one for one in done.json["checks"]}
    assert done.status == 1, "its public URL is this machine's own"
    assert found["public url"]["state"] == "wrong" and "127.0.0.1" in found["public url"]["found"]
    assert {found[part]["state"] for part in (*HEALTHY, "account limit")} == {"ok"}
    assert cloud.token not in done.out
    monkeypatch.setenv("RGRID_DATABASE_URL", f"postgresql://127.0.0.1:{free_port()}/none")
    parts = {one["part"] for one in (await call("doctor", "--json")).json["checks"]}
    assert {"type cx23", "worst case"} <= parts and not {"fleet", "account limit", "cloud servers"} & parts
