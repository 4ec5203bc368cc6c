"""What an invoke answers that makes no job: a quote, a dry run."""

from __future__ import annotations

from typing import Any, Literal

from gateway.api.models import View


class Spread(View):
    p50: int
    p95: int


class CostSpread(View):
    currency: str
    p50: str
    p95: str


class QuoteView(View):
    """What the last ``jobs`` of the function took and cost; null when there are none. ``running_cost`` is the part of
    the cost that an ``RGrid-Max-Cost`` limits: without time of nodes that nothing filled."""

    function: str
    version: int
    jobs: int
    run_ms: Spread | None
    queue_ms: Spread | None
    cost: CostSpread | None
    running_cost: CostSpread | None


class DryRun(View):
    valid: Literal[True]
    function: str | None
    version: int
    params: dict[str, Any]
