"""Addresses that callbacks may not have, wherever they are named: our own, and what an operator denies."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError

from functions.egress import EgressFailed, EgressRefused, exchange
from gateway.settings import Settings
from tests.gateway.conftest import make_settings
from tests.gateway.making import make_function, manifest
from tests.s3 import S3Server

PUBLIC_URL = "https://rgrid.example"


@pytest.fixture
def settings(database: str, s3_server: S3Server) -> Settings:
    return make_settings(
        database, s3_server, public_url=PUBLIC_URL, callback_deny="9.9.9.0/24, nodes.example",
        callback_allow="127.0.0.0/8",
    )  # fmt: skip


def ours(settings: Settings) -> list[str]:
    return [
        f"{PUBLIC_URL}/v1/functions/x/invoke", "https://RGRID.example.:443/", f"{settings.s3_endpoint}/rgrid/x",
        "https://9.9.9.9/", "https://nodes.example:8443/",
    ]  # fmt: skip


async def test_our_own_addresses_are_refused_wherever_a_callback_is_named(
    settings: Settings, api: httpx.AsyncClient
) -> None:
    await make_function(api)
    for url in ours(settings):
        named = await api.post("/v1/callbacks", json={"url": url})
        invoked = await api.post("/v1/functions/thumbnail/invoke", json={"video": "v"}, headers={"X-Callback-Url": url})
        applied = await api.put("/v1/functions/other", json=manifest("other", callbacks=[{"url": url}]))
        for answer in (named, invoked, applied):
            assert answer.status_code == 422, (url, answer.text)
            assert "may not be called" in answer.text, (url, answer.text)
    # The same host at another port may be somebody else's, and a job may fetch what we give to anybody.
    assert (await api.post("/v1/callbacks", json={"url": f"{PUBLIC_URL}:8443/x"})).status_code == 201
    fetching = {"image": "busybox", "files": {"inputs": [{"path": "/in/x", "url": f"{PUBLIC_URL}/r/abc"}]}}
    await make_function(api, "fetches", job=fetching)


async def test_our_own_addresses_are_refused_when_they_are_called(settings: Settings) -> None:
    for url in ours(settings):
        with pytest.raises(EgressRefused):
            await exchange(settings.callback_policy, "POST", url, {}, b"")
    with pytest.raises(EgressFailed):
        await exchange(settings.callback_policy, "POST", "http://127.0.0.1:1/", {}, b"")


async def test_a_list_that_means_nothing_is_an_error_at_start(settings: Settings) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(settings.model_dump() | {"callback_deny": "10.0.0.1/8"})
