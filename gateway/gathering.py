"""Group commit: requests that arrive while a statement is under way share the next one.

Nothing waits on purpose. Under load the batches grow by themselves; a lone request pays one statement as before. Each
request is answered after the commit that holds its job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Gatherer(Generic[Item, Answer]):
    """Calls ``flush`` with up to ``largest`` items at a time, ``lanes`` calls side by side.

    ``key`` names items that must not stand in one call together (None: no such rule). An item that the database
    refuses (``alone``) fails by itself: its neighbours are tried one by one.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[list[Answer]]],
        *,
        key: Callable[[Item], object | None],
        alone: tuple[type[Exception], ...],
        largest: int = 200,
        lanes: int = 2,
    ) -> None:
        self._flush = flush
        self._key = key
        self._alone = alone
        self._largest = largest
        self._free = lanes
        self._queue: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Answer:
        """The item's own answer, or the error of the call that held it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._start()
        # The statement is shared: one request that goes away must not cancel it for the others.
        return await asyncio.shield(future)

    def _start(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._run(self._take()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        taken: list[tuple[Item, asyncio.Future[Answer]]] = []
        left: list[tuple[Item, asyncio.Future[Answer]]] = []
        keys: set[object] = set()
        for position, entry in enumerate(self._queue):
            if len(taken) == self._largest:
                left += self._queue[position:]
                break
            key = self._key(entry[0])
            if key is not None and key in keys:
                left.append(entry)
                continue
            keys.add(key)
            taken.append(entry)
        self._queue = left
        return taken

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            await self._answer(batch)
        finally:
            self._free += 1
            self._start()

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            try:
                answers = await self._flush([item for item, _ in batch])
            except self._alone:
                if len(batch) == 1:
                    raise
                for entry in batch:
                    await self._answer([entry])
                return
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
