"""What a check against a JSON Schema may cost, as a number that is known before the check.

``checks_per_value`` bounds how many subschemas look at one value of the params, wherever it stands: the checks of
whole params are at most that times their values. It grows without end where a schema doubles at each level, as a
recursive ``anyOf`` of two like branches does, and such a schema is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from functions.documents import DEPTH
from functions.schema_outline import Outline, Subschema

MOST_CHECKS_PER_VALUE = 500


def checks_per_value(outline: Outline) -> int:
    return _per_value(outline, _own_checks, MOST_CHECKS_PER_VALUE)


def patterns_per_value(outline: Outline) -> int:
    """How many regular expressions may read one text of the params: a value or a key."""
    return _per_value(outline, _own_patterns, MOST_CHECKS_PER_VALUE)


def _own_checks(sub: Subschema) -> int:
    keys = sub.keys
    entries = sum(len(keys[key]) for key in ("properties", "required", "enum", "dependentRequired") if key in keys)
    # What is not evaluated is found by evaluating once more.
    twice = 2 if "unevaluatedProperties" in keys or "unevaluatedItems" in keys else 1
    return twice * (1 + entries // 4)


def _own_patterns(sub: Subschema) -> int:
    return int("pattern" in sub.keys) + int("format" in sub.keys) + len(sub.patterned)


def _per_value(outline: Outline, own: Callable[[Subschema], int], most: int) -> int:
    """The bound, or something above ``most``.

    For a subschema s and a value v of height h, checks(s, v) <= F(s, h) * values(v), where F is the larger of
    - the checks of v itself: own(s) and those of all subschemas for the same value, and
    - the sum of F(t, h - 1) over all t that may look at one child of v.
    """
    here: dict[Subschema, int] = {}
    for sub in outline.inside_out:
        here[sub] = min(own(sub) + sum(here[inner] for inner in sub.here), most + 1)
    cost = dict(here)
    # Params are no deeper than documents are; most schemas have the same F from some height on.
    for _ in range(DEPTH):
        children: dict[Subschema, int] = {}
        for sub in outline.inside_out:
            inside = _largest(cost[t] for t in sub.named.values()) + _largest(cost[t] for t in sub.positions)
            inside += sum(cost[t] for t in sub.patterned) + sum(cost[t] for t in sub.each.values())
            children[sub] = min(inside + sum(children[inner] for inner in sub.here), most + 1)
        grown = {sub: max(here[sub], children[sub]) for sub in outline.inside_out}
        if grown == cost or grown[outline.root] > most:
            return grown[outline.root]
        cost = grown
    return cost[outline.root]


def _largest(costs: Iterable[int]) -> int:
    return max(costs, default=0)
