"""The one list of routes: the router and the OpenAPI document are both made from it."""

from __future__ import annotations

from gateway.api import health
from gateway.routes import Route

ROUTES: tuple[Route, ...] = (*health.ROUTES,)
