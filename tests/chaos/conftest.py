"""An instance whose database, store and processes may be killed, with leases short enough to watch them run out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.e2e.conftest import busybox, package_receiver, pytest_runtest_makereport, receiver
from tests.e2e.instance import Instance, instance_folder, running_instance
from tests.postgres import start_postgres
from tests.s3 import S3Server

__all__ = ["busybox", "package_receiver", "pytest_runtest_makereport", "receiver"]

SLOTS = 20
LEASE_S, HEARTBEAT_S = 4.0, 1.0


@pytest.fixture(scope="package")
async def fragile(request: pytest.FixtureRequest) -> AsyncIterator[Instance]:
    """One node with 20 slots; a lease runs out after 4 s."""
    settings = {"RGRID_LEASE_S": str(LEASE_S), "RGRID_HEARTBEAT_S": str(HEARTBEAT_S)}
    with instance_folder(request, "chaos") as folder:
        (folder / "postgres").mkdir()
        (folder / "s3").mkdir()
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        postgres, s3 = start_postgres(folder / "postgres", "18"), S3Server(folder / "s3")
        s3.start()
        try:
            async with running_instance(folder, postgres, s3, slots=SLOTS, settings=settings) as running:
                yield running
        finally:
            s3.stop()
            postgres.stop()
