"""Tasks and threads without loose ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CANCEL_S = 10.0


async def to_the_end(
    call: Callable[[], T],
    *,
    undo: Callable[[T], None] | None = None,
    hurry: Callable[[], None] | None = None,
) -> T:
    """Run ``call`` in a thread. A caller that is cancelled meanwhile goes on only when the call has returned
    (``hurry`` asks it to), and its result is undone: nothing is left half made, and what the call uses may be
    closed then."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if hurry is not None:
            hurry()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None and undo is not None:
            await asyncio.to_thread(undo, task.result())
        raise


async def cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Stop tasks whose result nobody wants any more; returns when they have, or after ``CANCEL_S``."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=CANCEL_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()
