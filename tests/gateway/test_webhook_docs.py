"""What docs/howto/webhooks.md says, on an instance of its own: its examples sent by a real curl, and waiting."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.services import Services, open_services
from gateway.settings import Settings
from tests.gateway.conftest import client_of, listening
from tests.gateway.making import claim_one, finish, make_function, make_node
from tests.gateway.test_hooks import make_hook, send

PAGE = (Path(__file__).parent.parent.parent / "docs/howto/webhooks.md").read_text()
BY_HAND = re.findall(r"^```sh\n(.*?)^```", PAGE.partition("## By hand")[2], re.MULTILINE | re.DOTALL)
SCHEMES = ("standard", "github", "gitlab", "stripe", "slack", "shopify", "twilio", "hmac", "token", "none")
MORE = {"hmac": {"header": "X-Signature", "algorithm": "sha512", "encoding": "base64", "prefix": "sha512="}}
TOOLS = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl")


async def run(script: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", script, env={"PATH": os.environ["PATH"], "no_proxy": "*", **variables},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err
    return out.decode()


@TOOLS
async def test_curl_signs_for_every_scheme_as_the_page_shows(services: Services, api: httpx.AsyncClient) -> None:
    assert len(BY_HAND) == len(SCHEMES)
    hooks: list[dict[str, Any]] = []
    secrets = dict.fromkeys(SCHEMES, "hunter22") | {"standard": "whsec_" + base64.b64encode(b"\xffk" * 16).decode()}
    for scheme in SCHEMES:
        name = scheme.upper()
        assert (await api.post("/v1/secrets", json={"name": name, "value": secrets[scheme]})).status_code == 201
        more: dict[str, Any] = {"secret": name} if scheme != "none" else {}
        hooks.append({"name": scheme, "verify": scheme, **more, **MORE.get(scheme, {})})
    await make_function(api, "ci", params={"type": "object"}, job={"image": "a:1"}, triggers={"webhooks": hooks})
    async with listening(services) as gateway:
        # Twilio signs the address that the settings say, so it has to be the one that this gateway listens at.
        url = f"http://127.0.0.1:{gateway.port}"
        services.settings.public_url = url
        for scheme, script in zip(SCHEMES, BY_HAND, strict=True):
            answer = await run(script, HOOK=f"{url}/hooks/default/ci/{scheme}", SECRET=secrets[scheme])
            assert json.loads(answer).get("status") == "queued", (scheme, answer)
            if scheme != "none":
                answer = await run(script, HOOK=f"{url}/hooks/default/ci/{scheme}", SECRET=secrets[scheme][:-4] + "AAA=")
                assert json.loads(answer).get("code") == "signature_invalid", (scheme, answer)


async def test_the_manifest_of_the_page_can_be_applied(settings: Settings) -> None:
    spec = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])["spec"]  # type: ignore[index]
    async with open_services(settings) as services, client_of(services) as api:
        await api.post("/v1/secrets", json={"name": "GITHUB_WEBHOOK_SECRET", "value": "hunter22"})
        await make_function(api, "build", **spec)
        assert [each["name"] for each in (await api.get("/v1/webhooks")).json()["data"]] == ["github"]


async def test_who_waits_is_answered_with_the_job_that_has_ended(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    node = await make_node(services)
    for place, headers in ((path, {"prefer": "wait=10"}), (f"{path}?wait=10", {})):
        asked = asyncio.create_task(send(services, place, **headers))
        await finish(services, node, await claim_one(services, node), result='{"n": 1}')
        answer = await asked
        assert (answer.status_code, answer.json()["status"], answer.json()["result"]) == (200, "succeeded", {"n": 1})
        assert answer.headers["preference-applied"] == "wait=10"
    assert (await send(services, f"{path}?wait=301")).status_code == 422
