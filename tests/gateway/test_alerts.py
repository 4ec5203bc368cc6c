"""The alerts for Prometheus, and the pages about them and about metrics, are about what /metrics really says."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway import instance as instances
from gateway.instance import instance_reader
from gateway.services import Services
from nodes import fleet
from scheduler import round_records
from tests.gateway.making import make_function, make_job
from tests.promql import Scrape, value_of

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "templates/deploy/prometheus/rgrid-alerts.yml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
NAMES = [alert["alert"] for alert in ALERTS]
PROMETHEUS_OWN = {"up": {"job"}}
Series = dict[str, set[str]]


@pytest.fixture
async def exposed(services: Services, api: httpx.AsyncClient) -> Series:
    """Labels' names by the name of each series, with everything switched on that has any."""
    await make_function(api)
    await services.pool.execute("INSERT INTO rounds VALUES ('promote', 1, now(), 10, 2, 0.5, now())")
    async with services.pool.acquire() as conn:
        now, _ = await fleet.clock(conn)
        await fleet.listed(conn, 0, 0, at=now)
        await fleet.limit(conn, 5, until=now + timedelta(minutes=30))
        await fleet.tell(conn, {})
    services.settings = services.settings.model_copy(
        update={"provider": "hetzner", "max_eur_hour": 1, "max_eur_month": 1}
    )
    async with instance_reader(services.settings) as reader:
        services.instance = reader
        text = (await api.get("/metrics")).text
    found: Series = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def selectors(expression: Any) -> Iterator[tuple[str, set[str]]]:
    """Names of series in a parsed expression, and the labels that are matched on."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression.name, {matcher.name for matcher in expression.matchers.matchers}
    for part in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expression, part, None)) is not None:
            yield from selectors(inner)
    for inner in getattr(expression, "args", ()):
        yield from selectors(inner)


def grouped_by(text: str) -> set[str]:
    return {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", text) for label in labels.split(",")}


async def test_every_series_that_an_alert_asks_for_is_told(exposed: Series) -> None:
    for alert in ALERTS:
        asked = list(selectors(promql_parser.parse(alert["expr"])))
        assert asked, alert["alert"]
        for name, labels in asked:
            known = PROMETHEUS_OWN.get(name) or exposed[name]
            assert labels <= known, (alert["alert"], name)
        assert {name for name, _ in asked} == set(re.findall(r"\b(?:rgrid_\w+|up\b)", alert["expr"]))
        labels_of_all = {label for name, _ in asked for label in exposed.get(name, ())}
        assert grouped_by(alert["expr"]) <= labels_of_all, alert["alert"]
        shown = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        assert shown <= labels_of_all | {"instance"}, alert["alert"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_what_its_reader_needs(alert: dict[str, Any]) -> None:
    assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert re.fullmatch(r"[1-9][0-9]*[smh]", alert.get("for", "1m"))
    assert alert["annotations"]["runbook"] == f"docs/operations/alerts.md#{alert['alert'].lower()}"
    assert alert["annotations"]["summary"].count("{{") == alert["annotations"]["summary"].count("}}")


def test_every_alert_is_explained_and_no_other() -> None:
    page = (ROOT / "docs/operations/alerts.md").read_text()
    names = [alert["alert"] for alert in ALERTS]
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == names
    assert len(set(names)) == len(names)
    for name, about in re.findall(r"^### (\w+)\n\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL):
        (alert,) = (alert for alert in ALERTS if alert["alert"] == name)
        said = f"({alert['labels']['severity']}{', after ' + alert['for'] if 'for' in alert else ''})"
        assert said in " ".join(about.split()), name


async def test_the_reference_has_every_metric_with_its_labels_and_no_other(exposed: Series) -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(rgrid_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    described = {name: set(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
    told = {name: labels for name, labels in exposed.items() if name.startswith("rgrid_")}
    histogram = "rgrid_http_request_duration_seconds"
    parts = {f"{histogram}_{part}" for part in ("bucket", "count", "sum")}
    assert parts <= told.keys()
    assert described == {name: labels for name, labels in told.items() if name not in parts} | {
        histogram: told[f"{histogram}_count"]
    }
    assert len(described) == len(rows)


def fires(name: str, text: str, before: str | None = None) -> bool:
    """Whether the alert's condition holds for what a gateway tells now; ``before`` is what it told at its start."""
    (expression,) = [alert["expr"] for alert in ALERTS if alert["alert"] == name]
    now_s = time.time()
    scrapes = [None if told is None else Scrape.of(told, now_s, instance="one") for told in (text, before)]
    assert scrapes[0] is not None
    found = value_of(expression, scrapes[0], scrapes[1])
    return bool(found)


async def told_of_a_round(services: Services) -> None:
    await services.pool.execute(
        "INSERT INTO rounds VALUES ('promote', 1, now(), 10, 2, 0.5, now()) ON CONFLICT DO NOTHING"
    )


async def scraped(services: Services, api: httpx.AsyncClient, **settings: object) -> str:
    services.settings = services.settings.model_copy(update=settings)
    async with instance_reader(services.settings) as reader:
        services.instance = reader
        return (await api.get("/metrics")).text


async def test_no_alert_fires_on_a_fresh_instance(services: Services, api: httpx.AsyncClient) -> None:
    await told_of_a_round(services)
    before = await scraped(services, api)
    assert [name for name in NAMES if fires(name, before)] == []
    await make_function(api)
    await make_job(api)
    now = await scraped(services, api)
    assert [name for name in NAMES if fires(name, now, before)] == ["RGridNoNodes"], "there is none, and it has a job"


async def test_jobs_that_wait_for_paid_minutes_on_purpose_are_nobodys_alert(
    services: Services, api: httpx.AsyncClient
) -> None:
    await make_function(api)
    await make_job(api, headers={"RGrid-Lane": "paid"})
    told = await scraped(services, api, provider="hetzner", max_nodes=0)
    assert 'rgrid_jobs{state="ready"} 1.0' in told
    assert [name for name in ("RGridNoNodes", "RGridNodeLimit", "RGridQueueOld") if fires(name, told)] == []
    await make_job(api)
    told = await scraped(services, api)
    assert [name for name in ("RGridNoNodes", "RGridNodeLimit") if not fires(name, told)] == []


def test_a_round_that_a_release_does_not_have_any_more_is_forgotten_before_it_is_late() -> None:
    (alert,) = [alert for alert in ALERTS if alert["alert"] == "RGridRoundLate"]
    late_s = sum(int(seconds) for seconds in re.findall(r"> (\d+) \+ 5", alert["expr"])) + 60 * int(alert["for"][:-1])
    assert round_records.GIVEN_UP.total_seconds() + 2 * round_records.TELL_S + instances.FRESH_S + 15 < late_s == 240


async def test_a_fleet_that_was_never_looked_after_is_late(services: Services, api: httpx.AsyncClient) -> None:
    await told_of_a_round(services)
    told = await scraped(services, api)
    assert not fires("RGridFleetLate", told), "with machines of one's own there is none"
    assert fires("RGridFleetLate", await scraped(services, api, provider="hetzner"))
    async with services.pool.acquire() as conn:
        await fleet.tell(conn, {})
    assert not fires("RGridFleetLate", await scraped(services, api))
