"""``rgrid``: the commands, and what becomes of their failures: one line on stderr and an exit status.

Modules of commands import what they need to be declared; heavier things are imported when a command runs, so that
``rgrid --version`` and ``rgrid node`` start fast and small.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from functions.errors import RGridError
from gateway.cli import (
    apply,
    batch,
    callbacks,
    config,
    contexts,
    deliveries,
    demo,
    deploy,
    doctor,
    files,
    functions,
    invoke,
    jobs,
    logs,
    new,
    nodes,
    oneoff,
    processes,
    quote,
    repro,
    schedules,
    schema,
    secrets,
    simulate,
    usage,
    webhook,
    webhooks,
)
from gateway.cli.failures import Failed, PipeClosed, in_one_line, problem_line
from gateway.cli.options import Key, Project, Url
from gateway.cli.output import note

FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

# What the parser raises: BadParameter is a usage error, and that is an error with a message of its own.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="rgrid",
    help="Run container jobs as functions: on this machine, or on nodes that exist only while there is work.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rgrid {version('rgrid')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    url: Url = None,
    key: Key = None,
    project: Project = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = config.Flags(url, key, project)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


# In the order that --help lists them.
for _module in (
    processes, demo, doctor,
    new, deploy, apply, schema, functions, webhooks, webhook, schedules, secrets, invoke, oneoff, batch, quote,
    jobs, logs, files, repro, callbacks, deliveries, nodes, usage, simulate, contexts,
):  # fmt: skip
    _module.register(app)


def run(arguments: Sequence[str]) -> int:
    """The exit status of ``rgrid arguments…``. Nothing but a fault of the shell completion's machinery comes out."""
    status = _run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = PIPE_CLOSED
    if status == PIPE_CLOSED:
        # What is still buffered would be written at exit, and complained about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _run(arguments: Sequence[str]) -> int:
    try:
        status = app(args=list(arguments), prog_name="rgrid", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (PipeClosed, BrokenPipeError):
        return PIPE_CLOSED
    except SystemExit as ended:
        status = ended.code
    except Exception as error:
        return _failure(error)
    return status if isinstance(status, int) else 0


def _failure(error: Exception) -> int:
    """Say what went wrong, in one line; its exit status."""
    if isinstance(error, UsageError):
        return _usage(error)
    if isinstance(error, Failed):
        return _error(str(error))
    if isinstance(error, RGridError):
        return _error(_said(error))
    if os.environ.get("RGRID_DEBUG"):
        raise error
    return _error(f"internal: {type(error).__name__}: {error} (RGRID_DEBUG=1 shows where)")


def main() -> None:
    """The entry point of the command ``rgrid``."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def _usage(error: Exception) -> int:
    format_message = getattr(error, "format_message", None)
    # Without a subcommand there is nothing to quote: typer has printed the help.
    said = (format_message() if format_message else str(error)) or "a command is missing"
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else "rgrid"
    _error(f"{said.rstrip('.')}: see '{command} --help'")
    return USAGE


def _said(error: RGridError) -> str:
    faults = [{"pointer": fault.pointer, "message": fault.message} for fault in error.errors]
    return problem_line({"code": error.code, "detail": error.message, "errors": faults})


def _error(message: str) -> int:
    note(f"error: {in_one_line(message)}")
    return FAILED
