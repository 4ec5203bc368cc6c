"""Receivers of callbacks in a process of their own: ``python -m tests.bench.receivers NUMBER``.

Prints its ports as JSON: receivers that answer 200 at once, and last one that never answers. For each line that it reads it
prints when (``time.monotonic()``) it was first sent each job, and forgets that.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

arrived: dict[str, float] = {}


class Receiver(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:")
        if len(body) < length:
            return
        at = time.monotonic()
        arrived.setdefault(json.loads(body)["data"]["id"], at)
        self._transport.write(ANSWER)
        self._transport.close()


async def main(number: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Receiver, "127.0.0.1", 0, backlog=1024) for _ in range(number)]
    servers.append(await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=1024))
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(arrived), flush=True)
        arrived.clear()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
