"""Whether the kernel ended a container for its memory, by the kernel's own log.

The engine learns of it from a watch on the container's cgroup, and misses it when the cgroup is gone before it has
looked (containerd drops the event of a deleted cgroup). The kernel limits how many of its lines it writes, so neither
source is enough alone.
"""

from __future__ import annotations

import errno
import os

KMSG = "/dev/kmsg"
RECORD_BYTES = 8192
"""Longer than any record: each read gives one."""


def oom_killed(container_id: str) -> bool:
    """Whether the log tells of an out-of-memory kill in the container's cgroup; False where it cannot be read."""
    wanted = container_id.encode()
    try:
        handle = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            try:
                record = os.read(handle, RECORD_BYTES)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue  # records were overwritten while we read: the next read goes on behind the gap
                return False  # EAGAIN: that was the last one
            if b"oom-kill:" in record and wanted in record:
                return True
    finally:
        os.close(handle)
