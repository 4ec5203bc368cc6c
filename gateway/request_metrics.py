"""What this process has answered, and how long that took: counted where every request passes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
NO_ROUTE = "none"
"""Label of what led to no route: path and method are the client's own text there."""

# When a series began is asked for by nobody, and would be as many series again.
disable_created_metrics()  # type: ignore[no-untyped-call]


class RequestMetrics:
    """In a registry of its own: the library's global one is everybody's. Labels are rows of the route table."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "rgrid_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "rgrid_http_request_duration_seconds",
            "From a request's head to the end of its answer; long polls and waits are in it.",
            ["method", "route"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        # Looking a child up by its labels costs more than counting.
        children = self._children.get((method, route, status))
        if children is None:
            children = self._children[method, route, status] = (
                self._requests.labels(method, route, str(status)),
                self._seconds.labels(method, route),
            )
        children[0].inc()
        children[1].observe(seconds)
