"""What a job will take and cost, as far as the function's history tells."""

from __future__ import annotations

import httpx
import pytest

from gateway.api.models.invoking import QuoteView
from gateway.services import Services
from scheduler import quotes
from tests.gateway.making import claim, finish, make_function, make_job, make_node

ASK = "/v1/functions/thumbnail/invoke?quote=1"


async def quote(api: httpx.AsyncClient) -> QuoteView:
    answer = await api.post(ASK, json={"video": "v"})
    assert answer.status_code == 200, answer.text
    return QuoteView.model_validate_json(answer.content)


async def test_without_a_history_there_is_nothing_to_go_by(api: httpx.AsyncClient) -> None:
    await make_function(api)
    await make_job(api)
    found = await quote(api)
    assert (found.jobs, found.run_ms, found.queue_ms, found.cost) == (0, None, None, None)
    assert len((await api.get("/v1/jobs")).json()["data"]) == 1, "a quote makes no job"


async def test_it_is_the_median_and_the_95th_percentile_of_the_last_jobs_that_succeeded(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api)
    await make_function(api, "other")
    node = await make_node(services)

    async def ran(name: str, run_ms: int, **report: str) -> None:
        await make_job(api, name)
        (claimed,) = await claim(services, node)
        await finish(services, node, claimed, timeline={"started": 5, "exited": 5 + run_ms}, **report)

    for run_ms in range(100, 2100, 100):
        await ran("thumbnail", run_ms)
    await ran("other", 9000)
    await ran("thumbnail", 8000, status="failed", code="exit_nonzero", message="exit 1")
    found = await quote(api)
    assert found.run_ms is not None and found.queue_ms is not None and found.cost is not None
    assert (found.jobs, found.run_ms.p50, found.run_ms.p95) == (20, 1000, 1900)
    assert 0 <= found.queue_ms.p50 <= found.queue_ms.p95 < 5000
    assert (found.cost.currency, found.cost.p95) == ("EUR", "0.000000")
    monkeypatch.setattr(quotes, "USED", 5)
    newest = await quote(api)
    assert newest.run_ms is not None and (newest.jobs, newest.run_ms.p50) == (5, 1800)


async def test_it_is_given_for_params_that_fit_only(api: httpx.AsyncClient) -> None:
    await make_function(api)
    answer = await api.post(ASK, json={"video": 1})
    assert (answer.status_code, answer.json()["code"]) == (422, "params_invalid")
