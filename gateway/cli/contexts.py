"""``rgrid login`` and ``rgrid context``: which gateways this user has keys for, and which one is in use."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from gateway.cli import config
from gateway.cli.failures import Failed, Refused
from gateway.cli.options import Json, Key, ListsByDefault, Project, Url, general
from gateway.cli.output import note, out, out_json, table

context = typer.Typer(help="List, choose and remove saved gateways.", cls=ListsByDefault)


def saved_names(incomplete: str) -> list[str]:
    try:
        return [name for name in config.read(os.environ).saved if name.startswith(incomplete)]
    except Failed:
        return []


Name = Annotated[str, typer.Argument(help="The context's name.", autocompletion=saved_names)]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Set up")(login)
    app.add_typer(context, name="context", rich_help_panel="Set up")


def login(
    ctx: typer.Context,
    url: Url = None,
    key: Key = None,
    project: Project = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What to call the context. Default: the gateway's host and port."),
    ] = None,
) -> None:
    """Check an API key and save it with its gateway as the context in use.

    The key is asked for, or read from standard input: rgrid login --url URL < key.txt.
    """
    told = config.Flags(url, None, project).over(general(ctx)).over(config.from_environment(os.environ))
    address = config.checked_url(told.url or config.DEFAULT_URL)
    called = name or re.sub(r"[^A-Za-z0-9._-]", "-", urlsplit(address).netloc.strip("[]"))[:63]
    if not config.NAME.fullmatch(called):
        raise typer.BadParameter(
            "letters, digits, dots, dashes and underscores, at most 63", param_hint="--name"
        )
    given = key or general(ctx).key or _asked_key(address)
    wanted = config.Context(address, config.checked_key(given), told.project)
    from gateway.cli.client import Api

    with Api(wanted) as api:
        try:
            api.get("/v1/functions", {"limit": 1})
        except Refused as refused:
            # A key that may only invoke is a good key as well.
            if refused.status != 403:
                raise
    file = config.write(config.read(os.environ).adding(called, wanted), os.environ)
    note(f"logged in to {address}: context {called}, saved in {file}")


@context.command("list")
def list_contexts(as_json: Json = False) -> None:
    """List saved gateways; the one in use has a star. Keys are not shown."""
    contexts = config.read(os.environ)
    if as_json:
        out_json(
            {
                "data": [
                    {"name": name, "url": one.url, "project": one.project, "active": name == contexts.active}
                    for name, one in contexts.saved.items()
                ]
            }
        )
        return
    table(
        ("NAME", "URL", "PROJECT", "IN USE"),
        (
            (name, one.url, one.project, "*" if name == contexts.active else "")
            for name, one in contexts.saved.items()
        ),
        empty="no contexts yet: 'rgrid login --url URL' saves one",
    )


@context.command()
def use(name: Name) -> None:
    """Choose the gateway that commands talk to."""
    config.write(_known(name).using(name), os.environ)
    note(f"context {name} is in use")


@context.command()
def rm(name: Name) -> None:
    """Forget a gateway and its key. The key itself stays valid."""
    config.write(_known(name).without(name), os.environ)
    note(f"context {name} removed")


@context.command()
def show(
    ctx: typer.Context, url: Url = None, key: Key = None, project: Project = None, as_json: Json = False
) -> None:
    """Show which gateway commands talk to, after flags, RGRID_* and the context in use. The key is not shown."""
    target = config.target(config.Flags(url, key, project).over(general(ctx)), os.environ)
    shown = None if target.key is None else f"{target.key[:8]}…" if len(target.key) > 20 else "…"
    found = {"url": target.url, "key": shown, "project": target.project}
    if as_json:
        out_json(found)
        return
    for label, value in found.items():
        out(f"{label}: {value or 'none'}")


def _known(name: str) -> config.Contexts:
    contexts = config.read(os.environ)
    if name not in contexts.saved:
        known = ", ".join(contexts.saved) or "none: 'rgrid login --url URL' saves one"
        raise Failed(f"no context {name!r}; saved are: {known}")
    return contexts


def _asked_key(address: str) -> str:
    """From a prompt that does not echo, or from standard input."""
    if sys.stdin is not None and sys.stdin.isatty():
        given = typer.prompt(f"API key for {address}", hide_input=True, err=True)
    else:
        given = sys.stdin.readline() if sys.stdin is not None else ""
    if not given.strip():
        raise Failed("no key given: type it at the prompt, send it on standard input, or use --key")
    return str(given).strip()
