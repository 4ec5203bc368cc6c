"""Leases for tests, as a gateway would give them."""

from __future__ import annotations

from typing import Any

from nodes.protocol import Image, JobLease, Output, Resources


def lease(*, disk_bytes: int = 16 * 2**20, outputs: tuple[Output | str, ...] = (), **fields: Any) -> JobLease:
    """An output given as text is its path, with that as its name."""
    values: dict[str, Any] = {
        "job_id": "job_1",
        "token": "0" * 32,
        "attempt": 1,
        "slots": 1,
        "function": "test",
        "version": 1,
        "image": Image(reference="busybox"),
        "params": "{}",
        "timeout_s": 60,
        "grace_s": 1,
        "user": 65532,
        "resources": Resources(cpu=1, memory_bytes=64 * 2**20, disk_bytes=disk_bytes),
        "outputs": [Output(path=each, name=each) if isinstance(each, str) else each for each in outputs],
    }
    return JobLease(**values | fields)
