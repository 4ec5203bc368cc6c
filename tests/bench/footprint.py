"""``make footprint``: what ``rgrid up`` costs while nothing happens, and the agent's memory while it moves 2 GB.

Memory is the resident set (RSS), as ``ps`` shows it; pages that the processes share are counted once for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import httpx

from gateway.embedded_settings import Options
from tests.e2e.instance import KEY, clean_env, eventually
from tests.e2e.manifests import shell
from tests.images import build
from tests.postgres import free_port

IDLE_S = 60.0
OUTPUT_BYTES = 2 * 1024**3
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1024**2


def children_of(pid: int) -> list[int]:
    """The process and all that it started, by the process table."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def is_python(pid: int) -> bool:
    return "python" in Path(f"/proc/{pid}/exe").readlink().name


def rss_bytes(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def cpu_s(pids: list[int]) -> float:
    """User and system time of the processes so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def role(pid: int) -> str:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if "gateway.cli.running" in arguments:
        return arguments[arguments.index("gateway.cli.running") + 1]
    return "rgrid up" if "gateway.embedded" in arguments else Path(arguments[0]).name.split(":")[0]


class Up:
    """``rgrid up`` on a free port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        options = Options(str(folder / "data"), host="127.0.0.1", port=self.port, slots=2, verbose=False)
        command = [sys.executable, "-P", "-m", "gateway.embedded", json.dumps(asdict(options))]
        env = clean_env() | {"RGRID_BOOTSTRAP_KEY": KEY}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        self.api = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=300,
            trust_env=False,
        )  # fmt: skip

    async def ready(self) -> bool:
        assert self.process.poll() is None, "rgrid up ended"
        try:
            nodes = (await self.api.get("/v1/nodes")).json().get("data", [])
        except httpx.TransportError:
            return False
        return any(node["state"] == "ready" for node in nodes)

    async def stop(self) -> None:
        await self.api.aclose()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


async def idle(up: Up) -> None:
    await asyncio.sleep(10)  # the start's own work is over
    pids = children_of(up.process.pid)
    before, began_s = cpu_s(pids), time.monotonic()
    await asyncio.sleep(IDLE_S)
    used = (cpu_s(pids) - before) / (time.monotonic() - began_s)
    pythons = {role(pid): rss_bytes(pid) / MIB for pid in pids if is_python(pid)}
    print(f"idle for {IDLE_S:.0f} s: {used:.2%} of a core, all {len(pids)} processes together")
    for name, size in pythons.items():
        print(f"  {name:<12} {size:6.0f} MiB")
    print(f"  {'together':<12} {sum(pythons.values()):6.0f} MiB in Python processes")


async def transfer(up: Up) -> None:
    """The agent's memory while a job's output of 2 GB goes to the store."""
    big = shell(
        "big", build.busybox(), outputs=[{"path": "/out/big", "name": "big", "required": True}],
        job={"resources": {"cpu": 1, "memory": "256Mi", "disk": "3Gi"}, "timeout": "5m"},
    )  # fmt: skip
    (await up.api.put("/v1/functions/big", json=big)).raise_for_status()
    node = next(pid for pid in children_of(up.process.pid) if role(pid) == "node")
    before = rss_bytes(node)
    script = f"dd if=/dev/zero of=/out/big bs=1M count={OUTPUT_BYTES // MIB} 2>/dev/null"
    began_s = time.monotonic()
    job = (await up.api.post("/v1/functions/big/invoke", json={"script": script})).json()
    most = before
    while job["status"] not in ("succeeded", "failed", "timed_out"):
        job = (await up.api.get(f"/v1/jobs/{job['id']}")).json()
        most = max(most, rss_bytes(node))
        await asyncio.sleep(0.05)
    took_s = time.monotonic() - began_s
    assert job["status"] == "succeeded", job["error"]
    assert job["outputs"][0]["size"] == OUTPUT_BYTES
    more = (most - before) / MIB
    print(f"agent while it moves {OUTPUT_BYTES / 1024**3:.0f} GiB ({took_s:.0f} s): {more:.0f} MiB more than idle")


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rgrid-footprint-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        up = Up(Path(folder))
        try:
            await eventually(up.ready, 120)
            await idle(up)
            await transfer(up)
        finally:
            await up.stop()


if __name__ == "__main__":
    asyncio.run(main())
