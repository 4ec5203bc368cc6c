"""``rgrid batch`` and ``rgrid batches``: a job for each line of a file, and how far they are."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli.failures import Failed, Refused
from gateway.cli.options import FunctionName, Json, ListsByDefault, MaxCost, connected, header, plain_id
from gateway.cli.output import age, note, out, out_json, stderr_console, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cli.client import Api

batches = typer.Typer(help="List, show and cancel batches.", cls=ListsByDefault)

LARGEST = 10 * 1024 * 1024
POLL_S = 1.0
PATIENCE_S = 60.0
UNDONE = ("scheduled", "queued", "running")

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.", callback=plain_id)]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(batch)
    app.add_typer(batches, name="batches", rich_help_panel="Jobs")


@connected
def batch(
    api: Api,
    *,
    name: FunctionName,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="NDJSON, or a JSON array: each job's params. Or - for standard input."),
    ],
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait: print the batch's id.")] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", metavar="KEY", callback=header, help="The same key and file: the same batch."
        ),
    ] = None,
    callback_url: Annotated[
        str | None,
        typer.Option("--callback-url", metavar="URL", callback=header, help="Told when the last job has ended."),
    ] = None,
    max_cost: MaxCost = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, max=2**31 - 1, help="An earlier version of the function.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a function for each line of a file, all of them or none, and wait; exit 1 if a job did not succeed."""
    content = _content(file)
    of_lines = not content.lstrip().startswith(b"[")
    headers = {
        "Content-Type": "application/x-ndjson" if of_lines else "application/json",
        # Ours if the user has none, so that asking again after a lost answer never makes a second batch.
        "Idempotency-Key": idempotency_key or uuid4().hex,
        "X-Callback-Url": callback_url,
        "RGrid-Max-Cost": max_cost,
        "RGrid-Version": None if version is None else str(version),
    }
    given = {name: value for name, value in headers.items() if value is not None}
    try:
        made = api.post_bytes(f"/v1/functions/{name}/batch", content, headers=given)
    except Refused as refused:
        raise (_located(refused, str(file), content) if of_lines else refused) from None
    if detach:
        if as_json:
            out_json(made)
        else:
            out(made["id"])
        return
    done = _ended(api, made)
    if as_json:
        out_json(done)
    else:
        _show(done)
    _raise_unless_succeeded(done)


@batches.command("list")
@connected
def list_batches(
    api: Api,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List batches, the newest first."""
    found = api.pages("/v1/batches", {}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "FUNCTION", "STATUS", "CREATED", "JOBS", ""),
        (
            (one["id"], one["function"], one["status"], age(one["created_at"]), one["total"], _said(one["counts"]))
            for one in found["data"]
        ),
        empty="no batches yet",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@batches.command()
@connected
def get(api: Api, batch_id: BatchId, as_json: Json = False) -> None:
    """Show a batch: how many of its jobs are where."""
    found = api.get(f"/v1/batches/{batch_id}")
    if as_json:
        out_json(found)
    else:
        _show(found)


@batches.command()
@connected
def cancel(api: Api, batch_id: BatchId, as_json: Json = False) -> None:
    """Cancel those jobs of a batch that have not ended."""
    found = api.post(f"/v1/batches/{batch_id}/cancel", repeatable=True)
    if as_json:
        out_json(found)
    else:
        _show(found)


def _content(file: Path) -> bytes:
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(LARGEST + 1)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise Failed(f"{str(file)!r} is not a file's name") from None
    if len(content) > LARGEST:
        raise Failed(f"{file}: larger than {LARGEST} bytes, which no batch is: make several of it")
    if not content.strip():
        raise Failed(f"{file}: it is empty: a batch has at least one line of params")
    return content


def _located(refused: Refused, source: str, content: bytes) -> Failed:
    """The failure, with the lines of the file instead of the numbers of jobs."""
    lines = [number for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    said = []
    for pointer, message in refused.faults:
        found = re.fullmatch(r"/([0-9]{1,6})(/.*)?", pointer, re.DOTALL)
        if found is None or int(found[1]) >= len(lines):
            return refused
        said.append(f"{source}:{lines[int(found[1])]}: {refused.code}: {found[2] or ''}: {message}")
    if not said:
        return refused
    for line in said[:-1]:
        note(f"error: {line}")
    return Failed(f"{said[-1]} (no job was made)")


def _ended(api: Api, made: dict[str, Any]) -> dict[str, Any]:
    """The batch once its last job has ended. However the waiting ends, the jobs go on, and the user is told the id."""
    ways = f"'rgrid batches get {made['id']}' shows it, 'rgrid batches cancel {made['id']}' stops it"
    try:
        with _bar(made) as show:
            found = made
            # Its status follows a moment later, with the message about it.
            while _finished(found) < found["total"]:
                time.sleep(POLL_S)
                found = api.get(f"/v1/batches/{made['id']}", patience_s=PATIENCE_S)
                show(found)
    except KeyboardInterrupt:
        note(f"{made['id']} goes on: {ways}")
        raise typer.Exit(130) from None
    except Failed as failed:
        raise Failed(f"{failed} ({made['id']} goes on: {ways})") from None
    return found


@contextmanager
def _bar(made: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, and a word about the batch elsewhere."""
    if not sys.stderr.isatty():
        note(f"{made['id']}: {made['total']} jobs")
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as bars:
        task = bars.add_task(str(made["id"]), total=made["total"])

        def show(found: dict[str, Any]) -> None:
            bars.update(task, completed=_finished(found), description=f"{made['id']} {_said(found['counts'])}")

        show(made)
        yield show


def _finished(found: dict[str, Any]) -> int:
    return sum(count for status, count in (found["counts"] or {}).items() if status not in UNDONE)


def _show(found: dict[str, Any]) -> None:
    out(f"{found['id']}  {found['total']} jobs: {_said(found['counts'])}")


def _said(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{count} {status}" for status, count in (counts or {}).items() if count)


def _raise_unless_succeeded(done: dict[str, Any]) -> None:
    missed = done["total"] - done["counts"]["succeeded"]
    if missed:
        raise Failed(f"{missed} of {done['total']} jobs did not succeed: 'rgrid jobs --batch {done['id']}' lists them")
