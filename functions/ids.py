"""Ids: a prefix that says what it is and a time-ordered UUIDv7 (RFC 9562 §5.7), opaque to clients.

Inside and in the database an id is a ``uuid.UUID``; the text form ``job_<32 hex>`` exists at the edges only.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import NewType
from uuid import UUID

JobId = NewType("JobId", UUID)
NodeId = NewType("NodeId", UUID)
FunctionId = NewType("FunctionId", UUID)
VersionId = NewType("VersionId", UUID)
ArtifactId = NewType("ArtifactId", UUID)
MessageId = NewType("MessageId", UUID)
BatchId = NewType("BatchId", UUID)
EndpointId = NewType("EndpointId", UUID)
WebhookId = NewType("WebhookId", UUID)
ReceiptId = NewType("ReceiptId", UUID)
ScheduleId = NewType("ScheduleId", UUID)
ProjectId = NewType("ProjectId", int)
AccountId = NewType("AccountId", int)

JOB, NODE, ARTIFACT, MESSAGE, BATCH = "job", "node", "art", "msg", "bat"
CALLBACK = "cb"
WEBHOOK, RECEIPT = "whk", "rcp"
SCHEDULE = "sch"

_TEXT = re.compile(r"^([a-z]+)_([0-9a-f]{32})$")
_lock = threading.Lock()
_last = 0


def new_uuid7() -> UUID:
    """A UUIDv7 whose order is the order of the calls in this process.

    Milliseconds in the first 48 bits, a sub-millisecond fraction in the next 12 and 62 random bits; a clock that
    steps back is held at the last value, so that cursors made of ids never run backwards.
    """
    global _last  # noqa: PLW0603
    ticks = time.time_ns() * 4096 // 1_000_000
    with _lock:
        ticks = _last = max(ticks, _last + 1)
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0x2 << 62
    return UUID(int=value | int.from_bytes(os.urandom(8), "big") >> 2)


def made_at(value: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond, by the clock of the process that made it."""
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)


def first_of(at: datetime, *, later_ms: int = 0) -> UUID:
    """The smallest id that is made so long after ``at``."""
    at_ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return UUID(int=min(max(at_ms + later_ms, 0), 2**48 - 1) << 80)


def encode(prefix: str, value: UUID) -> str:
    """The text form of an id, for instance ``job_0192…``."""
    return f"{prefix}_{value.hex}"


def decode(prefix: str, text: str) -> UUID | None:
    """The id of a text form; None for anything that is not one (which then simply does not exist)."""
    match = _TEXT.match(text)
    if match is None or match[1] != prefix:
        return None
    return UUID(hex=match[2])
