"""The operator's catalogue of runtimes, from the setting to the version."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError

from gateway.services import Services
from gateway.settings import Settings
from tests.gateway.making import make_function, make_job, manifest
from tests.gateway.work import joined

JOB = {"runtime": "python3.12", "command": ["python", "-c", "pass"]}
FIRST, SECOND = "python:3.12-slim", "registry.example.com/python:3.12.9"


def catalogue(services: Services, **runtimes: str) -> None:
    services.settings = services.settings.model_copy(update={"runtimes": runtimes})


async def image_of_lease(services: Services, api: httpx.AsyncClient) -> str:
    await make_job(api)
    async with joined(services) as node:
        lease = await node.claim_one()
        await node.finish(lease)
    reference: str = lease["image"]["reference"]
    return reference


async def test_a_runtime_stands_for_the_image_that_it_was_when_applied(
    services: Services, api: httpx.AsyncClient
) -> None:
    catalogue(services, **{"python3.12": FIRST})
    made = await make_function(api, job=JOB)
    shown = made["manifest"]["spec"]["job"]
    assert (made["version"], shown["runtime"], "image" in shown) == (1, "python3.12", False)
    assert await image_of_lease(services, api) == FIRST
    # What was shown may be applied again, and is the same.
    again = await api.put("/v1/functions/thumbnail", json=made["manifest"])
    assert (again.status_code, again.json()["version"], again.json()["changed"]) == (200, 1, False)
    catalogue(services, **{"python3.12": SECOND})
    assert await image_of_lease(services, api) == FIRST
    renewed = await make_function(api, job=JOB)
    assert (renewed["version"], await image_of_lease(services, api)) == (2, SECOND)
    versions = (await api.get("/v1/functions/thumbnail/versions")).json()["data"]
    assert [each["image"] for each in versions] == [SECOND, FIRST]


@pytest.mark.parametrize(
    ("known", "words"),
    [({}, "it has none"), ({"node22": "node:22", "python3.13": "python:3.13"}, "it has node22, python3.13")],
)
async def test_an_unknown_runtime_is_refused_with_those_that_there_are(
    services: Services, api: httpx.AsyncClient, known: dict[str, str], words: str
) -> None:
    catalogue(services, **known)
    answer = await api.put("/v1/functions/thumbnail", json=manifest(job=JOB))
    assert (answer.status_code, answer.json()["code"]) == (422, "manifest_invalid")
    (fault,) = answer.json()["errors"]
    assert (fault["pointer"], words in fault["message"]) == ("/spec/job/runtime", True)


@pytest.mark.parametrize(
    ("job", "pointer", "words"),
    [
        ({}, "/spec/job/image", "is required"),
        ({**JOB, "image": "python:3"}, "/spec/job/runtime", "goes without image"),
        ({**JOB, "pullSecret": "LOGIN"}, "/spec/job/pullSecret", "not with a runtime"),
    ],
)
async def test_exactly_one_of_image_and_runtime_is_given(
    services: Services, api: httpx.AsyncClient, job: dict[str, object], pointer: str, words: str
) -> None:
    catalogue(services, **{"python3.12": FIRST})
    answer = await api.put("/v1/functions/thumbnail", json=manifest(job=job))
    (fault,) = answer.json()["errors"]
    assert (answer.status_code, fault["pointer"], words in fault["message"]) == (422, pointer, True)


def settings(monkeypatch: pytest.MonkeyPatch, runtimes: str) -> Settings:
    for name in ("DATABASE_URL", "S3_ENDPOINT", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "SECRET_KEY"):
        monkeypatch.setenv(f"RGRID_{name}", "x")
    monkeypatch.setenv("RGRID_RUNTIMES", runtimes)
    return Settings()


@pytest.mark.parametrize(
    ("text", "runtimes"),
    [
        ("", {}),
        ("python3.12=python:3.12-slim", {"python3.12": "python:3.12-slim"}),
        (" a = b:1 , c=d@sha256:" + "0" * 64 + ",", {"a": "b:1", "c": "d@sha256:" + "0" * 64}),
        ('{"node22": "node:22"}', {"node22": "node:22"}),
    ],
)
def test_the_setting_takes_pairs_and_json(
    monkeypatch: pytest.MonkeyPatch, text: str, runtimes: dict[str, str]
) -> None:
    assert settings(monkeypatch, text).runtimes == runtimes


@pytest.mark.parametrize(
    "text",
    ["python", "=x", "a=", "A=b", "a=b c", "a=b,a=c", "{", '{"a": 1}', '["a"]', '{"a": "https://b"}', "a=artifact:x"],
)
def test_a_setting_that_names_no_images_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(ValidationError):
        settings(monkeypatch, text)
