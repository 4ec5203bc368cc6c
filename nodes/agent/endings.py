"""What the end of a container means for its attempt, in words that its user understands. Pure."""

from __future__ import annotations

import signal

from nodes.agent.state import Ended
from nodes.protocol import AttemptError, ErrorCode, JobLease

_HINTS = {126: "the command cannot be executed", 127: "the command was not found"}
_UNITS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def error_of(ended: Ended, lease: JobLease) -> AttemptError | None:
    """None if the process ended well.

    The out-of-memory mark alone decides nothing: a child may have been killed while the process itself went
    on and ended with 0.
    """
    if ended.timed_out:
        message = f"ran longer than its timeout of {duration(lease.timeout_s)}"
        return AttemptError(code=ErrorCode.TIMEOUT, message=message)
    if ended.code == 0:
        return None
    if ended.oom_killed:
        message = (
            f"used more than its {size(lease.resources.memory_bytes)} of memory ({exit_code(ended.code)})"
        )
        return AttemptError(code=ErrorCode.OOM_KILLED, message=message)
    return AttemptError(code=ErrorCode.EXIT_NONZERO, message=exit_code(ended.code))


def exit_code(code: int) -> str:
    """For instance ``exit code 139 (SIGSEGV)``: shells and Docker add 128 to the signal that killed a
    process."""
    hint = _HINTS.get(code)
    if hint is None and code > 128:
        try:
            hint = signal.Signals(code - 128).name
        except ValueError:
            hint = None
    return f"exit code {code}" if hint is None else f"exit code {code} ({hint})"


def size(size_bytes: int) -> str:
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.4g} {name}"
    return f"{size_bytes} bytes"


def duration(seconds: float) -> str:
    """For instance ``1h30m``, ``90.5s``."""
    whole = int(seconds)
    if seconds != whole or whole == 0:
        return f"{seconds:g}s"
    parts = [(whole // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s")]
    return "".join(f"{count}{unit}" for count, unit in parts if count)
