"""``rgrid nodes``: the machines that jobs run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import Json, ListsByDefault, connected, plain_id
from gateway.cli.output import age, fields, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

nodes = typer.Typer(help="List, show, add and drain nodes.", cls=ListsByDefault)


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
        ("ID", "NAME", "STATE", "RUNNING", "SLOTS", "SERVER", "EUR/H", "PAID UNTIL", "LAST SEEN"),
        (
            (
                one["id"],
                one["name"],
                _state(one),
                one["running"],
                one["slots"],
                _server(one),
                (one["server"] or {}).get("hourly"),
                (one["server"] or {}).get("paid_until"),
                age(one["last_seen_at"]),
            )
            for one in found["data"]
        ),
        empty=_none(found.get("fleet") or {}),
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")
    if (found.get("fleet") or {}).get("problem"):
        note(f"problem: {found['fleet']['problem']}")


@nodes.command()
@connected
def show(
    api: Api,
    node_id: Annotated[str, typer.Argument(metavar="ID", help="The node's id.", callback=plain_id)],
    as_json: Json = False,
) -> None:
    """Show one node."""
    found = api.get(f"/v1/nodes/{node_id}")
    if as_json:
        out_json(found)
        return
    server = found["server"] or {}
    fields(
        [
            ("id", found["id"]),
            ("name", found["name"]),
            ("state", _state(found)),
            ("running", f"{found['running']} of {found['slots']}"),
            ("version", found["version"]),
            ("server", _server(found)),
            ("EUR/h", server.get("hourly")),
            ("paid until", server.get("paid_until")),
            ("why", server.get("error")),
            ("last seen", age(found["last_seen_at"])),
            *((name, fact) for name, fact in found["facts"].items() if name != "name"),
        ]
    )


@nodes.command()
@connected
def events(
    api: Api,
    node_id: Annotated[str, typer.Argument(metavar="ID", help="The node's id.", callback=plain_id)],
    as_json: Json = False,
) -> None:
    """Show what happened to a rented node, in order."""
    found = api.get(f"/v1/nodes/{node_id}/events")
    if as_json:
        out_json(found)
    else:
        table(("AT", "EVENT", ""), ((event["at"], event["type"], event["detail"]) for event in found["data"]))


def _none(fleet: dict[str, Any]) -> str:
    add = "'rgrid nodes add' makes a token that one joins with"
    if fleet.get("reconciled_at"):  # a scheduler buys them
        return f"no nodes: servers are bought when jobs wait for them, and {add}"
    return f"no nodes yet: {add}"


def _state(node: dict[str, Any]) -> str:
    """The node's, or the server's while there is no node on it."""
    server = node["server"]
    before_or_after = server is not None and node["state"] in ("joining", "gone")
    return str(server["state"] if before_or_after else node["state"])


def _server(node: dict[str, Any]) -> str | None:
    server = node["server"]
    return None if server is None else f"{server['type']}@{server['location']}"


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
