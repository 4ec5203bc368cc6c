from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from nodes.agent.gateway_client import GatewayClient
from tests.nodes.agent.gateway import TestGateway


@pytest.fixture
def gateway() -> Iterator[TestGateway]:
    server = TestGateway()
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(gateway: TestGateway) -> AsyncIterator[GatewayClient]:
    opened = GatewayClient(gateway.url, gateway.credential())
    yield opened
    await opened.aclose()
