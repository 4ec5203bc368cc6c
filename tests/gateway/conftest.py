"""The gateway in-process (``api``) and as a server (``listening``), over a real database and a real store."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from cryptography.fernet import Fernet

from gateway.api.table import ROUTES
from gateway.app import create_app
from gateway.routes import Route
from gateway.server import GatewayServer, listen
from gateway.services import Services, open_services
from gateway.settings import Settings
from tests.postgres import Postgres, free_port
from tests.s3 import S3Server

BOOTSTRAP_KEY = "bootstrap-key-for-tests-only"


def make_settings(database: str, s3: S3Server, **more: object) -> Settings:
    config = s3.config(bucket=f"t-{uuid4().hex}")
    values: dict[str, object] = {
        "database_url": database,
        "s3_endpoint": config.endpoint,
        "s3_bucket": config.bucket,
        "s3_access_key_id": config.access_key_id,
        "s3_secret_access_key": config.secret_access_key,
        "secret_key": Fernet.generate_key().decode(),
        "bootstrap_key": BOOTSTRAP_KEY,
        "port": free_port(),
    }
    return Settings.model_validate(values | more)


@dataclass
class Listening:
    port: int
    server: GatewayServer


@pytest.fixture
def settings(database: str, s3_server: S3Server) -> Settings:
    return make_settings(database, s3_server)


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings) as opened:
        yield opened


@asynccontextmanager
async def client_of(services: Services, key: str | None = BOOTSTRAP_KEY) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests reach the application without a network."""

    async def let_through(response: httpx.Response) -> None:
        # Tests look at the queue as it is a moment after the answer.
        await services.advancer.settled()

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(services)),
        base_url="http://gateway",
        headers={"Authorization": f"Bearer {key}"} if key else {},
        event_hooks={"response": [let_through]},
    ) as client:
        yield client


@pytest.fixture
async def api(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """An admin of project default."""
    async with client_of(services) as client:
        yield client


@pytest.fixture(scope="session")
async def shared_services(postgres: Postgres, template: str, s3_server: S3Server) -> AsyncIterator[Services]:
    """One instance for all tests that change nothing, or do not mind what others changed."""
    await postgres.execute(f"CREATE DATABASE shared_gateway TEMPLATE {template}")
    async with open_services(make_settings(postgres.url("shared_gateway"), s3_server)) as opened:
        yield opened


@pytest.fixture(scope="session")
async def shared_api(shared_services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(shared_services) as client:
        yield client


@asynccontextmanager
async def listening(
    services: Services, routes: Sequence[Route] = ROUTES, *, port: int = 0
) -> AsyncIterator[Listening]:
    """The gateway as a server, on a free port if none is given."""
    listener = listen("127.0.0.1", port)
    # As uvloop does, which serves outside of tests: without it each answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = GatewayServer(services, create_app(services, routes))
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        yield Listening(listener.getsockname()[1], server)
    finally:
        server.stop()
        await task
        listener.close()
        services.stopping.clear()
