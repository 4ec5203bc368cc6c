"""``rgrid functions``: what can run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import FunctionName, Json, ListsByDefault, connected
from gateway.cli.output import age, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

functions = typer.Typer(help="List, show, roll back and remove functions.", cls=ListsByDefault)

Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")]


def label(values: list[str] | None) -> list[str]:
    for value in values or ():
        if not re.fullmatch(r"[^=,]+=[^,]+", value):
            raise typer.BadParameter(f"{value!r} does not read name=value")
    return values or []


def register(app: typer.Typer) -> None:
    app.add_typer(functions, name="functions", rich_help_panel="Run")
    for command in (pause, resume):
        app.command(rich_help_panel="Run")(command)


@functions.command("list")
@connected
def list_functions(
    api: Api,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="NAME=VALUE", callback=label, help="With this label. May be repeated."),
    ] = None,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List functions, the newest first."""
    found = api.pages("/v1/functions", {"label": ",".join(labels or ()) or None}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("NAME", "VERSION", "STATE", "UPDATED", "IMAGE", "DESCRIPTION"),
        (
            (
                one["name"],
                one["version"],
                "paused" if one["paused"] else "",
                age(one["updated_at"]),
                _image(one),
                one["description"],
            )
            for one in found["data"]
        ),
        empty="no such functions" if labels else "no functions yet: make one with 'rgrid apply -f function.yaml'",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@functions.command()
@connected
def get(api: Api, name: FunctionName, as_json: Json = False) -> None:
    """Print a function's manifest, which 'rgrid apply' takes as it is."""
    found = api.get(f"/v1/functions/{name}")
    if as_json:
        out_json(found)
        return
    import yaml

    digest = f", image {found['image_digest']}" if found.get("image_digest") else ""
    out(f"# version {found['version']}, updated {found['updated_at']}{digest}")
    out(yaml.safe_dump(found["manifest"], sort_keys=False, width=110), end="")


@functions.command()
@connected
def versions(api: Api, name: FunctionName, limit: Limit = 100, as_json: Json = False) -> None:
    """List a function's versions, the newest first."""
    found = api.pages(f"/v1/functions/{name}/versions", {}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("VERSION", "CREATED", "IMAGE", "DIGEST"),
        ((one["version"], age(one["created_at"]), one["image"], one["image_digest"]) for one in found["data"]),
    )


@functions.command()
@connected
def rollback(
    api: Api,
    name: FunctionName,
    version: Annotated[int, typer.Argument(min=1, max=2**31 - 1, help="The version to go back to.")],
    as_json: Json = False,
) -> None:
    """Make an earlier version the current one again."""
    answer = api.post(f"/v1/functions/{name}/rollback", {"version": version}, repeatable=True)
    if as_json:
        out_json(answer)
    else:
        out(f"{answer['name']}  version {answer['version']}")


@connected
def pause(api: Api, name: FunctionName, as_json: Json = False) -> None:
    """Let a function's jobs wait; those that run finish."""
    _switched(api.post(f"/v1/functions/{name}/pause", repeatable=True), as_json)


@connected
def resume(api: Api, name: FunctionName, as_json: Json = False) -> None:
    """Let the jobs of a paused function go on."""
    _switched(api.post(f"/v1/functions/{name}/resume", repeatable=True), as_json)


def _switched(function: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out_json(function)
    else:
        out(f"{function['name']}  {'paused' if function['paused'] else 'not paused'}")


@functions.command()
@connected
def rm(api: Api, name: FunctionName, as_json: Json = False) -> None:
    """Remove a function: queued jobs of it are cancelled, running ones finish, its history stays."""
    api.delete(f"/v1/functions/{name}")
    if not as_json:  # the API's answer has no body
        out(f"{name} removed")


def _image(function: dict[str, Any]) -> str:
    job = (function.get("manifest") or {}).get("spec", {}).get("job", {})
    return str(job.get("image", ""))
