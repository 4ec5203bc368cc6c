"""One instance for all end-to-end tests; what it wrote is shown when one of them fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator

import pytest

from tests.e2e.instance import Instance, instance_folder, running_instance
from tests.e2e.receiver import Receiver, receiving
from tests.images import build
from tests.postgres import Postgres
from tests.s3 import S3Server

SLOTS = 8


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Instance):
                report.sections += [(f"log of {name}", each.tail(40)) for name, each in value.processes.items()]
    return report


@pytest.fixture(scope="package")
async def instance(
    request: pytest.FixtureRequest, postgres: Postgres, s3_server: S3Server
) -> AsyncIterator[Instance]:
    with instance_folder(request, "e2e") as folder:
        async with running_instance(folder, postgres, s3_server, slots=SLOTS) as running:
            yield running


@pytest.fixture(scope="package")
def package_receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def receiver(package_receiver: Receiver) -> Receiver:
    """The user's server, with an empty ledger."""
    package_receiver.answers.clear()
    package_receiver.callbacks.clear()
    package_receiver.files.clear()
    return package_receiver


@pytest.fixture(scope="session")
def busybox() -> str:
    return build.busybox()
