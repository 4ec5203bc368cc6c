"""``rgrid webhooks``: what may call functions without a key, what came in, and running it again."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import FunctionName, Json, ListsByDefault, Pairs, connected, header, plain_id
from gateway.cli.output import age, fields, note, out, out_json, size, table
from gateway.cli.params import read_params
from gateway.cli.show import show_job

if TYPE_CHECKING:
    from gateway.cli.client import Api

webhooks = typer.Typer(help="List, add and remove webhooks, and see what came in.", cls=ListsByDefault)

_REFERENCE = re.compile(r"[a-z][a-z0-9-]{0,62}/[a-z][a-z0-9-]{0,62}|[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def reference(value: str) -> str:
    """Refuse what can be neither an id nor FUNCTION/NAME."""
    if not _REFERENCE.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is no webhook: write its id, or FUNCTION/NAME")
    return value


Webhook = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="Its id, or FUNCTION/NAME.", callback=reference)
]
ReceiptId = Annotated[str, typer.Argument(metavar="RECEIPT", help="The receipt's id.", callback=plain_id)]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")]


def register(app: typer.Typer) -> None:
    app.add_typer(webhooks, name="webhooks", rich_help_panel="Run")


def find(api: Api, webhook: str) -> dict[str, Any]:
    """The webhook of an id, or of FUNCTION/NAME; raises ``Failed``."""
    if "/" not in webhook:
        return api.get(f"/v1/webhooks/{webhook}")
    function, _, name = webhook.partition("/")
    found: list[dict[str, Any]] = api.get("/v1/webhooks", {"function": function, "name": name})["data"]
    if not found:
        raise Failed(f"webhook_not_found: the function {function} has no webhook {name}")
    return found[0]


@webhooks.command("list")
@connected
def list_webhooks(
    api: Api,
    function: Annotated[
        str | None, typer.Option("--function", metavar="NAME", help="Of this function only.")
    ] = None,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List webhooks with the addresses for their senders."""
    found = api.pages("/v1/webhooks", {"function": function}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "FUNCTION", "NAME", "VERIFY", "SECRET", "STATE", "URL"),
        (
            (
                one["id"], one["function"], one["name"], one["verify"], ", ".join(one["secret"]),
                one["origin"] if one["enabled"] else "disabled", one["url"],
            )
            for one in found["data"]
        ),
        empty="no webhooks yet: give a function one in spec.triggers, or with 'rgrid webhooks add'",
    )  # fmt: skip
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@webhooks.command()
@connected
def show(api: Api, webhook: Webhook, as_json: Json = False) -> None:
    """Show a webhook."""
    found = find(api, webhook)
    if as_json:
        out_json(found)
        return
    fields(
        (key.replace("_", " "), _said(found[key]))
        for key in (
            "id", "function", "name", "url", "origin", "enabled", "verify", "secret", "header", "algorithm", "encoding",
            "prefix", "filter", "params", "dedupe", "rate", "created_at", "updated_at",
        )
    )  # fmt: skip


@webhooks.command()
@connected
def add(
    api: Api,
    *,
    function: FunctionName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The webhook's name.", callback=plain_id)],
    verify: Annotated[str, typer.Option("--verify", metavar="SCHEME", help="github, stripe, slack, hmac, …, or none.")],
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="The project secret that the sender signs with; two to rotate."),
    ] = None,
    own_header: Annotated[
        str | None, typer.Option("--header", metavar="NAME", help="With hmac and token: the header.", callback=header)
    ] = None,
    algorithm: Annotated[str | None, typer.Option("--algorithm", help="With hmac: sha1, sha256, sha384, …")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="With hmac: hex or base64.")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="With a header: what stands before the value.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="PLACE=VALUE", help="Let only this through; a place may have several values."),
    ] = None,
    pairs: Pairs = None,
    dedupe: Annotated[
        str | None, typer.Option("--dedupe", metavar="TEMPLATE", help="What tells one delivery from another.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a function a webhook beside those of its manifest. Params are templates: -p ref='{{ body.ref }}'."""
    wanted = {
        "function": function, "name": name, "verify": verify, "secret": secret, "header": own_header,
        "algorithm": algorithm, "encoding": encoding, "prefix": prefix, "filter": _filter(only or ()),
        "params": read_params(pairs, None).params if pairs else None, "dedupe": dedupe,
    }  # fmt: skip
    made = api.post("/v1/webhooks", {key: value for key, value in wanted.items() if value is not None and value != {}})
    if as_json:
        out_json(made)
    else:
        out(f"{made['id']}  {made['url']}")


@webhooks.command()
@connected
def rm(api: Api, webhook: Webhook, as_json: Json = False) -> None:
    """Remove a webhook that was made with add. One of a manifest goes with its next apply."""
    api.delete(f"/v1/webhooks/{find(api, webhook)['id']}")
    if not as_json:
        out(f"{webhook} removed")


@webhooks.command()
@connected
def disable(api: Api, webhook: Webhook, as_json: Json = False) -> None:
    """Let a webhook answer 404, also over applies."""
    _switch(api, webhook, "disable", as_json)


@webhooks.command()
@connected
def enable(api: Api, webhook: Webhook, as_json: Json = False) -> None:
    """Let a webhook be called again."""
    _switch(api, webhook, "enable", as_json)


def _switch(api: Api, webhook: str, what: str, as_json: bool) -> None:
    answer = api.post(f"/v1/webhooks/{find(api, webhook)['id']}/{what}", repeatable=True)
    if as_json:
        out_json(answer)
    else:
        out(f"{webhook} {what}d")


@webhooks.command()
@connected
def receipts(
    api: Api,
    webhook: Webhook,
    verdict: Annotated[
        str | None,
        typer.Option("--verdict", help="accepted, repeated, filtered, answered, refused, invalid or rejected."),
    ] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """What came in at a webhook, and what became of it."""
    path = f"/v1/webhooks/{find(api, webhook)['id']}/receipts"
    found = api.pages(path, {"verdict": verdict}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "VERDICT", "JOB", "DELIVERY", "SIZE", "AT", "REASON"),
        (
            (
                one["id"], one["verdict"], one["job"], one["delivery"], size(one["size"]), age(one["at"]),
                one["reason"] or (f"replay of {one['replay_of']}" if one["replay_of"] else ""),
            )
            for one in found["data"]
        ),
    )  # fmt: skip
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@webhooks.command()
@connected
def receipt(api: Api, webhook: Webhook, receipt_id: ReceiptId, as_json: Json = False) -> None:
    """Show one request that came in, headers and body."""
    found = api.get(f"/v1/webhooks/{find(api, webhook)['id']}/receipts/{receipt_id}")
    if as_json:
        out_json(found)
        return
    fields((key, found[key]) for key in ("id", "verdict", "reason", "job", "delivery", "replay_of", "query", "at"))
    out("")
    fields(found["headers"])
    body = found["body"] if found["body"] is not None else found["body_base64"]
    if body is not None:
        out("\n" + "".join(each if each.isprintable() or each in "\n\t" else "�" for each in body))
    if found["truncated"] or body is None:
        note(f"{size(found['size'])} came, {'the rest' if body else 'the body'} was not kept")


@webhooks.command()
@connected
def replay(api: Api, webhook: Webhook, receipt_id: ReceiptId, as_json: Json = False) -> None:
    """Make a new job of a request that came in before."""
    path = f"/v1/webhooks/{find(api, webhook)['id']}/receipts/{receipt_id}/replay"
    job = api.post(path, headers={"Idempotency-Key": str(uuid4())}, repeatable=True)
    if as_json:
        out_json(job)
    else:
        show_job(job)


def _filter(pairs: list[str] | tuple[str, ...]) -> dict[str, list[Any]]:
    allowed: dict[str, list[Any]] = {}
    for pair in pairs:
        place, equals, value = pair.partition("=")
        if not equals or not place:
            raise typer.BadParameter(f"{pair!r} does not read PLACE=VALUE", param_hint="--filter")
        allowed.setdefault(place, []).append(_value(value) if place.startswith("body") else value)
    return allowed


def _value(text: str) -> Any:
    """Of a body: a number, true, false and null as such, anything else as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict | list) else value


def _said(value: Any) -> object:
    if value in (None, [], {}):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
