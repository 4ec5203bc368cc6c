"""``rgrid callbacks`` and ``rgrid deliveries`` against a gateway, a sender and a receiver."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from functions import signing
from functions.egress import EgressPolicy
from gateway.services import Services
from scheduler.attempts import Direct
from scheduler.sending import Sender
from tests.gateway.cli.conftest import Connected, Rgrid
from tests.receivers import raw_server, read_request

URL = "https://hooks.example.com/rgrid"
LOOPBACK = EgressPolicy(allow=("127.0.0.0/8",))


async def test_a_callback_is_added_listed_changed_and_removed(call: Connected) -> None:
    assert "no callbacks yet" in (await call("callbacks")).err
    await call.apply(callbacks=[{"url": "https://m.example/"}])
    added = await call("callbacks", "add", URL, "-e", "job.failed", "-e", "job.expired", "-f", "greet")
    callback, secret = added.out.split()
    assert callback.startswith("cb_") and secret.startswith("whsec_") and "this key" in added.err
    assert (await call("callbacks", "secret", callback)).out.strip() == secret
    rows = [line.split() for line in (await call("callbacks")).out.splitlines()[1:]]
    assert rows[0] == [callback, "greet", "enabled", "job.failed,", "job.expired", URL]
    assert rows[1][1] == "greet" and rows[1][-1] == "https://m.example/"

    changed = await call("callbacks", "update", callback, "--to", URL + "2", "--every-function", "--json")
    assert (changed.json["url"], changed.json["functions"]) == (URL + "2", None)
    assert "say what is to change" in (await call("callbacks", "update", callback)).refused(2)
    assert "no secret NONE" in (await call("callbacks", "update", callback, "--secret", "NONE")).refused()
    assert (await call("callbacks", "disable", callback)).out == f"{callback}  disabled\n"
    shown = (await call("callbacks", "show", callback)).out
    assert "disabled by hand" in shown and "everything" in shown and secret not in shown
    assert "callback_disabled" in (await call("callbacks", "recover", callback, "--since", "1h")).refused()
    assert (await call("callbacks", "enable", callback)).out == f"{callback}  enabled\n"
    assert (await call("callbacks", "recover", callback, "--since", "1h")).out == "0 message(s) are sent again\n"
    assert (await call("callbacks", "rm", callback)).out == f"{callback} removed\n"
    assert (await call("callbacks", "rm", callback)).refused().startswith("callback_not_found: ")
    of_manifest = rows[1][0]
    assert (await call("callbacks", "rm", of_manifest)).refused().startswith("callback_of_manifest: ")


async def test_keys_are_shown_and_rotated(call: Connected) -> None:
    shared = (await call("callbacks", "secret")).out.strip()
    rotated = await call("callbacks", "rotate", "--overlap", "0s")
    assert rotated.out.strip() == (await call("callbacks", "secret")).out.strip() != shared
    assert "signs no more" in rotated.err
    public = (await call("callbacks", "keys")).out.strip()
    both = await call("callbacks", "rotate", "--public")
    assert both.out.split()[1:] == [public] and "signs along" in both.err
    assert "leave out the id or --public" in (await call("callbacks", "rotate", "cb_1", "--public")).refused(2)
    assert "/overlap" in (await call("callbacks", "rotate", "--overlap", "90d")).refused()


async def test_a_test_message_is_sent_and_its_answer_shown(
    call: Connected, services: Services, tmp_path: Path
) -> None:
    services.callback_egress = LOOPBACK
    asked: list[tuple[str, dict[str, str], bytes]] = []
    answers = [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\n\x1b[2Jx"]
    sender = Sender(services.pool, Direct(LOOPBACK), services.sealer, services.links)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_request(reader))
        writer.write(answers[len(asked) - 1])
        await writer.drain()

    async def send() -> None:
        while True:
            await sender.deliver_once()
            await asyncio.sleep(0.01)

    sending = asyncio.ensure_future(send())
    try:
        async with raw_server(handle) as port:
            callback = (await call("callbacks", "add", f"http://127.0.0.1:{port}/", "--json")).json
            tested = await call("callbacks", "test", callback["id"])
            assert "delivered: 204 after" in tested.out
            failed = await call("callbacks", "test", callback["id"])
            assert failed.status == 1 and "was not delivered: it answered 500" in failed.err
    finally:
        sending.cancel()
    _, headers, body = asked[0]
    (tmp_path / "body").write_bytes(body)
    given = [text for name in ("id", "timestamp", "signature") for text in ("-H", f"webhook-{name}: {headers[f'webhook-{name}']}")]
    for key, version in ((callback["signing_secret"], "v1"), ((await call("callbacks", "keys")).out.strip(), "v1a")):
        verified = await call("callbacks", "verify", str(tmp_path / "body"), *given, "-k", key)
        assert verified.out == f"{headers['webhook-id']}  signed ({version})\n"
    last, first = (line.split() for line in (await call("deliveries", "--callback", callback["id"])).out.splitlines()[1:])
    assert first[:2] == [headers["webhook-id"], "callback.test"] and last[2] == "exhausted"
    shown = (await call("deliveries", "show", last[0])).out
    assert "127.0.0.1" in shown and "it answered 500" not in shown and "500" in shown
    assert (await call("deliveries", "-e", "job.failed", "--since", "1h", "--json")).json["data"] == []


def test_a_signature_that_does_not_hold_is_one_line(rgrid: Rgrid, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"{}")
    headers = ["-H", "webhook-id: msg_1", "-H", "webhook-timestamp: 1", "-H", "webhook-signature: v1,AAAA"]
    key = signing.new_secret()
    assert "300 is the most" in rgrid("callbacks", "verify", body, *headers, "-k", key).refused()
    line = rgrid("callbacks", "verify", body, *headers, "-k", key, "--any-age").refused()
    assert line.startswith("signature_invalid: no signature")
    for wrong, said in (
        (("-H", "nonsense", "-k", key), "is no header"),
        ((*headers, "-k", "whpk_x", "--any-age"), "no ed25519 key"),
        ((*headers,), "Missing option"),
    ):
        assert said in rgrid("callbacks", "verify", body, *wrong).refused(2)
    assert "cannot be read" in rgrid("callbacks", "verify", "/nonexistent", *headers, "-k", key).refused()


@pytest.mark.parametrize("command", ["add", "show", "update", "test", "recover", "rotate", "keys", "verify"])
def test_every_command_of_callbacks_has_help(rgrid: Rgrid, command: str) -> None:
    done = rgrid("callbacks", command, "--help")
    assert (done.status, done.err) == (0, "")
