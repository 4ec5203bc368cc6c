from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from functions.db import Pool
from tests.hetzner.server import Emulator
from tests.nodes.balance import check_books
from tests.nodes.fleets import Clouded, Machines, make_clouded


@pytest.fixture
async def clouded(pool: Pool) -> AsyncIterator[Clouded]:
    machines = Machines()
    with Emulator(machines=machines) as cloud:
        made = await make_clouded(cloud, pool, machines)
        yield made
        await made.watch.check()
        await made.watch.check_words()
        await check_books(cloud, pool, strangers=made.watch.strangers)
        made.close()
