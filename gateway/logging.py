"""Where log lines go: standard error, one JSON object a line, or readable text on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(*, as_json: bool | None = None, level: int = logging.INFO) -> None:
    """Send our own events and those of libraries to standard error. Call it once, at start.

    ``as_json`` None: text on a terminal, JSON for a log collector.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))  # libraries: only what somebody should look into
    # While the database is away its pool would print a traceback every minute; whoever needs a connection says so.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
