"""The one list of routes: the router and the OpenAPI document are both made from it."""

from __future__ import annotations

from gateway.api import (
    artifacts,
    batches,
    bulk,
    callback_keys,
    callbacks,
    deliveries,
    files,
    functions,
    health,
    hooks,
    invoke,
    jobs,
    leases,
    logs,
    nodes,
    oneoff,
    reports,
    schedules,
    secrets,
    specs,
    uploads,
    webhooks,
)
from gateway.routes import Route

ROUTES: tuple[Route, ...] = (
    *health.ROUTES,
    *functions.ROUTES,
    *invoke.ROUTES,
    *batches.ROUTES,
    *bulk.ROUTES,
    *oneoff.ROUTES,
    *jobs.ROUTES,
    *specs.ROUTES,
    *logs.ROUTES,
    *artifacts.ROUTES,
    *uploads.ROUTES,
    *files.ROUTES,
    *hooks.ROUTES,
    *webhooks.ROUTES,
    *callbacks.ROUTES,
    *callback_keys.ROUTES,
    *deliveries.ROUTES,
    *schedules.ROUTES,
    *secrets.ROUTES,
    *nodes.ROUTES,
    *leases.ROUTES,
    *reports.ROUTES,
)
