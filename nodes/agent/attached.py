"""What a container writes, read from the connection that is attached to it.

Both streams in one, each in its own order; between them the order is the one in which Docker's two pipes were
read, which is nearly that of writing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

_HEADER_BYTES = 8
"""Before each piece: stream number, three zeros, length (4 bytes, big-endian)."""


class Frames:
    """Takes the headers out of Docker's multiplexed stream, however it is cut into reads."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """The container's own bytes in ``data``."""
        found = []
        view = memoryview(data)
        while view:
            if self._left:
                piece = view[: self._left]
                found.append(piece)
                self._left -= len(piece)
                view = view[len(piece) :]
                continue
            wanted = _HEADER_BYTES - len(self._header)
            self._header += view[:wanted]
            view = view[wanted:]
            if len(self._header) == _HEADER_BYTES:
                self._left = int.from_bytes(self._header[4:], "big")
                self._header.clear()
        return b"".join(found)


class Attached:
    """An iterator over chunks of bytes. Nothing is read ahead: when the reader waits, the pipe fills and the
    container waits too. Ends when the container has, when the engine breaks off, or with ``aclose``."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        await self._answer.aclose()

    async def _read(self) -> AsyncIterator[bytes]:
        frames = Frames()
        try:
            async for data in self._answer.aiter_raw():
                if payload := frames.feed(data):
                    yield payload
        except (httpx.HTTPError, httpx.StreamError):
            return  # The container's outcome tells what happened; its log just ends here.
        finally:
            await self.aclose()
