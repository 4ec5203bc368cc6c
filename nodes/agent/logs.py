"""Ships what a container writes, in order and with back-pressure, and lets the progress reader listen in.

A chunk's position is its byte offset in the attempt's log, so that sending it again changes nothing. What
waits to be sent is bounded: when the gateway is slow the container's pipe fills up and the container waits.
After the cap one marker line ends the log, and the rest is read and dropped, so that a noisy job still ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from nodes.agent.gateway_client import CredentialRevoked, LeaseLost, Refused
from nodes.agent.masking import Mask
from nodes.agent.progress import ProgressReader
from nodes.protocol import LOG_CAP_BYTES, LOG_CHUNK_BYTES

log = structlog.get_logger()

BUFFER_BYTES = 1024 * 1024
LINGER_S = 0.25
"""How long a first byte waits for company."""
MARKER = b"[rgrid: log cut at 10 MiB]\n"
GAP = b"[rgrid: the node's agent restarted; what was written meanwhile is missing]\n"
TAIL_BYTES = 4096

Send = Callable[[int, bytes], Awaitable[int]]
"""Appends bytes at a position and returns where the next ones belong; an empty call only asks."""


class LogShipper:
    """One attempt's log. ``start`` it, then ``read_to_end`` and ``flush``, each within a time; ``close``
    always."""

    def __init__(
        self,
        source: AsyncIterator[bytes],
        send: Send,
        *,
        on_progress: Callable[[float], None],
        on_lost: Callable[[], None],
        resume: bool = False,
        mask: Mask | None = None,
    ) -> None:
        self._source = source
        self._send = send
        self._on_progress = on_progress
        self._on_lost = on_lost
        self._resume = resume
        self._mask = mask or Mask(())
        self._progress = ProgressReader()
        self._buffer = bytearray()
        self._position = 0
        """Where the first byte of the buffer belongs."""
        self._first_s = 0.0
        self._ended = False
        self._full = False
        """The cap is reached, or the gateway takes no more: read on and drop."""
        self._last_byte = b"\n"[0]
        self._wake = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sender = asyncio.create_task(self._ship())
        self._reader = asyncio.create_task(self._read())

    async def read_to_end(self, timeout_s: float) -> None:
        """Wait until the container's output is read to its end; at most so long."""
        assert self._reader is not None
        await asyncio.wait({self._reader}, timeout=timeout_s)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that was read is shipped; False if that takes longer."""
        assert self._sender is not None
        done, _ = await asyncio.wait({self._sender}, timeout=timeout_s)
        return bool(done)

    async def close(self) -> None:
        """Stop at once; what is not shipped is lost."""
        tasks = {task for task in (self._reader, self._sender) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    async def _read(self) -> None:
        try:
            if self._resume:
                await self._find_position()
                await self._keep(GAP)
            heard_s = 0.0
            async for data in self._source:
                if not self._full:
                    self._listen(data)
                    await self._keep(self._mask.feed(data))
                elif time.monotonic() - heard_s >= LINGER_S:
                    heard_s = time.monotonic()
                    self._listen(data[-TAIL_BYTES:])
            await self._keep(self._mask.rest())
        except LeaseLost:
            self._on_lost()
        except (CredentialRevoked, Refused) as error:
            log.warning("log not shipped", error=str(error))
        except Exception as error:
            # The container's outcome does not depend on its log.
            log.warning("log stream broke", error=f"{type(error).__name__}: {error}"[:300])
        finally:
            async with self._wake:
                self._ended = True
                self._wake.notify_all()

    def _listen(self, data: bytes) -> None:
        before = self._progress.value
        value = self._progress.feed(data)
        if value is not None and value != before:
            self._on_progress(value)

    async def _find_position(self) -> None:
        self._position = await self._send(0, b"")
        self._full = self._position > LOG_CAP_BYTES - len(MARKER) - 1

    async def _keep(self, data: bytes) -> None:
        """Put into the buffer, piece by piece as there is room; ends the log when the cap is reached."""
        rest = memoryview(data)
        while rest and not self._full:
            async with self._wake:
                await self._wake.wait_for(lambda: len(self._buffer) < BUFFER_BYTES or self._full)
                if self._full:
                    return
                if not self._buffer:
                    self._first_s = time.monotonic()
                # One byte of the marker's room is for the line end before it.
                room = LOG_CAP_BYTES - len(MARKER) - 1 - self._position - len(self._buffer)
                piece = rest[: max(0, min(BUFFER_BYTES - len(self._buffer), room))]
                self._buffer += piece
                if piece:
                    self._last_byte = piece[-1]
                rest = rest[len(piece) :]
                if rest and len(piece) >= room:
                    self._cut()
                self._wake.notify_all()

    def _cut(self) -> None:
        self._buffer += (b"" if self._last_byte == b"\n"[0] else b"\n") + MARKER
        self._full = True

    async def _ship(self) -> None:
        while (chunk := await self._next_chunk()) is not None:
            try:
                position = await self._send(self._position, chunk)
            except LeaseLost:
                self._on_lost()
                return await self._give_up()
            except (CredentialRevoked, Refused) as error:
                log.warning("log not shipped", error=str(error))
                return await self._give_up()
            taken = min(max(0, position - self._position), len(chunk))
            if taken == 0:
                log.warning("log not taken", position=self._position, wanted=position)
                return await self._give_up()
            async with self._wake:
                del self._buffer[:taken]
                self._position = position
                self._wake.notify_all()
        return None

    async def _next_chunk(self) -> bytes | None:
        """What to send next, when enough of it or enough time has come together; None at the end."""
        async with self._wake:
            await self._wake.wait_for(lambda: self._buffer or self._ended)
            if not self._buffer:
                return None
            left_s = self._first_s + LINGER_S - time.monotonic()
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._wake.wait_for(lambda: len(self._buffer) >= LOG_CHUNK_BYTES or self._ended)
                except TimeoutError:
                    pass
            self._first_s = time.monotonic()
            return bytes(self._buffer[:LOG_CHUNK_BYTES])

    async def _give_up(self) -> None:
        async with self._wake:
            self._full = True
            self._buffer.clear()
            self._wake.notify_all()
