"""``make bench``: what RGrid costs, beside what one would do without it, in one run of a few minutes.

Figures hold for the machine and the minute in which they were taken; the ratios say more. ``--save FILE`` keeps them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from tests.bench import deliveries, fleet, ingress, lists, noop, queue, schedules, webhooks
from tests.bench.rounds import Measured, machine, table
from tests.postgres import start_postgres
from tests.s3 import S3Server

PARTS = ("noop", "ingress", "webhooks", "queue", "schedules", "deliveries", "lists", "fleet")


async def run(parts: list[str], folder: Path) -> list[Measured]:
    for name in ("postgres", "s3", "noop", "ingress", "webhooks", "deliveries"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    postgres = start_postgres(folder / "postgres", "18", durable=True)
    s3 = S3Server(folder / "s3")
    s3.start()
    measured: list[Measured] = []
    try:
        for part in parts:
            if part == "noop":
                found = await noop.measure(folder / "noop", postgres, s3)
            elif part == "ingress":
                found = await ingress.measure(folder / "ingress", postgres, s3)
            elif part == "webhooks":
                found = await webhooks.measure(folder / "webhooks", postgres, s3)
            elif part == "schedules":
                found = [await schedules.measure(postgres)]
            elif part == "deliveries":
                found = await deliveries.measure(folder / "deliveries", postgres, s3)
            elif part == "lists":
                found = await lists.measure(postgres, s3)
            elif part == "fleet":
                found = [await fleet.measure(postgres)]
            else:
                found = [await queue.measure(postgres)]
            for each in found:
                print(table(each, base=next(iter(each.rounds[0]))) + "\n", flush=True)
            measured += found
    finally:
        s3.stop()
        postgres.stop()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every round to this file, as JSON")
    given = parser.parse_args()
    print(" ".join(f"{name} {value}," for name, value in machine().items()).rstrip(",") + "\n")
    with tempfile.TemporaryDirectory(prefix="rgrid-bench-", ignore_cleanup_errors=True) as folder:
        measured = asyncio.run(run(given.only or list(PARTS), Path(folder)))
    if given.save is not None:
        given.save.write_text(json.dumps({**machine(), "measured": [each.as_json() for each in measured]}, indent=1))


if __name__ == "__main__":
    main()
