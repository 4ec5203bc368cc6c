"""The processes of RGrid, each as one function that reads its settings, runs, and returns an exit status.

The commands of ``rgrid`` call these; ``rgrid up`` starts them as ``python -P -m gateway.cli.running <name>``,
without the command line's imports. Imports stand inside, so that an agent never loads a database driver, nor
a gateway Docker's."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

    from gateway.embedded_settings import Options
    from gateway.settings import Settings

FAILED, USAGE = 1, 2


def run_gateway() -> int:
    """Serve until SIGTERM or SIGINT."""
    from gateway.server import serve

    return _with_settings(serve)


def run_scheduler() -> int:
    """Run the rounds until SIGTERM or SIGINT."""
    from gateway.scheduling import serve_scheduler

    return _with_settings(serve_scheduler, lambda settings: settings.lacks_to_rent)


def run_node(overrides: Mapping[str, str] | None = None) -> int:
    """Be a node until SIGTERM or SIGINT. ``overrides`` are RGRID_* variables that go before the
    environment's."""
    from gateway.logging import configure_logging
    from nodes.agent.config import ConfigError, from_environment
    from nodes.agent.main import run

    try:
        config = from_environment({**os.environ, **(overrides or {})})
    except ConfigError as error:
        return _complain(USAGE, str(error))
    configure_logging()
    return asyncio.run(run(config))


def clear_node() -> int:
    """Remove what a node that was killed left on this machine; its settings are the environment's."""
    from nodes.agent.config import from_environment
    from nodes.agent.main import StartError, clear

    try:
        asyncio.run(clear(from_environment()))
    except StartError as error:
        return _complain(FAILED, str(error))
    return 0


def run_migrate() -> int:
    """Bring the schema of ``RGRID_DATABASE_URL`` up to date and print what ran."""
    import asyncpg

    from functions.errors import RGridError
    from gateway.database import migrate

    if not (url := os.environ.get("RGRID_DATABASE_URL")):
        return _complain(USAGE, "RGRID_DATABASE_URL is missing: PostgreSQL 14 to 18, as a postgresql:// URL")

    async def bring_up_to_date() -> list[str]:
        conn = await asyncpg.connect(url, timeout=10)
        try:
            return await migrate(conn)
        finally:
            await conn.close(timeout=5)

    try:
        ran = asyncio.run(bring_up_to_date())
    except RGridError as error:
        return _complain(FAILED, error.message)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError, TimeoutError) as error:
        return _complain(FAILED, f"PostgreSQL does not answer: {error or type(error).__name__}")
    print("\n".join(f"applied {name}" for name in ran) or "the schema is up to date")
    return 0


def run_reseal() -> int:
    """Seal everything in ``RGRID_DATABASE_URL`` with the first of ``RGRID_SECRET_KEY`` and print how much that was."""
    import asyncpg

    from functions.errors import RGridError
    from functions.sealing import Sealer
    from gateway.database import open_pool
    from gateway.resealing import Resealed, reseal

    url, keys = os.environ.get("RGRID_DATABASE_URL"), os.environ.get("RGRID_SECRET_KEY")
    if not url or not keys:
        missing = "RGRID_DATABASE_URL" if not url else "RGRID_SECRET_KEY"
        return _complain(USAGE, f"{missing} is missing: this runs with the settings of the gateway")

    async def seal_again() -> Resealed:
        sealer = Sealer(keys)
        pool = await open_pool(url)
        try:
            return await reseal(pool, sealer)
        finally:
            pool.terminate()

    try:
        done = asyncio.run(seal_again())
    except RGridError as error:
        return _complain(FAILED, error.message)
    except asyncpg.PostgresError as error:
        return _complain(FAILED, f"PostgreSQL refuses: {error}")
    print(f"sealed with the first key now: {done.secrets} secret(s), {done.callback_secrets} callback secret(s)")
    if done.closed:
        return _complain(FAILED, f"no key opens {', '.join(done.closed[:20])}: is an old key missing?")
    return 0


def _with_settings(
    serve: Callable[[Settings], Awaitable[None]], lacks: Callable[[Settings], list[str]] = lambda _: []
) -> int:
    import uvloop
    from pydantic import ValidationError

    from functions.errors import RGridError
    from gateway.logging import configure_logging
    from gateway.settings import Settings

    try:
        settings = Settings()
    except ValidationError as error:
        return _complain(USAGE, *faults(error))
    if missing := lacks(settings):
        return _complain(USAGE, *missing)

    async def run() -> None:
        await serve(settings)

    configure_logging()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except RGridError as error:
        return _complain(FAILED, error.message)
    return 0


def faults_of_up(options: Options) -> list[str]:
    """What is wrong with the environment that ``rgrid up`` would give its servers: said before anything starts."""
    from pydantic import ValidationError

    from gateway import embedded_settings
    from gateway.embedded_folder import Keys
    from gateway.settings import Settings

    keys = Keys(secret_key="", s3_key_id="", s3_secret="", s3_port=1, api_key="x" * 24)
    env = embedded_settings.for_servers(
        os.environ, options, keys, database_url="", s3_endpoint="", memory_bytes=options.slots
    )
    given = {name.removeprefix("RGRID_").lower(): value for name, value in env.items() if name.startswith("RGRID_")}
    try:
        Settings.model_validate(given)
    except ValidationError as error:
        return faults(error)
    return []


def faults(error: ValidationError) -> list[str]:
    """One line for each wrong or missing setting, with the variable's name and never its value."""
    lines = []
    for fault in error.errors(include_input=False, include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:  # a rule between several: its message names them
            lines.append(message)
        elif fault["type"] == "missing":
            lines.append(f"RGRID_{str(fault['loc'][0]).upper()} is missing")
        else:
            lines.append(f"RGRID_{str(fault['loc'][0]).upper()}: {message[:1].lower()}{message[1:]}")
    return lines


def _complain(status: int, *lines: str) -> int:
    for line in lines:
        print(" ".join(line.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    called = {"gateway": run_gateway, "scheduler": run_scheduler, "node": run_node, "clear-node": clear_node}
    sys.exit(called[sys.argv[1]]())
