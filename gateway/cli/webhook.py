"""``rgrid webhook send``: a test event of any scheme, signed as its sender would."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli.failures import Failed, Refused, problem_line
from gateway.cli.options import Json, connected
from gateway.cli.output import note, out, out_json
from gateway.cli.params import content
from gateway.cli.webhooks import Webhook, find

if TYPE_CHECKING:
    import httpx

    from functions.verifying import Event
    from gateway.cli.client import Api

webhook = typer.Typer(help="Send a test event to a webhook.", no_args_is_help=True)

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
EVENT_HEADERS = {"github": "x-github-event", "gitlab": "x-gitlab-event", "shopify": "x-shopify-topic"}
READ_S = 30.0


def register(app: typer.Typer) -> None:
    app.add_typer(webhook, name="webhook", rich_help_panel="Run")


@webhook.callback()
def group() -> None:
    """Makes a group of the one command."""


@webhook.command()
@connected
def send(
    api: Api,
    *,
    reference: Webhook,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="TEXT", help="The body: text, @file, or - for standard input.")
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option("--secret", metavar="TEXT", help="What the secret holds. Default: RGRID_WEBHOOK_SECRET."),
    ] = None,
    event: Annotated[
        str | None, typer.Option("--event", metavar="NAME", help="The event's name, where a header says it.")
    ] = None,
    delivery: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The sender's id of the delivery: send one twice.")
    ] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME: VALUE", help="One more header.")
    ] = None,
    wait: Annotated[
        int | None, typer.Option("--wait", min=0, max=300, metavar="SECONDS", help="Wait for the job's end.")
    ] = None,
    curl: Annotated[bool, typer.Option("--curl", help="Print the same as a curl command, and send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Sign a test event as the webhook's sender would, send it, and say what it was answered.

    With verify: discord the secret is the private key of a pair whose public key the project has.
    """
    from functions.verifying import NONE, Options, sign

    found = find(api, reference)
    scheme = found["verify"]
    body, kind = _body(scheme, data, delivery or uuid4().hex)
    given = _headers(headers or ()) | ({} if wait is None else {"prefer": f"wait={wait}"})
    given = {"content-type": kind, **given}
    url = _signed_url(scheme, found["url"], body, given["content-type"])
    options = Options(
        found["header"], found["algorithm"] or "sha256", found["encoding"] or "hex", found["prefix"] or ""
    )
    test = _event(delivery or uuid4().hex, body, url, given)
    value = b"" if scheme == NONE else _secret(secret)
    try:
        signed = sign(scheme, test, value, options)
    except ValueError as error:
        raise Failed(str(error)) from None
    if event is not None:
        signed[EVENT_HEADERS.get(scheme, "x-event")] = event
    sent = {**signed, **given}
    if curl:
        out(_curl(url, sent, body))
        return
    # The address in the signature is the one that senders are given; ours leads to the same gateway.
    path = url[url.index("/hooks/") :]
    _tell(_post(api, path, sent, body, READ_S + (wait or 0)), as_json)


def _event(delivery: str, body: bytes, url: str, headers: dict[str, str]) -> Event:
    from functions.verifying import Event

    return Event(delivery, int(time.time()), body, url, headers)


def _body(scheme: str, data: str | None, delivery: str) -> tuple[bytes, str]:
    """What was given, or an event that says little; and its type."""
    if data is not None:
        return content(data), FORM if scheme == "twilio" else JSON
    if scheme == "twilio":
        return f"MessageSid=SM{delivery}&From=%2B15005550006&To=%2B15005550009&Body=Hello".encode(), FORM
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    samples: dict[str, Any] = {
        "github": {"ref": "refs/heads/main", "zen": "Keep it logically awesome."},
        "gitlab": {"object_kind": "push", "ref": "refs/heads/main"},
        "stripe": {"id": f"evt_{delivery}", "object": "event", "type": "charge.succeeded", "data": {"object": {}}},
        "slack": {"type": "event_callback", "event_id": f"Ev{delivery}", "event": {"type": "message", "text": "Hello"}},
        "discord": {"type": 2, "id": delivery, "data": {"name": "hello"}},
        "shopify": {"id": 1, "name": "#1001"},
    }
    return json.dumps(samples.get(scheme, {"type": "test", "timestamp": now, "data": {}})).encode(), JSON


def _signed_url(scheme: str, url: str, body: bytes, kind: str) -> str:
    from functions.verifying.twilio import with_hash

    return with_hash(url, body) if scheme == "twilio" and not kind.startswith(FORM) else url


def _headers(lines: list[str] | tuple[str, ...]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or not line.isascii() or not line.isprintable():
            raise typer.BadParameter(f"{line!r} does not read NAME: VALUE", param_hint="--header")
        found[name.strip().lower()] = value.strip()
    return found


def _secret(given: str | None) -> bytes:
    value = given if given is not None else os.environ.get("RGRID_WEBHOOK_SECRET")
    if not value and sys.stdin.isatty():
        value = str(typer.prompt("the webhook's secret", hide_input=True, err=True))
    if not value:
        raise Failed("a secret is needed to sign: name it with --secret, or in RGRID_WEBHOOK_SECRET")
    return value.encode()


def _curl(url: str, headers: dict[str, str], body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Failed("the body is no text: send it, or keep it in a file") from None
    parts = ["curl", "-i", url]
    for name, value in headers.items():
        parts += ["-H", f"{name}: {value}"]
    return " ".join(shlex.quote(part) for part in [*parts, "--data-raw", text])


def _post(api: Api, path: str, headers: dict[str, str], body: bytes, read_s: float) -> httpx.Response:
    import httpx

    from gateway.cli.client import CONNECT_S, loopback, user_agent

    timeout = httpx.Timeout(read_s, connect=CONNECT_S)
    # Not with the API's client: a webhook's sender has no key.
    with httpx.Client(timeout=timeout, trust_env=not loopback(api.url), headers={"user-agent": user_agent()}) as client:
        try:
            return client.post(api.url.rstrip("/") + path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise api.away(error) from None


def _tell(answer: httpx.Response, as_json: bool) -> None:
    try:
        said = answer.json() if answer.content else {}
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Failed(f"it was answered {answer.status_code}, not as an RGrid gateway does: check the URL")
    if answer.status_code >= 400:
        raise Refused(f"{answer.status_code} {problem_line(said)}", status=answer.status_code)
    if as_json:
        out_json(said)
    elif answer.status_code == 204:
        out("204, no job: the filter does not let it through, or it is a handshake")
    elif answer.headers.get("idempotent-replayed"):
        out(f"{answer.status_code}, sent before: {said['id']}")
    elif "id" in said and "status" in said:
        out(f"{answer.status_code}, {said['status']}: {said['id']}")
        note(f"follow it with 'rgrid logs -f {said['id']}'")
    else:
        out(f"{answer.status_code}, {json.dumps(said)}")
