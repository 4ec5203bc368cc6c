"""``rgrid run``: a command in an image, once, without a function."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import Json, MaxCost, connected
from gateway.cli.output import log_text, note, out

if TYPE_CHECKING:
    from gateway.cli.client import Api

ALL_FILES = "/out/**"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(run)


@connected
def run(
    api: Api,
    *,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image, as a manifest names it.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- CMD...]", help="What runs in it. Default: the image's own.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="PATH", help="Upload a file: it is /in/NAME there. May be repeated."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable. May be repeated.")
    ] = None,
    secrets: Annotated[
        list[str] | None, typer.Option("--secret", metavar="NAME", help="A secret, as a variable. May be repeated.")
    ] = None,
    pull_secret: Annotated[
        str | None, typer.Option("--pull-secret", metavar="NAME", help="The secret that logs in to the registry.")
    ] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", metavar="CPU", help="For instance 500m or 2.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="For instance 512Mi.")] = None,
    disk: Annotated[str | None, typer.Option("--disk", metavar="SIZE", help="For instance 2Gi.")] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="DURATION", help="For instance 10m.")] = None,
    max_cost: MaxCost = None,
    network: Annotated[bool, typer.Option("--network", help="Let it reach the internet.")] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Download what it leaves in /out to this folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With -o: overwrite files that are there already.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with the command's own exit status if it is not 0.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait: print the job's id.")] = False,
    as_json: Json = False,
) -> None:
    """Run a command in an image and print what it prints: 'rgrid run busybox:1 -- echo hello'.

    It waits for the end, and exits with 1 if the job does not succeed. With --json its output goes to stderr.
    """
    from gateway.cli.invoke import ended, show_ended, started

    if detach and (directory is not None or exit_code):
        raise typer.BadParameter("not with -o or --exit-code, which wait", param_hint="--detach")
    resources = {"cpu": cpu, "memory": memory, "disk": disk}
    spec = {
        "image": image,
        "pullSecret": pull_secret,
        "secrets": list(secrets or ()) or None,
        "resources": {name: value for name, value in resources.items() if value is not None} or None,
        "timeout": timeout,
        "network": network or None,
    }
    job: dict[str, Any] = {name: value for name, value in spec.items() if value is not None}
    plain = _Plain()
    if command:
        job["command"] = [plain.text(word) for word in command]
    if env:
        job["env"] = {name: plain.text(value) for name, value in (_variable(pair) for pair in env)}
    outputs = [{"path": ALL_FILES, "name": "out"}] if directory is not None else []
    named = _named(files or ())
    job["files"] = {"inputs": [_input(api, name, path) for name, path in named], "outputs": outputs}
    body = {"job": job, "params": plain.params}
    # A key of ours, so that asking again after a lost answer never makes a second job.
    headers = {"Idempotency-Key": uuid4().hex} | ({} if max_cost is None else {"RGrid-Max-Cost": max_cost})
    made = api.post("/v1/jobs", body, headers=headers, repeatable=True)
    if detach:
        started(made, as_json)
        return
    done = ended(api, made, True, None) if as_json else _printed(api, made)
    code = done["exit_code"]
    if exit_code and done["status"] == "failed" and code and 0 < code < 256:
        note(f"{done['id']}: exit status {code}")
        raise typer.Exit(code)
    if as_json or done["status"] != "succeeded":
        show_ended(api, done, directory, force=force, as_json=as_json)
    elif directory is not None:
        from gateway.cli.downloads import Existing, save_outputs

        for saved in save_outputs(api, done, directory, Existing.OVERWRITE if force else Existing.KEEP):
            note(f"saved {saved.path}")


class _Plain:
    """Texts that are meant as they are: one with ``{{`` in it becomes a param, or it would be a template."""

    def __init__(self) -> None:
        self.params: dict[str, str] = {}

    def text(self, text: str) -> str:
        if "{{" not in text:
            return text
        name = f"text{len(self.params)}"
        self.params[name] = text
        return f"{{{{ params.{name} }}}}"


def _variable(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise typer.BadParameter(f"{pair!r} does not read NAME=value", param_hint="--env")
    return name, value


def _named(files: Sequence[Path]) -> list[tuple[str, Path]]:
    """Each file with its name below /in; said before anything is sent."""
    found: dict[str, Path] = {}
    for path in files:
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--file") from None
        except ValueError:  # a NUL in the name
            raise typer.BadParameter(f"{str(path)!r} is not a file's name", param_hint="--file") from None
        if path.name in found:
            raise typer.BadParameter(f"two files would be /in/{path.name}", param_hint="--file")
        found[path.name] = path
    return list(found.items())


def _input(api: Api, name: str, path: Path) -> dict[str, Any]:
    from gateway.cli.uploads import upload

    return {"path": f"/in/{name}", "url": upload(api, path).uri}


def _printed(api: Api, made: dict[str, Any]) -> dict[str, Any]:
    """The finished job, once all of its output is on stdout."""
    from gateway.cli.sse import stream
    from gateway.cli.waiting import wait

    ways = f"'rgrid logs -f {made['id']}' follows it, 'rgrid cancel {made['id']}' stops it"
    try:
        for event in stream(api, f"/v1/jobs/{made['id']}/logs", {"follow": "true"}):
            if event.kind == "log":
                out(log_text(event.data, sys.stdout))
        return wait(api, made["id"])
    except KeyboardInterrupt:
        note(f"{made['id']} goes on: {ways}")
        raise typer.Exit(130) from None
    except Failed as failed:
        raise Failed(f"{failed} ({made['id']} goes on: {ways})") from None
