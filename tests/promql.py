"""Expressions of alerts, worked out over two scrapes of /metrics: enough of PromQL for the alerts that there are."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "==": operator.eq,
}  # fmt: skip
COMPUTE: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": lambda a, b: a / b if b else float("nan"),
}  # fmt: skip
TOGETHER: Mapping[str, Callable[[Iterable[float]], float]] = {"max": max, "sum": sum}
NOBODY: Labels = frozenset()


@dataclass(frozen=True, slots=True)
class Scrape:
    at_s: float
    series: Sequence[tuple[str, Labels, float]]

    @classmethod
    def of(cls, text: str, at_s: float, **labels: str) -> Scrape:
        return cls(
            at_s,
            [
                (sample.name, frozenset((sample.labels | labels).items()), sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ],
        )

    def of_name(self, name: str, wanted: Sequence[tuple[str, str, str]]) -> Vector:
        def suits(labels: Labels, name: str, how: str, value: str) -> bool:
            found = dict(labels).get(name, "")
            return found == value if how == "MatchOp.Equal" else re.fullmatch(value, found) is not None

        return {
            labels: value
            for each, labels, value in self.series
            if each == name and all(suits(labels, *one) for one in wanted)
        }


def value_of(text: str, now: Scrape, before: Scrape | None = None) -> Vector | float:
    """What the expression has for values ``now``; what grew is what grew since ``before``."""
    return _value(promql_parser.parse(text), now, before or now)


def _value(of: Any, now: Scrape, before: Scrape) -> Vector | float:
    match type(of).__name__:
        case "NumberLiteral":
            return float(of.val)
        case "ParenExpr":
            return _value(of.expr, now, before)
        case "VectorSelector":
            return now.of_name(of.name, _wanted(of))
        case "AggregateExpr":
            return _together(of, _vector(_value(of.expr, now, before)))
        case "Call":
            return _call(of, now, before)
        case "BinaryExpr":
            return _both(str(of.op), _value(of.lhs, now, before), _value(of.rhs, now, before))
    raise NotImplementedError(type(of).__name__)


def _wanted(selector: Any) -> list[tuple[str, str, str]]:
    return [(each.name, str(each.op), each.value) for each in selector.matchers.matchers]


def _vector(value: Vector | float) -> Vector:
    assert isinstance(value, dict)
    return value


def _together(of: Any, values: Vector) -> Vector:
    by = set() if of.modifier is None else set(of.modifier.labels)
    groups: dict[Labels, list[float]] = {}
    for labels, value in values.items():
        groups.setdefault(frozenset(each for each in labels if each[0] in by), []).append(value)
    return {labels: TOGETHER[str(of.op)](found) for labels, found in groups.items()}


def _call(of: Any, now: Scrape, before: Scrape) -> Vector | float:
    match of.func.name:
        case "time":
            return now.at_s
        case "absent":
            return {} if _value(of.args[0], now, before) else {NOBODY: 1.0}
        case "increase" | "delta" | "rate":
            selector = of.args[0].vector_selector
            was = before.of_name(selector.name, _wanted(selector))
            grew = {
                labels: value - was[labels]
                for labels, value in now.of_name(selector.name, _wanted(selector)).items()
                if labels in was
            }
            return grew if of.func.name != "rate" else {each: by / 300 for each, by in grew.items()}
    raise NotImplementedError(of.func.name)


def _both(op: str, left: Vector | float, right: Vector | float) -> Vector | float:
    if op in ("and", "or"):
        one, other = _vector(left), _vector(right)
        return {labels: one[labels] for labels in one if labels in other} if op == "and" else other | one
    if isinstance(left, float) and isinstance(right, float):
        return COMPUTE[op](left, right)
    pairs = {
        labels: (
            left if isinstance(left, float) else left[labels],
            right if isinstance(right, float) else right[labels],
        )
        for labels in (left if isinstance(left, dict) else _vector(right))
        if isinstance(left, float) or isinstance(right, float) or labels in right
    }
    if op in COMPARE:
        return {labels: a for labels, (a, b) in pairs.items() if COMPARE[op](a, b)}
    return {labels: COMPUTE[op](a, b) for labels, (a, b) in pairs.items()}
