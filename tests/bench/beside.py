"""``python -m tests.bench.beside DIR``: one gateway's invoke, beside that of the checkout in DIR.

Both run on one durable PostgreSQL and take turns; what counts are the ratios of each round. ``DIR`` is an earlier
release: ``git worktree add DIR COMMIT``. Its code runs with this checkout's packages. The third party is this
checkout's invoke of a function that uses all of its queue's keys.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bench.footprint import children_of
from tests.bench.ingress import BODY, FUNCTION, run_load
from tests.bench.load import Load
from tests.bench.rounds import Measured, machine, table
from tests.e2e.instance import KEY, Instance
from tests.postgres import Postgres, start_postgres
from tests.s3 import S3Server

WARM_S, ROUND_S = 2.0, 0.6
"""Short rounds: what else the machine does falls on all parties alike."""
BEFORE, NOW, ALL = "the other checkout", "this one", "this one, every key of queue"


def everything() -> dict[str, Any]:
    function: dict[str, Any] = copy.deepcopy(FUNCTION)
    function["metadata"] = {"name": "everything", "labels": {"team": "bench"}}
    key = "{{ params.width }}"
    function["spec"] |= {
        "retry": {"attempts": 3, "on": ["error", "timeout", "oom", "exit:75"]},
        "queue": {
            "priority": "60s",
            "ttl": "24h",
            "concurrency": {"limit": 1000, "perKey": 500, "key": key},
            "rate": {"limit": 1000, "per": "1m", "key": key},
        },
        "callbacks": [{"function": "noop", "events": ["job.succeeded"], "params": {"text": "x"}}],
        "retention": {"jobs": "30d", "artifacts": "7d", "logs": "7d"},
    }
    return function


async def measure(folder: Path, postgres: Postgres, s3: S3Server, given: argparse.Namespace) -> list[Measured]:
    instances = {}
    for name, settings in (("before", {"PYTHONPATH": str(given.other.resolve())}), ("now", {})):
        await postgres.execute(f"CREATE DATABASE bench_{name}")
        (folder / name).mkdir()
        instances[name] = Instance(folder / name, postgres, s3, postgres.url(f"bench_{name}"), settings)
    try:
        for instance in instances.values():
            instance.add_process("gateway", instance.server_env())
            await instance.ready()
            await instance.apply(FUNCTION)
        await instances["now"].apply(everything())
        parties = {
            BEFORE: (instances["before"], "noop"),
            NOW: (instances["now"], "noop"),
            ALL: (instances["now"], "everything"),
        }
        return [each for connections in given.connections for each in await _rounds(parties, connections, given.rounds)]
    finally:
        for instance in instances.values():
            await instance.close()


async def _rounds(parties: dict[str, tuple[Instance, str]], connections: int, rounds: int) -> list[Measured]:
    rate = Measured(f"202s with {connections} connections", "requests/s")
    p50 = Measured(f"p50 of the same, {connections} connections", "ms")
    p99 = Measured(f"p99 of the same, {connections} connections", "ms")
    cpu = Measured(f"processor time of the gateway for each of the same, {connections} connections", "ms")
    database = Measured(f"processor time of the database for each of the same, {connections} connections", "ms")
    for number in range(rounds + 1):
        answers, cpu_ms, database_ms = {}, {}, {}
        names = list(parties) if number % 2 else list(parties)[::-1]
        for name in names:
            instance, function = parties[name]
            path, headers = f"/v1/functions/{function}/invoke", {"Authorization": f"Bearer {KEY}"}
            # The first round warms all of them up and is not counted.
            seconds = ROUND_S if number else WARM_S
            load = Load(instance.port, path, headers, BODY, connections, seconds, "Idempotency-Key")
            gateway, backends = instance.processes["gateway"].pid, children_of(postmaster(instance))
            before_s, database_s = cpu_s([gateway]), cpu_s(backends)
            answers[name] = await run_load(load)
            thousandth = answers[name].accepted_per_s * seconds / 1000
            cpu_ms[name] = (cpu_s([gateway]) - before_s) / thousandth
            database_ms[name] = (cpu_s(backends) - database_s) / thousandth
            assert answers[name].refused == 0, f"{name} refused {answers[name].refused} requests"
        if number:
            cpu.rounds.append(cpu_ms)
            database.rounds.append(database_ms)
            for measured, field in ((rate, "accepted_per_s"), (p50, "p50_ms"), (p99, "p99_ms")):
                measured.rounds.append({name: getattr(answers[name], field) for name in parties})
    return [rate, p50, p99, cpu, database]


def postmaster(instance: Instance) -> int:
    return int((instance.postgres.folder / "data/postmaster.pid").read_text().split()[0])


def cpu_s(processes: Iterable[int]) -> float:
    """Processor time that they have used. The load of the machine does not change it by much."""
    ticks = 0
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):  # a backend that has ended
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.beside", description=__doc__)
    parser.add_argument("other", type=Path, metavar="DIR", help="the other checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    given = parser.parse_args()
    print(" ".join(f"{name} {value}," for name, value in machine().items()).rstrip(",") + "\n")
    with tempfile.TemporaryDirectory(prefix="rgrid-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        for part in ("postgres", "s3"):
            (folder / part).mkdir()
        postgres = start_postgres(folder / "postgres", "18", durable=True)
        s3 = S3Server(folder / "s3")
        s3.start()
        try:
            for each in asyncio.run(measure(folder, postgres, s3, given)):
                print(table(each, base=BEFORE) + "\n", flush=True)
        finally:
            s3.stop()
            postgres.stop()


if __name__ == "__main__":
    main()
