"""``python -m tests.bench.files``: 1 GB through ``/f/{project}/{function}``, in and out, and the gateway's memory meanwhile.

With ``rgrid up``: a real node copies the file in a container. The gateway's resident set is looked at every 20 ms; what
counts is the most of it above what it was before any file had gone through.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from tests.bench.footprint import MIB, Up, children_of, role, rss_bytes
from tests.e2e.instance import eventually
from tests.images import build

SIZE = 1024**3
PIECE = bytes(range(256)) * 1024
COPY = {
    "apiVersion": "rgrid/v1",
    "kind": "Function",
    "metadata": {"name": "copy"},
    "spec": {
        "params": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string"}}},
        "job": {
            "command": ["cp", "/in/file", "/out/file"],
            "resources": {"cpu": 1, "memory": "256Mi", "disk": "3Gi"},
            "files": {
                "inputs": [{"path": "/in/file", "url": "{{ params.file }}"}],
                "outputs": [{"path": "/out/file", "required": True}],
            },
        },
    },
}


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // len(PIECE)):
        yield PIECE


async def through(up: Up, size: int) -> float:
    """Seconds from the first byte out to the last byte back."""
    began_s = time.monotonic()
    digest, got = hashlib.sha256(), 0
    headers = {"Content-Length": str(size)}
    async with up.api.stream("POST", "/f/default/copy?wait=300", content=pieces(size), headers=headers) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code} {await answer.aread()!r}")
        async for chunk in answer.aiter_raw():
            digest.update(chunk)
            got += len(chunk)
    expected = hashlib.sha256()
    for _ in range(size // len(PIECE)):
        expected.update(PIECE)
    assert (got, digest.hexdigest()) == (size, expected.hexdigest())
    return time.monotonic() - began_s


async def measure(up: Up) -> None:
    image = build.busybox()
    job = {**COPY["spec"]["job"], "image": image}  # type: ignore[index,dict-item]
    manifest = {**COPY, "spec": {**COPY["spec"], "job": job}}  # type: ignore[dict-item]
    (await up.api.put("/v1/functions/copy", json=manifest)).raise_for_status()
    gateway = next(pid for pid in children_of(up.process.pid) if role(pid) == "gateway")
    before = most = rss_bytes(gateway)
    running = asyncio.ensure_future(through(up, SIZE))
    while not running.done():
        most = max(most, rss_bytes(gateway))
        await asyncio.sleep(0.02)
    print(
        f"1 GiB in and out in {running.result():.0f} s; gateway {before / MIB:.0f} MiB before,"
        f" {(most - before) / MIB:.0f} MiB more at most"
    )


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rgrid-files-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        up = Up(Path(folder))
        try:
            await eventually(up.ready, 120)
            await measure(up)
        except httpx.TransportError as error:
            raise SystemExit(f"the gateway went away: {error!r}") from error
        finally:
            await up.stop()


if __name__ == "__main__":
    asyncio.run(main())
