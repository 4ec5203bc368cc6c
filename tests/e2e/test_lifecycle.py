"""What a user does with jobs while they live: follow, cancel, retry, delay, repeat a request."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.e2e.instance import Instance
from tests.e2e.manifests import shell
from tests.e2e.receiver import Receiver
from tests.nodes.agent.waiting import until

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
async def sh(instance: Instance, busybox: str) -> str:
    """The name of a function that runs a script."""
    await instance.apply(shell("sh", busybox))
    return "sh"


async def server_sent(response: httpx.Response) -> list[tuple[str, str, float]]:
    """(event, data, when it came) of a stream, to its end."""
    events, event, data = [], "message", []
    async for line in response.aiter_lines():
        if line == "":
            if data:
                events.append((event, "\n".join(data), time.monotonic()))
            event, data = "message", []
        elif line.startswith("event:"):
            event = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
    return events


async def test_logs_are_streamed_while_the_job_runs_and_the_stream_ends_with_it(instance: Instance, sh: str) -> None:
    job = await instance.invoke(sh, {"script": "echo first; sleep 2; echo second >&2"})
    async with instance.api.stream(
        "GET",
        f"/v1/jobs/{job['id']}/logs",
        params={"follow": "true"},
        headers={"Accept": "text/event-stream"},
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = await server_sent(response)
    kinds = [kind for kind, _, _ in events]
    assert kinds[-1] == "end" and set(kinds[:-1]) == {"log"}
    text = "".join(data for kind, data, _ in events if kind == "log")
    assert text.index("first") < text.index("second")
    first = next(when for _, data, when in events if "first" in data)
    second = next(when for _, data, when in events if "second" in data)
    assert second - first > 1, "the first line came with the second"
    assert (await instance.api.get(f"/v1/jobs/{job['id']}/logs")).text == "first\nsecond\n"


async def test_a_running_job_is_cancelled_within_five_seconds(instance: Instance, sh: str) -> None:
    job = await instance.invoke(sh, {"script": "exec sleep 60"})
    await instance.reaches(job["id"], "started")
    asked_s = time.monotonic()
    answer = await instance.api.post(f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code in (200, 202), answer.text
    ended = await instance.finished(job["id"], 10)
    assert time.monotonic() - asked_s < 5
    assert (ended["status"], ended["error"], ended["outputs"]) == ("cancelled", None, [])


async def test_a_delayed_job_waits_and_can_be_cancelled_meanwhile(instance: Instance, sh: str) -> None:
    soon = await instance.invoke(sh, {"script": "true"}, RGrid_Delay="2s")
    never = await instance.invoke(sh, {"script": "true"}, RGrid_Delay="1h")
    assert (soon["status"], never["status"]) == ("scheduled", "scheduled")
    await instance.api.post(f"/v1/jobs/{never['id']}/cancel")
    assert (await instance.job(never["id"]))["status"] == "cancelled"
    ended = await instance.finished(soon["id"])
    assert ended["status"] == "succeeded"
    waited = datetime.fromisoformat(ended["started_at"]) - datetime.fromisoformat(ended["created_at"])
    assert waited.total_seconds() >= 2


async def test_a_failing_job_gets_its_attempts_and_each_leaves_its_log(instance: Instance, busybox: str) -> None:
    retry = {"attempts": 3, "on": ["error"], "backoff": {"initial": "1s", "factor": 1, "max": "1s"}}
    await instance.apply(shell("fickle", busybox, retry=retry))
    script = 'echo "attempt $RGRID_ATTEMPT"; [ "$RGRID_ATTEMPT" = 3 ]'
    job = await instance.invoke("fickle", {"script": script})
    ended = await instance.finished(job["id"])
    assert (ended["status"], ended["attempt"], ended["max_attempts"]) == ("succeeded", 3, 3)
    logs = [
        (await instance.api.get(f"/v1/jobs/{job['id']}/logs", params={"attempt": number})).text for number in (1, 2, 3)
    ]
    assert logs == ["attempt 1\n", "attempt 2\n", "attempt 3\n"]
    kinds = [event["type"] for event in await instance.events(job["id"])]
    assert kinds.count("attempt_failed") == kinds.count("retry_scheduled") == 2
    assert (kinds[0], kinds[-1]) == ("created", "succeeded")


async def test_a_finished_job_can_be_run_again_as_a_new_one(instance: Instance, sh: str) -> None:
    first = await instance.invoke(sh, {"script": "exit 4"}, Prefer="wait=30")
    again = await instance.api.post(f"/v1/jobs/{first['id']}/retry")
    assert again.status_code == 202, again.text
    ended = await instance.finished(again.json()["id"])
    assert ended["id"] != first["id"]
    assert (ended["retried_from"], ended["exit_code"]) == (first["id"], 4)


async def test_what_the_job_leaves_in_result_json_is_its_result(instance: Instance, sh: str) -> None:
    script = 'echo "{\\"seen\\": $(cat /in/params.json)}" > /out/result.json'
    job = await instance.invoke(sh, {"script": script}, Prefer="wait=30")
    assert (job["status"], job["result"]) == ("succeeded", {"seen": {"script": script}})


async def test_many_requests_with_one_idempotency_key_are_one_job(instance: Instance, sh: str) -> None:
    body = {"script": "true"}
    answers = await asyncio.gather(
        *(
            instance.api.post(f"/v1/functions/{sh}/invoke", json=body, headers={"Idempotency-Key": "once"})
            for _ in range(20)
        )
    )
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    replayed = [answer for answer in answers if answer.headers.get("idempotent-replayed") == "true"]
    assert len(replayed) == 19
    other = await instance.api.post(
        f"/v1/functions/{sh}/invoke", json={"script": "false"}, headers={"Idempotency-Key": "once"}
    )
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_callback_that_is_refused_comes_again_under_the_same_id(
    instance: Instance, sh: str, receiver: Receiver
) -> None:
    receiver.answers += [500]
    job = await instance.invoke(sh, {"script": "exit 1"}, X_Callback_Url=receiver.callback_url)
    await until(lambda: receiver.of(job["id"]), within_s=30)
    [callback] = receiver.of(job["id"])
    assert callback.type == "job.failed"
    listed = (await instance.api.get("/v1/deliveries", params={"job": job["id"]})).json()["data"]
    [delivery] = listed
    assert (delivery["id"], delivery["state"]) == (callback.id, "delivered")
    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 204]


async def test_outputs_by_glob_come_back_in_order_with_their_types(instance: Instance, busybox: str) -> None:
    outputs: list[dict[str, Any]] = [{"path": "/out/page-*.txt", "name": "pages", "contentType": "text/plain"}]
    await instance.apply(shell("pages", busybox, outputs=outputs))
    script = "for i in 3 1 2; do echo page $i > /out/page-$i.txt; done; echo no > /out/other"
    job = await instance.invoke("pages", {"script": script}, Prefer="wait=30")
    assert [output["path"] for output in job["outputs"]] == [f"/out/page-{i}.txt" for i in (1, 2, 3)]
    assert {output["content_type"] for output in job["outputs"]} == {"text/plain"}
