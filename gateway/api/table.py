"""The one list of routes: the router and the OpenAPI document are both made from it."""

from __future__ import annotations

from gateway.api import artifacts, callbacks, functions, health, invoke, jobs, leases, logs, nodes, reports
from gateway.routes import Route

ROUTES: tuple[Route, ...] = (
    *health.ROUTES,
    *functions.ROUTES,
    *invoke.ROUTES,
    *jobs.ROUTES,
    *logs.ROUTES,
    *artifacts.ROUTES,
    *callbacks.ROUTES,
    *nodes.ROUTES,
    *leases.ROUTES,
    *reports.ROUTES,
)
