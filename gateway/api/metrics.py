"""/metrics: for Prometheus."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from functions.errors import Unauthenticated
from gateway.auth import bearer
from gateway.instance import Instance
from gateway.metric_families import families
from gateway.problems import Problem
from gateway.routes import Route, services
from gateway.services import Services


async def metrics(request: Request) -> Response:
    """Numbers of this process and of the instance, in Prometheus' text format: nothing of any project.

    Open, or with `RGRID_METRICS_TOKEN` as a bearer token. Without a database it says `rgrid_database_up 0` and what it
    knows itself.
    """
    opened = services(request)
    if (token := opened.settings.metrics_token) is not None:
        given = bearer(request.scope["headers"])
        if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
            raise Unauthenticated("this is not the token that RGRID_METRICS_TOKEN has")
    text = generate_latest(_Scrape(opened, await opened.instance.read()))
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@dataclass(frozen=True, slots=True)
class _Scrape(Collector):
    opened: Services
    instance: Instance | None

    def collect(self) -> Iterator[Metric]:
        return families(self.opened, self.instance)


ROUTES = (
    Route(
        "GET", "/metrics", metrics, "Numbers for Prometheus", None,
        answers={200: "text/plain", 401: Problem}, tag="health",
    ),
)  # fmt: skip
