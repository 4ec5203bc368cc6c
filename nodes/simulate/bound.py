"""The least that a demand can cost, known from its end: hours bought as if jobs could move between nodes.

Start an hour only at the instant at which the demand exceeds the hours that are under way, let it run to its end, and
start another one then only if the demand still needs it. That covers any demand with the fewest hours, since an hour of
any other cover can be shifted later, to the first instant at which it is needed, without uncovering anything.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

HOUR = 3600.0
Span = tuple[float, float, int]
"""From, until, and how much of something is in use in between."""


def hours(spans: Iterable[Span], unit: int = 1) -> int:
    """The fewest hours of ``unit`` each that cover what ``spans`` need together. O(n log n)."""
    changes: dict[float, int] = {}
    for start, end, amount in spans:
        changes[start] = changes.get(start, 0) + amount
        changes[end] = changes.get(end, 0) - amount
    bought, used, needed = 0, 0, 0
    ends: deque[float] = deque()
    for at, change in sorted(changes.items()):
        # Hours that ran out since the last change go on only as far as the demand still needs them.
        while ends and ends[0] <= at:
            end = ends.popleft()
            if end < at and len(ends) < needed:
                ends.append(end + HOUR)
                bought += 1
        used += change
        needed = math.ceil(used / unit)
        for _ in range(needed - len(ends)):
            ends.append(at + HOUR)
            bought += 1
    return bought
