"""What ``GET /metrics`` tells, by name: of this process, and of the instance as the database has it.

Labels are names that the code has: nothing of a tenant, and no more series with more jobs, functions or nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from functions.db import Pool
from gateway.instance import Instance
from gateway.services import Services
from gateway.settings import Settings
from nodes import fleet
from nodes.census import Census
from scheduler.backlog import Backlog
from scheduler.round_records import RoundRecord, Tally

Value = float | int | Decimal
ATTEMPTS = {
    Tally.DELIVERIES_TAKEN: "taken",
    Tally.DELIVERIES_FAILED: "failed",
    Tally.DELIVERIES_EXHAUSTED: "exhausted",
}


def families(services: Services, instance: Instance | None) -> Iterator[Metric]:
    """``instance`` None: the database does not answer, and its numbers are left out rather than old."""
    yield from services.requests.registry.collect()
    yield from _of_process(services)
    yield _gauge("rgrid_database_up", "Whether the database answered in time.", int(instance is not None))
    if instance is None:
        return
    yield from _of_queue(instance.backlog)
    yield from _of_callbacks(instance)
    yield from _of_nodes(instance.census)
    yield from _of_cost(instance.census, services.settings)
    if services.settings.provider != "local":
        yield from _of_fleet(instance.census)
    yield _counter("rgrid_cloud_calls", "Calls of the cloud's API.", instance.tallies[Tally.CLOUD_CALLS])
    yield from _of_rounds(instance.rounds)


def _of_process(services: Services) -> Iterator[Metric]:
    yield _by("rgrid_build_info", "The release that serves, as a label.", "version", {version("rgrid"): 1})
    yield _gauge("rgrid_claims_waiting", "Nodes that wait at this process for work.", services.dispatcher.nodes_waiting)
    pools = {"main": services.pool, "hot": services.hot_pool}
    yield _by(
        "rgrid_pool_connections", "Connections to the database that are open.", "pool",
        {name: pool.get_size() for name, pool in pools.items()},
    )  # fmt: skip
    yield _by(
        "rgrid_pool_connections_in_use", "Of them, those that are in use.", "pool",
        {name: _in_use(pool) for name, pool in pools.items()},
    )  # fmt: skip
    yield _by(
        "rgrid_pool_connections_max", "As many as may be opened.", "pool",
        {name: pool.get_max_size() for name, pool in pools.items()},
    )  # fmt: skip


def _in_use(pool: Pool) -> int:
    return int(pool.get_size() - pool.get_idle_size())


def _of_queue(backlog: Backlog) -> Iterator[Metric]:
    yield _by(
        "rgrid_jobs", "Jobs that are not finished; above 10,000 of a state an estimate.", "state", backlog.jobs
    )
    yield _by(
        "rgrid_queue_oldest_age_seconds", "For how long the oldest of those has been ready that are next to start.",
        "lane", backlog.oldest_s,
    )  # fmt: skip
    yield _by("rgrid_jobs_ended_last_minute", "Jobs that ended in the last minute.", "status", backlog.ended)
    yield _gauge("rgrid_leases_overdue", "Leases that ran out and were not taken back yet.", backlog.overdue)


def _of_callbacks(instance: Instance) -> Iterator[Metric]:
    yield _by(
        "rgrid_deliveries", "Deliveries of callbacks that are not at their end, up to 10,000: due now (at most 100 of "
        "one address), or waiting for their next attempt.", "state", instance.backlog.deliveries,
    )  # fmt: skip
    yield _by(
        "rgrid_delivery_attempts", "Attempts at deliveries, by what came of them; exhausted: it was the last one.",
        "result", {name: instance.tallies[tally] for tally, name in ATTEMPTS.items()}, CounterMetricFamily,
    )  # fmt: skip
    yield _gauge(
        "rgrid_callbacks_disabled", "Callbacks that were disabled because they failed.", instance.disabled_callbacks
    )
    yield _counter("rgrid_leases_lost", "Leases that ran out.", instance.tallies[Tally.LEASES_LOST])


def _of_nodes(census: Census) -> Iterator[Metric]:
    nodes = GaugeMetricFamily("rgrid_nodes", "Nodes, by where they come from.", labels=["provider", "state"])
    for (provider, state), number in sorted(census.nodes.items()):
        nodes.add_metric([provider, state], number)
    yield nodes
    yield _by("rgrid_servers", "Rented servers that are not gone.", "state", census.servers)
    yield _gauge("rgrid_servers_listed", "Servers in the cloud's last list that are this deployment's.", census.listed)
    known = census.listed - census.unknown
    yield _gauge("rgrid_servers_known", "Of those, the ones that the database has, too.", known)
    yield _gauge("rgrid_servers_unknown", "Listed less known.", census.unknown)


def _of_cost(census: Census, settings: Settings) -> Iterator[Metric]:
    """A limit that was not set has no series."""
    yield _gauge("rgrid_cost_eur_per_hour", "EUR net that counts against the hourly limit.", census.hourly)
    yield _gauge("rgrid_cost_eur_month", "EUR net of this calendar month (UTC), with what is reserved.", census.month)
    limits = {
        "rgrid_cost_eur_per_hour_max": ("RGRID_MAX_EUR_HOUR.", settings.max_eur_hour),
        "rgrid_cost_eur_month_max": ("RGRID_MAX_EUR_MONTH.", settings.max_eur_month),
    }
    for name, (about, limit) in limits.items():
        if limit is not None:
            yield _gauge(name, about, limit)
    yield _by(
        "rgrid_budgets_over", "Projects that used so many per cent of this month's budget, or more.", "percent",
        {str(percent): number for percent, number in census.over.items()},
    )  # fmt: skip
    if settings.provider != "local":
        yield _gauge("rgrid_servers_max", "RGRID_MAX_NODES.", settings.max_nodes)


def _of_fleet(census: Census) -> Iterator[Metric]:
    yield _gauge("rgrid_purchases_frozen", "Whether nothing is bought for now, as the cloud refused.", census.frozen)
    if census.account_limit is not None:
        yield _gauge(
            "rgrid_servers_account_limit", "As many as the account may have, as learned.", census.account_limit
        )
    yield _by(
        "rgrid_fleet_alarm", "Whether the operator must look at it.", "kind",
        dict.fromkeys(fleet.ALARMS, 0) | dict.fromkeys(census.alarms, 1),
    )  # fmt: skip
    yield from _moment(
        "rgrid_fleet_reconciled_timestamp_seconds", "When the cloud's list was last compared with the database.",
        census.reconciled_at,
    )  # fmt: skip
    yield from _moment(
        "rgrid_fleet_round_timestamp_seconds", "When servers were last looked after.", census.round_at
    )


def _of_rounds(rounds: Iterable[RoundRecord]) -> Iterator[Metric]:
    rounds = list(rounds)
    yield _by(
        "rgrid_round_last_success_timestamp_seconds", "When a round of the schedulers last went well.", "round",
        {each.name: each.succeeded_at.timestamp() for each in rounds if each.succeeded_at is not None},
    )  # fmt: skip
    yield _by(
        "rgrid_round_interval_seconds", "How long a round waits when it has nothing more to do.", "round",
        {each.name: each.interval_s for each in rounds},
    )  # fmt: skip
    for name, about, values in (
        ("rgrid_round_runs", "How often it was run.", {each.name: each.runs for each in rounds}),
        ("rgrid_round_failures", "How often it failed.", {each.name: each.failures for each in rounds}),
        ("rgrid_round_duration_seconds", "How long its runs took.", {each.name: each.seconds for each in rounds}),
    ):
        yield _by(name, about, "round", values, CounterMetricFamily)
    yield from _moment(
        "rgrid_schedulers_told_timestamp_seconds", "When a scheduler last said what it had done.",
        max((each.told_at for each in rounds), default=None),
    )  # fmt: skip


def _gauge(name: str, about: str, value: Value) -> Metric:
    return GaugeMetricFamily(name, about, value=float(value))


def _counter(name: str, about: str, value: Value) -> Metric:
    return CounterMetricFamily(name, about, value=float(value))


def _moment(name: str, about: str, at: datetime | None) -> Iterator[Metric]:
    if at is not None:
        yield _gauge(name, about, at.timestamp())


def _by(
    name: str,
    about: str,
    label: str,
    values: Mapping[str, Value],
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] = GaugeMetricFamily,
) -> Metric:
    family = kind(name, about, labels=[label])
    for of, value in values.items():
        family.add_metric([of], float(value))
    return family
