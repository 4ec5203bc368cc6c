"""``rgrid nodes``: the machines that jobs run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import Json, ListsByDefault, connected, plain_id
from gateway.cli.output import age, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

nodes = typer.Typer(help="List, add and drain nodes.", cls=ListsByDefault)


def register(app: typer.Typer) -> None:
    app.add_typer(nodes, name="nodes", rich_help_panel="Operate")


@nodes.command("list")
@connected
def list_nodes(
    api: Api,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List nodes, the newest first."""
    found = api.pages("/v1/nodes", {}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "NAME", "STATE", "RUNNING", "SLOTS", "VERSION", "LAST SEEN"),
        (
            (
                one["id"],
                one["name"],
                one["state"],
                one["running"],
                one["slots"],
                one["version"],
                age(one["last_seen_at"]),
            )
            for one in found["data"]
        ),
        empty="no nodes yet: 'rgrid nodes add' makes a token that one joins with",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@nodes.command()
@connected
def add(
    api: Api,
    name: Annotated[
        str | None, typer.Option("--name", help="What lists call it. Default: its host name.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, max=1024, help="Jobs at a time. Default: one a CPU.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token that one machine can join with, once."""
    wanted = {"name": name, "slots": slots}
    made = api.post("/v1/nodes", {key: value for key, value in wanted.items() if value is not None})
    if as_json:
        out_json(made)
        return
    settings = [f"RGRID_GATEWAY_URL={api.url}", f"RGRID_JOIN_TOKEN={made['join_token']}"]
    if slots is not None:
        settings.append(f"RGRID_SLOTS={slots}")
    note(f"{made['id']}: run this on the new machine before {made['expires_at']}; the token works once")
    out(f"{' '.join(settings)} rgrid node")


@nodes.command()
@connected
def drain(
    api: Api,
    node_id: Annotated[str, typer.Argument(metavar="ID", help="The node's id.", callback=plain_id)],
    as_json: Json = False,
) -> None:
    """Give a node no more jobs; those that it has finish or are handed back."""
    answer = api.post(f"/v1/nodes/{node_id}/drain", repeatable=True)
    if as_json:
        out_json(answer)
    else:
        out(f"{answer.get('name') or node_id} {answer.get('state') or 'draining'}")
