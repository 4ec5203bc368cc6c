"""A closed loop of POSTs over a few kept-alive connections: ``python -m tests.bench.load`` with a ``Load`` as JSON.

Runs in a process of its own. As little Python for each request as will do, since it shares the machine with the server.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

from tests.bench.rounds import percentile


@dataclass(frozen=True)
class Load:
    """``headers`` go with every request; ``key_header`` gets another value each time."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    connections: int
    seconds: float
    key_header: str | None = None


@dataclass(frozen=True)
class Answered:
    """Only 202 counts as accepted."""

    accepted_per_s: float
    p50_ms: float
    p99_ms: float
    refused: int


class Connection(asyncio.Protocol):
    def __init__(self, load: Load, number: int, until_s: float, done: asyncio.Event) -> None:
        head = [f"POST {load.path} HTTP/1.1", f"Host: 127.0.0.1:{load.port}", f"Content-Length: {len(load.body)}"]
        head += ["Content-Type: application/json", *(f"{name}: {value}" for name, value in load.headers.items())]
        self._head = "\r\n".join(head).encode()
        self._body = b"\r\n\r\n" + load.body.encode()
        self._key = None if load.key_header is None else f"\r\n{load.key_header}: {time.time_ns()}-{number}-".encode()
        self._until_s, self._done = until_s, done
        self._buffer = b""
        self._sent = 0
        self.times: list[float] = []
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._send()

    def _send(self) -> None:
        self._sent += 1
        key = b"" if self._key is None else self._key + str(self._sent).encode()
        self._began_s = time.perf_counter()
        self._transport.write(self._head + key + self._body)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        if self._buffer.startswith(b"HTTP/1.1 202"):
            self.times.append(time.perf_counter() - self._began_s)
        else:
            self.refused += 1
        self._buffer = b""
        if time.perf_counter() < self._until_s:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


async def run(load: Load) -> Answered:
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    connections = []
    for number in range(load.connections):
        done = asyncio.Event()
        protocol = Connection(load, number, began_s + load.seconds, done)
        await loop.create_connection(lambda p=protocol: p, "127.0.0.1", load.port)  # type: ignore[misc]
        connections.append((protocol, done))
    for _, done in connections:
        await done.wait()
    took_s = time.perf_counter() - began_s
    times = [each for protocol, _ in connections for each in protocol.times]
    refused = sum(protocol.refused for protocol, _ in connections)
    if not times:
        return Answered(0, 0, 0, refused)
    return Answered(len(times) / took_s, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3, refused)


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Load(**json.loads(sys.argv[1])))))))
