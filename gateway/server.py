"""The gateway's process: opens what it needs, listens, serves until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import structlog
import uvicorn
from starlette.types import ASGIApp

from functions.errors import Unavailable
from gateway.app import create_app
from gateway.protocol import GatewayProtocol
from gateway.services import Services, open_services
from gateway.settings import Settings

log = structlog.get_logger(__name__)

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than the usual load balancer keeps a connection, so that the gateway never closes one just as a
request is on its way."""
GRACE_S = 5
"""What requests that are under way have, once the process is told to stop."""


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait for anybody.

    Raises ``Unavailable``, in one line, when the address is taken or the database or store is not there.
    """
    listener = listen(settings.host, settings.port)
    try:
        async with open_services(settings) as services:
            await _run(services, listener)
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ``Unavailable`` when the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unavailable(
            f"cannot listen on {host}:{port} ({reason}): stop what does, or set RGRID_HOST or RGRID_PORT"
        ) from error


async def _run(services: Services, listener: socket.socket) -> None:
    _raise_file_limit()
    server = GatewayServer(services, create_app(services))
    with _signals(server.stop):
        log.info("gateway ready", url=services.settings.base_url)
        await server.serve(sockets=[listener])
    log.info("gateway stopped")


class GatewayServer(uvicorn.Server):
    def __init__(self, services: Services, app: ASGIApp) -> None:
        # The app is given as an object: for an import string uvicorn puts the working directory on sys.path,
        # where users do keep a folder named `functions`.
        config = uvicorn.Config(
            app,
            http=GatewayProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            backlog=BACKLOG,
        )
        super().__init__(config)
        self._services = services

    def stop(self) -> None:
        """Take no more connections and end; long polls and streams answer at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._services.stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again after a clean stop, which a supervisor takes for a crash."""
        yield


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _raise_file_limit() -> None:
    """Each connection is a file; the soft limit of 1024 is there for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
