"""``rgrid callbacks secret``, ``keys``, ``rotate`` and ``verify``: what receivers of callbacks verify messages with."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import Json, connected, plain_id_or_none
from gateway.cli.output import note, out, out_json

if TYPE_CHECKING:
    from gateway.cli.client import Api

OptionalId = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help="A callback's id; left out: the project.", callback=plain_id_or_none),
]
Overlap = Annotated[
    str, typer.Option("--overlap", metavar="TIME", help="How long the old key signs along; 0s: no longer.")
]


@connected
def secret(api: Api, callback_id: OptionalId = None, as_json: Json = False) -> None:
    """Print the key that messages are signed with (Standard Webhooks): the project's, or a callback's own."""
    found = api.get("/v1/callbacks/secret" if callback_id is None else f"/v1/callbacks/{callback_id}/secret")
    if as_json:
        out_json(found)
    else:
        out(found["secret"])


@connected
def keys(api: Api, as_json: Json = False) -> None:
    """Print the public keys (ed25519) that messages are signed with as well: verifying with them needs no secret."""
    _print_keys(api.get("/v1/callbacks/keys"), as_json)


@connected
def rotate(
    api: Api,
    callback_id: OptionalId = None,
    *,
    public: Annotated[bool, typer.Option("--public", help="The project's ed25519 key instead.")] = False,
    overlap: Overlap = "24h",
    as_json: Json = False,
) -> None:
    """Replace the key that messages are signed with; the old one signs along for a while."""
    if public and callback_id is not None:
        raise typer.BadParameter("callbacks share the project's ed25519 key: leave out the id or --public")
    body = {"overlap": overlap}
    if public:
        _print_keys(api.post("/v1/callbacks/keys/rotate", body), as_json)
        return
    whose = "secret" if callback_id is None else callback_id
    answer = api.post(f"/v1/callbacks/{whose}/rotate", body)
    if as_json:
        out_json(answer)
        return
    until = answer["previous_until"]
    note("the old key signs no more" if until is None else f"the old key signs along until {until}")
    out(answer["secret"])


def _print_keys(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out_json(found)
        return
    for key in found["keys"]:
        if key["expires_at"] is not None:
            note(f"until {key['expires_at']} signs along:")
        out(key["public_key"])


def verify(
    body: Annotated[str, typer.Argument(metavar="FILE", help="The body, byte for byte; - for standard input.")],
    *,
    header: Annotated[
        list[str], typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Its three webhook-… headers.")
    ],
    key: Annotated[
        list[str], typer.Option("--key", "-k", metavar="KEY", help="whsec_…, whpk_… or a text. May be repeated.")
    ],
    any_age: Annotated[bool, typer.Option("--any-age", help="However long ago it was sent.")] = False,
) -> None:
    """Check the signature of a message, here and without a gateway; exit 1 if it is none of these keys'."""
    from functions import signing

    given = {}
    for each in header:
        name, colon, value = each.partition(":")
        if not colon:
            raise typer.BadParameter(f"{each!r} is no header: write 'webhook-id: msg_…'")
        given[name.strip().lower()] = value.strip()
    try:
        data = sys.stdin.buffer.read() if body == "-" else Path(body).read_bytes()
    except OSError as error:
        raise Failed(f"{body} cannot be read: {error.strerror}") from None
    try:
        version = signing.verify(given, data, key, now=None if any_age else datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(f"--key: {error}") from None
    out(f"{given['webhook-id']}  signed ({version})")


COMMANDS = (secret, keys, rotate, verify)
