"""/v1/functions over the real application."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import yaml

from gateway.api import functions
from gateway.api.models.functions import AppliedView, Change, ChangeList, FunctionList, FunctionView, VersionList
from gateway.api.models.jobs import JobView
from gateway.api.specs import SpecView
from gateway.services import Services
from tests.gateway.making import claim, finish, make_function, make_job, make_node, manifest

VIDEO = {"type": "object", "properties": {"video": {"type": "string"}}}
LARGE = {"job": {"image": "a", "resources": {"cpu": 64}}}


async def test_a_new_function_is_201_and_the_same_again_200(api: httpx.AsyncClient) -> None:
    first = await api.put("/v1/functions/thumbnail", json=manifest())
    again = await api.put("/v1/functions/thumbnail", json=manifest())
    assert (first.status_code, again.status_code) == (201, 200)
    applied = [AppliedView.model_validate_json(answer.content) for answer in (first, again)]
    assert [(one.version, one.changed) for one in applied] == [(1, True), (1, False)]
    assert applied[0].labels == {"team": "media"}


async def test_yaml_is_taken_as_json_is(api: httpx.AsyncClient) -> None:
    answer = await api.put(
        "/v1/functions/thumbnail",
        content=yaml.safe_dump(manifest()),
        headers={"Content-Type": "application/yaml; charset=utf-8"},
    )
    same = await api.put("/v1/functions/thumbnail", json=manifest())
    assert (answer.status_code, same.json()["changed"]) == (201, False)


async def test_the_manifest_that_is_shown_can_be_applied_again(api: httpx.AsyncClient) -> None:
    await make_function(api)
    shown = FunctionView.model_validate_json((await api.get("/v1/functions/thumbnail")).content)
    again = await api.put("/v1/functions/thumbnail", json=shown.manifest)
    assert (again.status_code, again.json()["changed"], again.json()["version"]) == (200, False, 1)


async def test_another_spec_makes_a_version_and_a_rollback_the_old_one_current(api: httpx.AsyncClient) -> None:
    await make_function(api)
    changed = await make_function(api, job={"image": "busybox:2"}, params={"type": "object"})
    assert (changed["version"], changed["changed"]) == (2, True)
    listed = VersionList.model_validate_json((await api.get("/v1/functions/thumbnail/versions")).content)
    assert [(one.version, one.image) for one in listed.data] == [(2, "busybox:2"), (1, "busybox:1")]
    answer = await api.post("/v1/functions/thumbnail/rollback", json={"version": 1})
    assert (answer.status_code, FunctionView.model_validate_json(answer.content).version) == (200, 1)
    assert (await make_job(api))["version"] == 1
    assert (await make_job(api, headers={"RGrid-Version": "2"}))["version"] == 2


async def test_lists_are_newest_first_and_go_on_with_the_cursor(api: httpx.AsyncClient) -> None:
    for number in range(5):
        await make_function(api, f"f{number}")
    names: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        query: dict[str, Any] = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = FunctionList.model_validate_json((await api.get("/v1/functions", params=query)).content)
        names += [one.name for one in page.data]
        cursor = page.next_cursor
    assert (names, cursor) == (["f4", "f3", "f2", "f1", "f0"], None)


async def test_versions_go_on_with_the_cursor(api: httpx.AsyncClient) -> None:
    for number in range(3):
        await make_function(api, job={"image": f"busybox:{number}"}, params={"type": "object"})
    first = (await api.get("/v1/functions/thumbnail/versions?limit=2")).json()
    rest = (await api.get(f"/v1/functions/thumbnail/versions?limit=2&cursor={first['next_cursor']}")).json()
    assert [one["version"] for one in first["data"] + rest["data"]] == [3, 2, 1]
    assert rest["next_cursor"] is None


async def test_a_deleted_function_ends_its_queued_jobs_and_lets_running_ones_finish(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    running = await make_job(api)
    node = await make_node(services)
    (claimed,) = await claim(services, node)
    queued, delayed = await make_job(api), await make_job(api, headers={"RGrid-Delay": "1h"})
    assert (await api.delete("/v1/functions/thumbnail")).status_code == 204
    assert (await api.delete("/v1/functions/thumbnail")).status_code == 404
    assert (await api.post("/v1/functions/thumbnail/invoke", json={"video": "v"})).status_code == 404
    for job in (queued, delayed):
        assert (await api.get(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"
    assert (await api.get(f"/v1/jobs/{running['id']}")).json()["status"] == "running"
    assert await finish(services, node, claimed) == "succeeded"
    job = JobView.model_validate_json((await api.get(f"/v1/jobs/{running['id']}")).content)
    assert (job.status, job.function) == ("succeeded", "thumbnail")
    assert (await api.post(f"/v1/jobs/{running['id']}/retry")).json()["code"] == "function_deleted"


async def test_a_name_may_be_used_again_after_a_delete(api: httpx.AsyncClient) -> None:
    await make_function(api)
    await api.delete("/v1/functions/thumbnail")
    assert (await make_function(api))["version"] == 1


async def test_twenty_applies_at_once_make_one_version_each_spec(api: httpx.AsyncClient) -> None:
    def spec(number: int) -> dict[str, Any]:
        return manifest(job={"image": f"busybox:{number}"}, params={"type": "object"})

    answers = await asyncio.gather(*(api.put("/v1/functions/thumbnail", json=spec(n % 4)) for n in range(20)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert sum(answer.status_code == 201 for answer in answers) == 1
    listed = (await api.get("/v1/functions/thumbnail/versions")).json()["data"]
    assert [one["version"] for one in listed] == list(range(len(listed), 0, -1))


@pytest.mark.parametrize(
    ("name", "changes", "status", "code", "pointer"),
    [
        ("other", {}, 422, "invalid", "/metadata/name"),
        ("Other", {}, 422, "invalid", "/metadata/name"),
        ("thumbnail", {"unknown": 1}, 422, "manifest_invalid", "/spec/unknown"),
        ("thumbnail", {"triggers": {"cron": []}}, 422, "manifest_invalid", "/spec/triggers/cron"),
        ("thumbnail", LARGE, 422, "too_large_for_any_node", "/spec/job/resources/cpu"),
        ("thumbnail", {"callbacks": [{"url": "http://127.0.0.1/"}]}, 422, "url_refused", "/spec/callbacks/0/url"),
    ],
)  # fmt: skip
async def test_a_manifest_that_breaks_a_rule_is_refused_with_a_pointer(
    shared_api: httpx.AsyncClient, name: str, changes: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    spec = {"params": {"type": "object"}, "job": {"image": "a"}} | changes
    answer = await shared_api.put(f"/v1/functions/{name}", json=manifest(**spec))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert pointer in [error["pointer"] for error in problem["errors"]]


@pytest.mark.parametrize("version", [0, -1, 2**31, 2**63, "1", True, 1.0, None])
async def test_a_rollback_to_what_is_no_version_is_422(shared_api: httpx.AsyncClient, version: object) -> None:
    await make_function(shared_api, "rolled-back")
    answer = await shared_api.post("/v1/functions/rolled-back/rollback", json={"version": version})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/version")


async def test_a_version_that_does_not_exist_is_404(api: httpx.AsyncClient) -> None:
    await make_function(api)
    answer = await api.post("/v1/functions/thumbnail/rollback", json={"version": 7})
    assert (answer.status_code, answer.json()["code"]) == (404, "version_not_found")
    invoked = await api.post(
        "/v1/functions/thumbnail/invoke", json={"video": "v"}, headers={"RGrid-Version": "7"}
    )
    assert (invoked.status_code, invoked.json()["code"]) == (404, "version_not_found")


async def test_sets_of_the_same_functions_in_other_orders_do_not_wait_for_each_other(api: httpx.AsyncClient) -> None:
    names = [f"set-{number}" for number in range(12)]

    async def apply(order: list[str], image: str) -> httpx.Response:
        given = [manifest(name, job={"image": image}) for name in order]
        return await api.post("/v1/functions", json={"manifests": given})

    async def chain(image: str) -> httpx.Response:
        callbacks = [{"function": names[6], "events": ["job.succeeded"]}]
        return await api.put(
            f"/v1/functions/{names[3]}", json=manifest(names[3], job={"image": image}, callbacks=callbacks)
        )

    for turn in range(6):
        answers = await asyncio.gather(
            apply(names, f"a:{turn}"), apply(names[::-1], f"b:{turn}"), *([chain(f"c:{turn}")] if turn else [])
        )
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]


async def test_several_manifests_are_applied_all_or_none(api: httpx.AsyncClient) -> None:
    good, other = manifest("good"), manifest("other")
    bad = manifest("bad", jobs={})
    answer = await api.post("/v1/functions", json={"manifests": [good, bad, good]})
    assert (answer.status_code, answer.json()["code"]) == (422, "manifest_invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == [
        "/manifests/1/spec/jobs", "/manifests/2/metadata/name",
    ]  # fmt: skip
    planned = await api.post("/v1/functions?dry_run=1", json={"manifests": [good, other]})
    changes = ChangeList.model_validate_json(planned.content).data
    assert [(one.name, one.version, one.created, one.before) for one in changes] == [
        ("good", 1, True, None), ("other", 1, True, None),
    ]  # fmt: skip
    assert (await api.get("/v1/functions")).json()["data"] == []
    applied = (await api.post("/v1/functions", json={"manifests": [good, other]})).json()["data"]
    assert applied == planned.json()["data"]
    assert len((await api.get("/v1/functions")).json()["data"]) == 2


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "/manifests"), ([], "/manifests"), ({"manifests": []}, "/manifests"), ({"manifests": {}}, "/manifests"),
        ({"manifests": [{}], "more": 1}, "/more"),
    ],
)  # fmt: skip
async def test_what_is_no_list_of_manifests_is_refused(api: httpx.AsyncClient, body: Any, at: str) -> None:
    answer = await api.post("/v1/functions", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, at)


async def test_a_dry_run_of_an_apply_says_what_would_change(api: httpx.AsyncClient) -> None:
    await make_function(api)
    wanted = manifest()
    wanted["spec"]["job"]["image"] = "busybox:9"
    for _ in range(2):
        change = Change.model_validate_json(
            (await api.put("/v1/functions/thumbnail?dry_run=1", json=wanted)).content
        )
        assert (change.version, change.changed, change.created) == (2, True, False)
        assert change.before is not None and change.before["spec"]["job"]["image"] == "busybox:1"
        assert change.manifest["spec"]["job"]["image"] == "busybox:9"
    assert (await api.get("/v1/functions/thumbnail")).json()["version"] == 1


async def test_functions_are_listed_by_label(api: httpx.AsyncClient) -> None:
    for name, labels in (("a", {"team": "media"}), ("b", {"team": "media", "x/y": "1=2"}), ("c", {})):
        document = manifest(name)
        document["metadata"]["labels"] = labels
        assert (await api.put(f"/v1/functions/{name}", json=document)).status_code == 201

    async def named(label: str) -> list[str]:
        return [one["name"] for one in (await api.get("/v1/functions", params={"label": label})).json()["data"]]

    assert await named("team=media") == ["b", "a"]
    assert await named("team=media,x/y=1=2") == ["b"]
    assert await named("team=other") == []
    for bad in ("", "team", "=media", "team=media,"):
        answer = await api.get("/v1/functions", params={"label": bad})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/label")


async def test_what_a_job_runs_is_shown_filled_in(api: httpx.AsyncClient) -> None:
    await make_function(api, job={"image": "busybox:1", "env": {"V": "{{ params.video }}"}}, params=VIDEO)
    job = await make_job(api)
    spec = SpecView.model_validate_json((await api.get(f"/v1/jobs/{job['id']}/spec")).content)
    assert (spec.env, spec.params, spec.secrets, spec.image.reference) == ({"V": "v"}, {"video": "v"}, [], "busybox:1")
    missing = await api.get(f"/v1/jobs/job_{'0' * 32}/spec")
    assert (missing.status_code, missing.json()["code"]) == (404, "job_not_found")


async def test_the_functions_of_a_set_share_the_time_for_limits_that_changed(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    async def relimit(*_: Any, within_s: float, **more: Any) -> int:
        given.append(within_s)
        return 0

    monkeypatch.setattr(functions, "relimit_once", relimit)
    answer = await api.post("/v1/functions", json={"manifests": [manifest("a"), manifest("b"), manifest("c")]})
    assert answer.status_code == 200
    assert len(given) == 3 and functions.RELIMIT_S > given[0] > given[1] > given[2]
