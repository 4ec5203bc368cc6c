"""What jobs try with secrets (SECURITY §1.7, S39 and S85): those of others, and their own in their log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import docker_works
from tests.images.build import busybox
from tests.nodes.agent.gateway import TestGateway
from tests.nodes.agent.node import node
from tests.nodes.agent.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]

SCAN = r"""
env
cat /proc/*/environ /proc/*/cmdline | tr '\0' '\n'
find / -xdev -type f -size -64k ! -path '/proc/*' ! -path '/sys/*' ! -path '/bin/*' -exec cat {} + 2>/dev/null
ls -lR /in /out /tmp /run /var /etc /root /home
"""

# Docker reads two streams in an order of its own.
PRINT = r"""
exec 2>&1
echo "env: $TOKEN"
env
printf '%s' "$TOKEN" >&2
printf '\n'
half=${#TOKEN}; half=$((half / 2))
printf '%s' "$(printf '%s' "$TOKEN" | head -c $half)"
sleep 0.5
printf '%s' "$(printf '%s' "$TOKEN" | tail -c +$((half + 1)))"
echo " end"
printf '%s' "$SHORT"
"""


@pytest.fixture
def gateway() -> Iterator[TestGateway]:
    server = TestGateway(lease_s=15)
    server.start()
    yield server
    server.stop()


async def test_a_job_finds_no_secret_of_the_one_beside_it(gateway: TestGateway, tmp_path: Path) -> None:
    canary, login = f"canary-{uuid4().hex}", f"ci:login-{uuid4().hex}"
    keeper = gateway.add(
        busybox(), "/bin/sh", "-c", "test ${#TOKEN} = 39 && echo begun; while :; do sleep 0.1; done",
        secrets={"TOKEN": canary},
    )  # fmt: skip
    keeper.lease = keeper.lease.model_copy(
        update={"image": keeper.lease.image.model_copy(update={"login": login})}
    )
    async with node(gateway, tmp_path, slots=2) as made:
        await until(lambda: b"begun" in keeper.log)
        scanner = gateway.add(busybox(), "/bin/sh", "-c", SCAN)
        await until(lambda: scanner.report is not None, 20)
        assert b"RGRID_JOB_ID" in scanner.log and b"/bin/sh" in scanner.log
        assert canary.encode() not in scanner.log
        # Nor does the node write it anywhere.
        files = [path.read_text() for path in (tmp_path / "leases").iterdir()]
        assert files and not any(canary in text or login in text for text in files)
        keeper.cancel = True
        await until(lambda: keeper.report is not None)
        await made.drained()


async def test_what_a_job_prints_of_its_own_secrets_is_masked(gateway: TestGateway, tmp_path: Path) -> None:
    canary = f"canary-{uuid4().hex}"
    async with node(gateway, tmp_path) as made:
        job = gateway.add(busybox(), "/bin/sh", "-c", PRINT, secrets={"TOKEN": canary, "SHORT": "abc"})
        await until(lambda: job.report is not None, 20)
        await made.drained()
    assert canary.encode() not in job.log
    assert b"env: ***\n" in job.log and b"TOKEN=***\n" in job.log and b"*** end\n" in job.log
    assert job.log.count(b"***") == 4
    assert job.log.endswith(b"abc"), "too short to be told from other text"
