"""The commands that start RGrid's processes: all of them together, or one by one."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.output import note

DATA_DIR = "/var/lib/rgrid"
USAGE = 2


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Start")(up)
    for command in (gateway, scheduler, node, migrate):
        app.command(rich_help_panel="Processes")(command)


def up(
    data_dir: Annotated[
        str, typer.Option(envvar="RGRID_DATA_DIR", help="Where the database, objects and keys live.")
    ] = DATA_DIR,
    port: Annotated[
        int, typer.Option(envvar="RGRID_PORT", min=1, max=65535, help="Port of the gateway.")
    ] = 8080,
    host: Annotated[
        str, typer.Option(envvar="RGRID_HOST", help="Address that the gateway and the store listen on.")
    ] = "127.0.0.1",
    slots: Annotated[
        int | None,
        typer.Option(
            envvar="RGRID_SLOTS", min=1, max=1024, help="Jobs that run side by side. Default: one for each CPU."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of all processes.")] = False,
) -> None:
    """Run all of RGrid on this machine: PostgreSQL, S3, gateway, scheduler and one node. Needs Docker and root."""
    from gateway.cli.running import faults_of_up
    from gateway.embedded import become
    from gateway.embedded_settings import Options, cpus

    options = Options(data_dir=data_dir, host=host, port=port, slots=slots or cpus(), verbose=verbose)
    if wrong := faults_of_up(options):
        for fault in wrong:
            note(f"error: {fault}")
        raise typer.Exit(USAGE)
    become(options)


def gateway() -> None:
    """Run a gateway, from RGRID_* settings. Any number may run beside each other."""
    from gateway.cli.running import run_gateway

    raise typer.Exit(run_gateway())


def scheduler() -> None:
    """Run a scheduler, from RGRID_* settings. Any number may run beside each other; two are enough."""
    from gateway.cli.running import run_scheduler

    raise typer.Exit(run_scheduler())


def node(
    gateway: Annotated[str | None, typer.Option(help="URL of the gateway. [env: RGRID_GATEWAY_URL]")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Join token, for the first start in a data directory. [env: RGRID_JOIN_TOKEN]"),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Jobs that run side by side. Default: one for each CPU. [env: RGRID_SLOTS]"
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where the node keeps its credential and work. [env: RGRID_NODE_DIR]")
    ] = None,
) -> None:
    """Run this machine as a node. Needs Docker and root."""
    from gateway.cli.running import run_node

    given = {
        "RGRID_GATEWAY_URL": gateway,
        "RGRID_JOIN_TOKEN": token,
        "RGRID_SLOTS": None if slots is None else str(slots),
        "RGRID_NODE_DIR": data_dir,
    }
    raise typer.Exit(run_node({name: value for name, value in given.items() if value is not None}))


def migrate() -> None:
    """Bring the schema of RGRID_DATABASE_URL up to date. Safe to repeat, also from several machines at once."""
    from gateway.cli.running import run_migrate

    raise typer.Exit(run_migrate())
