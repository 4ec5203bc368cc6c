"""Whatever is sent to a webhook, of any scheme, is answered with less than 500: signed well and then broken, or the other
way round. RGRID_MUTATIONS says how many requests a scheme gets (``make mutations``: 10,000)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from functions.errors import CODES
from functions.verifying import SCHEMES, Event, Options, sign
from gateway.app import create_app
from gateway.services import Services
from tests.gateway.conftest import client_of
from tests.gateway.making import make_function

REQUESTS = int(os.environ.get("RGRID_MUTATIONS", "300"))
FORM = "application/x-www-form-urlencoded"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
HELD = {"STANDARD": "whsec_" + base64.b64encode(b"k" * 24).decode(), "DISCORD": KEY.public_key().public_bytes_raw().hex()}
SIGNING = {"standard": HELD["STANDARD"], "discord": (b"\x07" * 32).hex()}
OPTIONS = {"hmac": Options("x-signature", "sha256", "hex", "v=")}

NAMES = (
    "webhook-id", "webhook-timestamp", "webhook-signature", "svix-signature", "x-hub-signature-256",
    "x-github-delivery", "x-github-event", "stripe-signature", "x-slack-signature", "x-slack-request-timestamp",
    "x-shopify-hmac-sha256", "x-twilio-signature", "x-gitlab-token", "x-signature-ed25519", "x-signature-timestamp",
    "authorization", "x-signature", "content-type", "content-encoding", "content-length", "ce-specversion", "ce-id",
    "ce-source", "ce-type", "idempotency-key", "prefer", "transfer-encoding",
)  # fmt: skip
VALUES = st.one_of(
    st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=80),
    st.sampled_from(
        [
            "", " ", ",", "v1", "v1,", "v1,,", "v1,AA==", "v1,é", "sha256=", "sha256=zz", "t=,v1=", "t=1,v1=00", "v0=",
            "1e9", "NaN", "-1", "9" * 400, "99999999999999999999", "Bearer", "Bearer  ", "gzip", "identity", "chunked",
            "application/json; charset=utf-16", "application/cloudevents+json", FORM, "text/plain", "ping", "wait=0",
            "respond-async", "wait=x", "A" * 5000, " ".join(["v1,AAAA"] * 40), "v1," * 1000, "1.0",
        ]
    ),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [
            b"", b"{", b"[" * 5000, b'{"type": 1}', b'{"type": "url_verification", "challenge": 1}', b"\xef\xbb\xbf{}",
            b'{"type": "url_verification", "challenge": "x"}', b'{"id": "' + b"x" * 400 + b'"}', b'{"a": "\\ud800"}',
            b'{"a": "\\u0000"}', b'{"event_id": "\\u0007"}', b"a=1&a=2&a=%00", b"payload=%7B", b"payload=", b"&&&=",
            b'{"specversion": "1.0", "id": 7}', b"1" * 5000, b'{"a": 1e999}', b'{"a": 1, "a": 2}',
        ]
    ),
)  # fmt: skip
QUERIES = st.sampled_from(
    [b"", b"", b"a=1", b"a=1&a=2", b"wait=x", b"wait=0", b"%ff", b"%", b"bodySHA256=00", b"a=%00", b"a" * 2000, b"&" * 200]
)


@dataclass
class Sent:
    """A request, and what is done to it once it is signed."""

    body: bytes
    query: bytes
    kind: str
    resign: bool
    changes: list[tuple[str, str, str]] = field(default_factory=list)


SENT = st.builds(
    Sent,
    BODIES,
    QUERIES,
    st.sampled_from(["application/json", FORM, "text/plain", "", "application/cloudevents+json", "image/png"]),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["set", "drop", "twice", "cut", "flip"]), st.sampled_from(NAMES), VALUES), max_size=4
    ),
)


def headers_of(scheme: str, sent: Sent, url: str) -> list[tuple[bytes, bytes]]:
    """Of the body, or of another one that it is not; then changed."""
    signed_body = sent.body if sent.resign else b'{"id": "x"}'
    event = Event("m-1", int(time.time()), signed_body, url, {"content-type": sent.kind})
    secret = SIGNING.get(scheme, "hunter22").encode()
    try:
        signed = sign(scheme, event, secret, OPTIONS.get(scheme, Options()))
    except ValueError:  # no form, of Twilio
        signed = {}
    headers = [*signed.items(), ("content-type", sent.kind)]
    for how, name, value in sent.changes:
        if how == "set":
            headers = [each for each in headers if each[0] != name] + [(name, value)]
        elif how == "drop":
            headers = [each for each in headers if each[0] != name]
        elif how == "twice":
            headers += [(name, value), (name, value)]
        elif how == "cut":
            headers = [(each, text[:-1] if each == name else text) for each, text in headers]
        else:
            headers = [(each, text.swapcase() if each == name else text) for each, text in headers]
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]


async def ask(app: ASGIApp, path: str, sent: Sent, headers: list[tuple[bytes, bytes]]) -> tuple[int, Any]:
    """Past httpx, which would not send half of it."""
    status, body = 0, b""
    messages = [{"type": "http.request", "body": sent.body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": sent.query,
        "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("y", 2),
    }  # fmt: skip
    await app(scope, receive, send)
    return status, json.loads(body) if body else None


@pytest.fixture(scope="module")
async def paths(shared_services: Services) -> dict[str, str]:
    """One webhook of each scheme; its address."""
    hooks: list[dict[str, Any]] = []
    async with client_of(shared_services) as api:
        for scheme in SCHEMES:
            name = scheme.upper()
            assert (await api.post("/v1/secrets", json={"name": name, "value": HELD.get(name, "hunter22")})).is_success
            more: dict[str, Any] = {"secret": name} if scheme != "none" else {}
            more |= {"header": "x-signature", "prefix": "v="} if scheme == "hmac" else {}
            hooks.append({"name": scheme, "verify": scheme, "params": {"all": "{{ body }}"}, **more})
        spec = {"params": {"type": "object"}, "job": {"image": "busybox:1"}}
        await make_function(api, "mutated", triggers={"webhooks": hooks}, **spec)
    return {scheme: f"/hooks/default/mutated/{scheme}" for scheme in SCHEMES}


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_no_mutated_request_is_answered_with_500(
    shared_services: Services, paths: dict[str, str], scheme: str
) -> None:
    app, loop, path = create_app(shared_services), asyncio.get_running_loop(), paths[scheme]
    seen: dict[int, int] = {}

    def run(request: Callable[[], Awaitable[tuple[int, Any]]]) -> tuple[int, Any]:
        return asyncio.run_coroutine_threadsafe(request(), loop).result(20)  # type: ignore[arg-type]

    @seed(20260101)
    @settings(
        max_examples=REQUESTS, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(sent=SENT)
    def send(sent: Sent) -> None:
        url = f"{shared_services.settings.base_url}{path}" + (f"?{sent.query.decode('latin-1')}" if sent.query else "")
        headers = headers_of(scheme, sent, url)
        status, said = run(lambda: ask(app, path, sent, headers))
        seen[status] = seen.get(status, 0) + 1
        assert status < 500, (status, sent, said)
        if status >= 400:
            assert said["code"] in CODES and said["status"] == status

    await asyncio.to_thread(send)
    assert seen.keys() & {200, 202}, seen  # or nothing but the signature would have been tried
    assert scheme == "none" or 401 in seen, seen
