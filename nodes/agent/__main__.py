"""The agent as a program of its own: the one file that nodes run (``python3 -m nodes.agent`` elsewhere).

Its settings are the environment's ``RGRID_*``; its log is one JSON object a line on standard error.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence

import structlog

from nodes.agent import systemd
from nodes.agent.config import ConfigError, from_environment
from nodes.agent.facts import agent_version
from nodes.agent.main import run

USAGE = 2


def main(arguments: Sequence[str] = ()) -> int:
    """Be a node until SIGTERM or SIGINT; returns the exit status. ``--version`` only says which release this is."""
    if list(arguments) == ["--version"]:
        sys.stdout.write(f"{agent_version()}\n")
        return 0
    if arguments:
        sys.stderr.write("the agent takes no arguments: its settings are RGRID_* variables\n")
        return USAGE
    try:
        config = from_environment()
    except ConfigError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return USAGE
    _log_as_json()
    return asyncio.run(run(config, ready=systemd.ready))


def _log_as_json() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
