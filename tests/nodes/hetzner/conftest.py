from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodes.hetzner.calls import Calls
from nodes.hetzner.provider import HetznerProvider
from tests.hetzner.server import Emulator
from tests.nodes.hetzner.orders import OWNER


def provider_of(
    cloud: Emulator, *, owner: str = OWNER, token: str | None = None, patience_s: float = 10
) -> HetznerProvider:
    """On the emulator's clock."""
    calls = Calls(
        token or cloud.token,
        endpoint=cloud.url,
        clock=cloud.clock.now,
        timeout_s=(5, patience_s),
        whole_s=3 * patience_s,
    )
    return HetznerProvider(calls, owner=owner)


@pytest.fixture
def cloud() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def hasty(cloud: Emulator) -> Iterator[HetznerProvider]:
    """One that does not wait for what never comes."""
    made = provider_of(cloud, patience_s=0.8)
    yield made
    made.close()


@pytest.fixture
def provider(cloud: Emulator) -> Iterator[HetznerProvider]:
    made = provider_of(cloud)
    yield made
    made.close()
