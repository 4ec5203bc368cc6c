"""``rgrid simulate``: what a load would cost under the very policy that buys nodes, and under those of others."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import duration
from gateway.cli.output import note, out_json, stderr_console, table

if TYPE_CHECKING:
    from nodes.policy.spare_hours import SpareHours
    from nodes.simulate.clouds import Cloud
    from nodes.simulate.engine import Run
    from nodes.simulate.loads import Job
    from nodes.simulate.report import Report, Waits
    from nodes.simulate.traces import Trace

ALL = "rgrid,keep-hour,idle-10m,when-idle"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Operate")(simulate)


def simulate(
    *,
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV of jobs: arrival, duration, and maybe class, slots, memory, account, lane, deadline."
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Instead of a trace: poisson:60/h,4m, burst:240/h,3m,10m/1h, diurnal:5-200/h,6m or tail:60/h,4m.",
        ),
    ] = None,
    hours: Annotated[int, typer.Option(min=1, max=8760, help="For how long jobs of --load come.")] = 48,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of all chance: the same seed, the same figures.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="So many seeds in a row; tables show the means.")] = 1,
    cloud: Annotated[
        str, typer.Option(help="even: boots take a minute, nothing fails. rough: stock-outs, slow boots, errors.")
    ] = "even",
    types: Annotated[str, typer.Option(metavar="LIST", help="Server types, in the order of your wish.")] = "cx23",
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE=EUR", help="An hour's price, IPv4 included, instead of the list's. May be repeated."
        ),
    ] = None,
    paid: Annotated[float, typer.Option(min=0, max=1, help="The part of the jobs that is in the paid lane.")] = 0.0,
    deadline: Annotated[
        timedelta,
        typer.Option(
            parser=duration, metavar="DURATION", help="Within which paid jobs must start, unless a trace says."
        ),
    ] = "6h",  # type: ignore[assignment]
    max_nodes: Annotated[int, typer.Option(min=1, max=100_000, help="The most servers at a time.")] = 100,
    spares: Annotated[
        str | None,
        typer.Option(
            metavar="HOURS",
            help="Keep slots free for jobs still to come: always, or for instance 'mon-fri 08:00-18:00 Europe/Berlin'.",
        ),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(metavar="LIST", help=f"Which to compare: {ALL}; with --spares also no-spares.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the first policy's first run: demand, nodes, paid hours.")
    ] = None,
) -> None:
    """Play a load against a made-up cloud: what it costs, the least it could cost, how long jobs wait.

    Nothing is bought, and no gateway is asked: prices are those of a list (see --price).
    """
    from nodes.policy.state import Caps, Rules
    from nodes.simulate.baselines import POLICIES
    from nodes.simulate.engine import play
    from nodes.simulate.report import report

    if (trace is None) == (load is None):
        raise typer.BadParameter("give a trace or --load, one of them")
    wanted = _spare_hours(spares or "")
    if policies is None:
        policies = f"rgrid,no-spares,{ALL}" if spares else ALL
    names = _known("--policies", policies, POLICIES)
    played = _cloud(cloud, types, price or ())
    if svg is not None and (svg.is_dir() or not svg.absolute().parent.is_dir()):
        raise Failed(f"cannot write {svg}: it is a folder, or its folder is not there")  # not after minutes of playing
    read = None if trace is None else _trace(trace, deadline)
    loads = [
        _jobs(read, load, hours=hours, seed=each, paid=paid, deadline=deadline) for each in range(seed, seed + seeds)
    ]
    reports: dict[str, list[Report]] = {name: [] for name in names}
    drawn: tuple[Run, Report] | None = None
    with _bar(len(names) * sum(len(jobs) for jobs, _ in loads)) as advance:
        for at, (jobs, begins) in enumerate(loads):
            for name in names:
                run = play(
                    jobs,
                    played,
                    POLICIES[name](),
                    caps=Caps(nodes=max_nodes),
                    rules=Rules(spares=replace(wanted, zero=begins)),
                    seed=seed + at,
                    progress=advance,
                )
                reports[name].append(report(run, played.offers))
                drawn = drawn or (run, reports[name][0])
    said = f"{load or (trace and trace.name)}, {types}, {cloud}"
    if svg is not None and drawn is not None:
        _draw(svg, *drawn, title=said)
    if as_json:
        runs = [
            {"seed": seed + at, **_plain(asdict(each))} for all_ in reports.values() for at, each in enumerate(all_)
        ]
        out_json({"load": load, "trace": trace and str(trace), "cloud": cloud, "types": types, "runs": runs})
    else:
        _show(reports, said)


def _known(option: str, given: str, known: Mapping[str, Any]) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise typer.BadParameter(f"{option} has {', '.join(wrong) or 'nothing'}; there are {', '.join(known)}")
    return list(dict.fromkeys(names))


def _spare_hours(spares: str) -> SpareHours:
    from nodes.policy.spare_hours import parse

    try:
        return parse(spares)
    except ValueError as error:
        raise typer.BadParameter(f"--spares: {error}") from None


def _cloud(name: str, types: str, prices: Sequence[str]) -> Cloud:
    from nodes.simulate.clouds import CLOUDS, PRICES, offer

    (name,) = _known("--cloud", name, CLOUDS)
    wanted = _known("--types", types, PRICES)
    hourly: dict[str, Decimal] = {}
    for each in prices:
        type, _, eur = each.partition("=")
        if type not in PRICES or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", eur) or not float(eur):
            raise typer.BadParameter(f"--price {each!r}: write for instance cx23=0.0096")
        if type not in wanted:
            raise typer.BadParameter(f"--price {each!r}: {type} is not among --types")
        hourly[type] = Decimal(eur)
    return CLOUDS[name]([offer(type, hourly=hourly.get(type)) for type in wanted])


def _trace(path: Path, deadline: timedelta) -> Trace:
    from nodes.simulate import traces

    read = traces.read(path, deadline=deadline.total_seconds())
    if read.unused:
        note(f"{path.name}: not used: {', '.join(read.unused)}; columns are {', '.join(traces.COLUMNS)}")
    return read


def _jobs(
    trace: Trace | None, load: str | None, *, hours: int, seed: int, paid: float, deadline: timedelta
) -> tuple[list[Job], float]:
    """And when the first second is, as UNIX time."""
    from functions.errors import Invalid
    from nodes.simulate import loads

    begins = loads.MONDAY
    if trace is not None:
        jobs, begins = trace.jobs, trace.begins
    else:
        assert load is not None
        try:
            jobs = loads.parse(load).jobs(hours * 3600.0, seed)
        except Invalid as error:
            raise typer.BadParameter(error.message) from None
        if not jobs:
            raise Failed(f"{load}: no job comes within {hours} h; simulate more hours")
    return (loads.in_paid_lane(jobs, paid, deadline.total_seconds(), seed) if paid else jobs), begins


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, which counts jobs that ended."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    with Progress(
        BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), console=stderr_console(), transient=True
    ) as bars:
        task = bars.add_task("jobs", total=total)
        yield lambda ended: bars.advance(task, ended)


def _draw(path: Path, run: Run, report: Report, *, title: str) -> None:
    from nodes.simulate.timeline import draw

    try:
        path.write_text(draw(run, report, title), encoding="utf-8")
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror}") from None


def _show(reports: dict[str, list[Report]], said: str) -> None:
    some = next(iter(reports.values()))
    jobs, bound = _mean([each.jobs for each in some]), _mean([each.bound for each in some])
    seeds = "" if len(some) == 1 else f", means of {len(some)} seeds"
    note(f"{said}: {jobs:,.0f} jobs, bound {bound:.4f} EUR{seeds}")
    table(
        ("POLICY", "EUR", "NODE-HOURS", "x BOUND", "WAIT P50", "P95", "P99", "NODES", "FAILED", "CALLS/H"),
        [
            (
                name,
                f"{_mean([each.eur for each in runs]):.4f}",
                f"{_mean([each.hours for each in runs]):,.0f}",
                f"{_mean([each.ratio for each in runs]):.3f}",
                *_waits([each.waits for each in runs]),
                max(each.most_servers for each in runs),
                sum(each.failed_servers for each in runs),
                f"{_mean([each.calls_an_hour for each in runs]):.0f}",
            )
            for name, runs in reports.items()
        ],
    )
    note("\nwhat was lost against the bound, in percent of it (negative: gained by letting jobs wait):")
    causes = list(some[0].losses)
    table(
        ("POLICY", *(cause.upper() for cause in causes)),
        [
            (name, *(f"{_mean([each.losses[cause] / each.bound * 100 for each in runs]):.1f}" for cause in causes))
            for name, runs in reports.items()
        ],
    )
    if {"rgrid", "no-spares"} <= reports.keys():
        _show_spares(reports["rgrid"], reports["no-spares"])
    if some[0].paid_waits.jobs:
        note("\nthe paid lane:")
        table(
            ("POLICY", "WAIT P50", "P95", "P99", "AFTER THE DEADLINE"),
            [
                (name, *_waits([each.paid_waits for each in runs]), sum(each.late for each in runs))
                for name, runs in reports.items()
            ],
        )


def _show_spares(spared: Sequence[Report], bare: Sequence[Report]) -> None:
    cost, without = (_mean([each.eur for each in runs]) for runs in (spared, bare))
    p95s = (_mean([each.waits.p95 for each in runs]) for runs in (bare, spared))
    part = f" ({(cost / without - 1) * 100:+.1f} %)" if without else ""
    note(f"\nspares: {cost - without:+.4f} EUR{part}, wait p95 {' -> '.join(f'{each:.1f} s' for each in p95s)}")


def _waits(waits: Sequence[Waits]) -> list[str]:
    return [f"{_mean([getattr(each, key) for each in waits]):.1f} s" for key in ("p50", "p95", "p99")]


def _mean(values: Sequence[float | Decimal]) -> float:
    return float(sum(values)) / len(values)


def _plain(value: Any) -> Any:
    """For JSON: money as text, as the API has it."""
    if isinstance(value, Decimal):
        return f"{value:.6f}"
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
