"""``rgrid webhooks`` and ``rgrid webhook send``."""

from __future__ import annotations

import base64
import shlex
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from functions.verifying import SCHEMES
from tests.gateway.cli.conftest import Connected

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
SECRETS = {
    "standard": "whsec_" + base64.b64encode(b"k" * 24).decode(),
    "discord": (b"\x07" * 32).hex(),
}


async def secret(call: Connected, scheme: str) -> str:
    """What the sender signs with; what the project has of it is set."""
    value = SECRETS.get(scheme, "hunter22")
    held = KEY.public_key().public_bytes_raw().hex() if scheme == "discord" else value
    assert (await call("secrets", "set", "HOOK", "--value", held)).status == 0
    return value


def hook(scheme: str, **more: Any) -> dict[str, Any]:
    given = {"header": "x-signature", "prefix": "sha256="} if scheme == "hmac" else {}
    given |= {"secret": "HOOK"} if scheme != "none" else {}
    return {"name": "in", "verify": scheme, **given, **more}


async def test_a_test_event_of_every_scheme_is_signed_sent_and_answered(call: Connected) -> None:
    for scheme in SCHEMES:
        value = await secret(call, scheme)
        await call.apply(triggers={"webhooks": [hook(scheme)]})
        sent = await call("webhook", "send", "greet/in", "--secret", value, "--id", f"d-{scheme}")
        assert sent.status == 0 and sent.out.startswith("202, queued: job_"), (scheme, sent)
        again = await call("webhook", "send", "greet/in", "--secret", value, "--id", f"d-{scheme}")
        assert "sent before: job_" in again.out, (scheme, again)
        if scheme != "none":
            wrong = SECRETS["standard"][:-4] + "AAAA" if scheme == "standard" else "ab" * 32
            refused = await call("webhook", "send", "greet/in", "--secret", wrong)
            assert refused.refused().startswith("401 signature_invalid: "), scheme


async def test_the_body_event_and_headers_are_what_was_given(
    call: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    await secret(call, "github")
    monkeypatch.setenv("RGRID_WEBHOOK_SECRET", "hunter22")
    filters = {"header.x-github-event": ["release"]}
    params = {"n": "{{ body.n }}", "more": "{{ header.x-more }}"}
    await call.apply(triggers={"webhooks": [hook("github", filter=filters, params=params)]})
    assert (await call("webhook", "send", "greet/in")).out.startswith("204, no job")
    arguments = ["webhook", "send", "greet/in", "--event", "release", "-d", "-", "-H", "X-More: yes"]
    sent = await call(*arguments, "--json", stdin=b'{"n": 7}')
    assert sent.json["params"] == {"n": 7, "more": "yes", "who": "world"}
    waited = await call(*arguments, "--wait", "0", stdin=b'{"n": 8}')
    assert waited.out.startswith("202, queued")
    assert "NAME: VALUE" in (await call("webhook", "send", "greet/in", "-H", "nonsense")).refused(2)
    monkeypatch.delenv("RGRID_WEBHOOK_SECRET")
    assert "a secret is needed" in (await call("webhook", "send", "greet/in")).refused()
    assert "webhook_not_found" in (await call("webhook", "send", "greet/other", "--secret", "x")).refused()


async def test_the_curl_command_does_the_same(call: Connected) -> None:
    value = await secret(call, "stripe")
    await call.apply(triggers={"webhooks": [hook("stripe")]})
    shown = await call("webhook", "send", "greet/in", "--secret", value, "--curl")
    words = shlex.split(shown.out)
    assert words[:2] == ["curl", "-i"]
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    # The address is the one that senders are given, which is not where this test's gateway listens.
    url = call.url + words[2][words[2].index("/hooks/") :]
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, content=words[-1].encode(), headers=headers)
    assert answer.status_code == 202, answer.text


async def test_a_json_body_of_twilio_is_announced_in_the_address(call: Connected) -> None:
    value = await secret(call, "twilio")
    await call.apply(triggers={"webhooks": [hook("twilio")]})
    arguments = ["webhook", "send", "greet/in", "--secret", value, "-H", "Content-Type: application/json"]
    sent = await call(*arguments, "-d", '{"a": 1}', "--json")
    assert sent.status == 0, sent
    assert sent.json["params"] == {"a": 1, "who": "world"}


async def test_webhooks_are_added_listed_shown_switched_and_removed(call: Connected) -> None:
    await secret(call, "github")
    assert "no webhooks yet" in (await call("webhooks")).err
    await call.apply(triggers={"webhooks": [hook("none")]})
    made = await call(
        "webhooks", "add", "greet", "own", "--verify", "github", "--secret", "HOOK", "--filter", "body.n=1",
        "--filter", "body.n=two", "--filter", "header.x-a=1", "-p", "ref={{ body.ref }}", "--json",
    )  # fmt: skip
    assert made.status == 0, made
    assert made.json["filter"] == {"body.n": [1, "two"], "header.x-a": ["1"]}
    assert (made.json["params"], made.json["origin"]) == ({"ref": "{{ body.ref }}"}, "api")
    listed = (await call("webhooks")).out.splitlines()
    assert [line.split()[1:4] for line in listed[1:]] == [["greet", "own", "github"], ["greet", "in", "none"]]
    shown = (await call("webhooks", "show", "greet/own")).out
    assert "HOOK" in shown and "/hooks/default/greet/own" in shown
    assert (await call("webhooks", "disable", "greet/own")).out == "greet/own disabled\n"
    assert "disabled" in (await call("webhooks")).out
    assert (await call("webhooks", "enable", made.json["id"])).status == 0
    assert "webhook_of_manifest" in (await call("webhooks", "rm", "greet/in")).refused()
    assert (await call("webhooks", "rm", "greet/own")).out == "greet/own removed\n"
    assert (await call("webhooks", "show", "greet/own")).refused().startswith("webhook_not_found")
    assert (await call("webhooks", "show", "../x")).status == 2
    assert "PLACE=VALUE" in (
        await call("webhooks", "add", "greet", "x", "--verify", "none", "--filter", "body.n")
    ).refused(2)


async def test_what_came_in_is_listed_shown_and_run_again(call: Connected) -> None:
    await call.apply(triggers={"webhooks": [hook("none")]})
    sent = await call("webhook", "send", "greet/in", "-d", '{"n": 1}', "--json")
    (receipt,) = (await call("webhooks", "receipts", "greet/in", "--json")).json["data"]
    assert receipt["job"] == sent.json["id"]
    assert receipt["id"] in (await call("webhooks", "receipts", "greet/in", "--verdict", "accepted")).out
    shown = (await call("webhooks", "receipt", "greet/in", receipt["id"])).out
    assert '{"n": 1}' in shown and "content-type" in shown
    again = await call("webhooks", "replay", "greet/in", receipt["id"], "--json")
    assert (again.json["params"], again.json["id"] == sent.json["id"]) == ({"n": 1, "who": "world"}, False)
    assert f"replay of {receipt['id']}" in (await call("webhooks", "receipts", "greet/in")).out
    assert (await call("webhooks", "replay", "greet/in", receipt["id"])).status == 0
