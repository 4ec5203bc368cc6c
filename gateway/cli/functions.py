"""``rgrid apply`` and ``rgrid functions``: what can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import Failed, Refused
from gateway.cli.options import FunctionName, Json, ListsByDefault, connected
from gateway.cli.output import age, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

functions = typer.Typer(help="List, show, roll back and remove functions.", cls=ListsByDefault)

Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(apply)
    app.add_typer(functions, name="functions", rich_help_panel="Run")


@connected
def apply(
    api: Api,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", metavar="PATH", help="A manifest, a folder of them, or - for standard input."
        ),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[PATH...]", help="More of them.")] = None,
    as_json: Json = False,
) -> None:
    """Make functions out of manifests, or new versions of those that changed."""
    from gateway.cli.manifests import read_manifests

    paths = [*(files or ()), *(more or ())]
    if not paths:
        raise typer.BadParameter("name a manifest or a folder of them", param_hint="--file")
    manifests, passed_over = read_manifests(paths)
    for source in passed_over:
        note(f"{source}: no manifest, passed over")
    applied: list[dict[str, Any]] = []
    failures: list[str] = []
    for manifest in manifests:
        try:
            answer = api.put(
                f"/v1/functions/{manifest.name}", manifest.content, manifest.content_type
            )
        except Refused as refused:
            failures.append(f"{manifest.source}: {refused}")
            continue
        applied.append(answer)
        if not as_json:
            out(
                f"{answer['name']}  version {answer['version']}  {'changed' if answer['changed'] else 'unchanged'}"
            )
    if as_json:
        out_json({"data": applied})
    for failure in failures[:-1]:
        note(f"error: {failure}")
    if failures:
        raise Failed(failures[-1])


@functions.command("list")
@connected
def list_functions(api: Api, limit: Limit = 100, as_json: Json = False) -> None:
    """List functions, the newest first."""
    found = api.pages("/v1/functions", {}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("NAME", "VERSION", "UPDATED", "IMAGE", "DESCRIPTION"),
        (
            (one["name"], one["version"], age(one["updated_at"]), _image(one), one["description"])
            for one in found["data"]
        ),
        empty="no functions yet: make one with 'rgrid apply -f function.yaml'",
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
        (
            (one["version"], age(one["created_at"]), one["image"], one["image_digest"])
            for one in found["data"]
        ),
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
