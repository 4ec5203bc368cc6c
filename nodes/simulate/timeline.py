"""A picture of a run as SVG: slots that are paid for, in use and waited for, over the lives of all nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape

from nodes.simulate.bound import HOUR, Span
from nodes.simulate.engine import Machine, Run
from nodes.simulate.report import Report, billed_hours, busy_spans

LEFT, RIGHT, WIDTH = 64, 20, 1240
MOST_BARS = 20_000
"""Of more jobs than this, only when their nodes were busy is drawn."""
PLOT = WIDTH - LEFT - RIGHT
TOP, CURVES, GAP = 78, 190, 44
PAID, USED, WAITING, BOOT, UNUSED, INK, GRID = (
    "#cfe3f7", "#2f6fb3", "#d1495b", "#f2c14e", "#f3e3e3", "#222", "#ddd",
)  # fmt: skip


def draw(run: Run, report: Report, title: str) -> str:
    """The whole picture. A long run is drawn in columns of a pixel each."""
    end = max([HOUR, *(_paid_until(machine) for machine in run.machines)])
    lanes = _lanes(run.machines)
    row = max(2.0, min(14.0, 560 / max(len(lanes), 1)))
    rows_at = TOP + CURVES + GAP
    height = rows_at + row * len(lanes) + 40
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}"><rect width="100%" height="100%" fill="white"/>',
        *_head(report, title),
        *_axis(end, height - 26),
        *_curves(run, end),
        f'<text x="{LEFT}" y="{rows_at - 10}">nodes, each from its purchase to the end of its last paid hour</text>',
    ]
    brief = len(run.starts) > MOST_BARS
    for lane, machines in enumerate(lanes):
        for machine in machines:
            drawn += _bars(machine, rows_at + lane * row, row, end, brief=brief)
    return "\n".join([*drawn, "</svg>", ""])


def _head(report: Report, title: str) -> list[str]:
    cost = f"{report.eur:.4f} EUR, {report.hours} node-hours; bound {report.bound:.4f} EUR; ratio {report.ratio:.3f}"
    waits = f"wait p50 {report.waits.p50:.0f} s, p95 {report.waits.p95:.0f} s, p99 {report.waits.p99:.0f} s"
    legend = (("paid for", PAID), ("in use", USED), ("waiting", WAITING), ("booting", BOOT), ("paid, deleted", UNUSED))
    drawn = [
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(f"{report.policy}: {title}")}</text>',
        f'<text x="{LEFT}" y="42">{escape(cost)} · {escape(waits)}</text>',
    ]
    for at, (name, colour) in enumerate(legend):
        x = LEFT + at * 110
        drawn.append(f'<rect x="{x}" y="53" width="12" height="12" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 17}" y="63">{name}</text>')
    return drawn


def _axis(end: float, bottom: float) -> list[str]:
    """A line each so many hours that there are at most a dozen and a half."""
    step = next(hours for hours in (1, 2, 4, 6, 12, 24, 48, 168, math.ceil(end / HOUR)) if end / HOUR / hours <= 18)
    drawn = []
    for hour in range(0, math.floor(end / HOUR) + 1, step):
        x = _x(hour * HOUR, end)
        drawn.append(f'<path d="M{x:.1f} {TOP}V{bottom:.0f}" stroke="{GRID}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="middle">{hour} h</text>')
    return drawn


def _curves(run: Run, end: float) -> list[str]:
    paid = _columns(((m.node.created_at, _paid_until(m), m.node.offer.slots) for m in run.machines), end)
    used = _columns((span for machine in run.machines for span in machine.busy), end)
    waiting = _columns(((job.at, at, job.slots) for job, at in run.starts if at > job.at), end)
    top = max(*paid, *used, *waiting, 1.0)
    base = TOP + CURVES

    def y(value: float) -> float:
        return base - value / top * (CURVES - 6)

    def area(values: list[float], colour: str) -> str:
        return f'<path d="M{LEFT} {base}{_steps(values, y)}V{base}Z" fill="{colour}"/>'

    ticks = [
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in sorted({0, math.floor(top / 2), math.floor(top)})
    ]
    line = f'<path d="M{LEFT} {base}{_steps(waiting, y)}" fill="none" stroke="{WAITING}" stroke-width="1.2"/>'
    middle = TOP + CURVES / 2
    label = f'<text x="14" y="{middle}" transform="rotate(-90 14 {middle})" text-anchor="middle">slots</text>'
    return [area(paid, PAID), area(used, USED), line, label, *ticks]


def _columns(spans: Iterable[Span], end: float) -> list[float]:
    """The mean of what ``spans`` add up to, in each column of the picture."""
    columns = [0.0] * PLOT
    width = end / PLOT
    for start, until, amount in spans:
        first, last = int(start / width), min(int(until / width), PLOT - 1)
        for at in range(first, last + 1):
            columns[at] += amount * (min(until, (at + 1) * width) - max(start, at * width)) / width
    return columns


def _steps(values: list[float], y: Callable[[float], float]) -> str:
    drawn, before = [], None
    for at, value in enumerate(values):
        if value != before:
            drawn.append(f"H{LEFT + at}V{y(value):.1f}")
        before = value
    return "".join([*drawn, f"H{LEFT + PLOT}"])


def _bars(machine: Machine, top: float, row: float, end: float, *, brief: bool) -> list[str]:
    node = machine.node
    high = row * 0.8

    def bar(start: float, until: float, colour: str, opacity: float = 1.0) -> str:
        x, wide = _x(start, end), max(_x(until, end) - _x(start, end), 0.3)
        faint = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        return f'<rect x="{x:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{colour}"{faint}/>'

    drawn = [bar(node.created_at, machine.gone, PAID), bar(machine.gone, _paid_until(machine), UNUSED)]
    drawn.append(bar(node.created_at, machine.gone if machine.ready is None else machine.ready, BOOT))
    busy = busy_spans(machine, boot=False) if brief else machine.busy
    drawn += [bar(start, until, USED, slots / node.offer.slots) for start, until, slots in busy]
    for hour in range(1, billed_hours(machine)):
        x = _x(node.created_at + hour * HOUR, end)
        drawn.append(f'<path d="M{x:.1f} {top:.1f}v{high:.1f}" stroke="white"/>')
    return drawn


def _lanes(machines: Iterable[Machine]) -> list[list[Machine]]:
    """The machines, as many below one another as are paid for at a time."""
    lanes: list[list[Machine]] = []
    for machine in sorted(machines, key=lambda machine: machine.node.created_at):
        free = next((lane for lane in lanes if _paid_until(lane[-1]) <= machine.node.created_at), None)
        if free is None:
            lanes.append([machine])
        else:
            free.append(machine)
    return lanes


def _paid_until(machine: Machine) -> float:
    return machine.node.created_at + billed_hours(machine) * HOUR


def _x(at: float, end: float) -> float:
    return LEFT + at / end * PLOT
