"""Errors of jobs, as a job object shows them: values with ``code``, ``message`` and ``attempt``."""

from __future__ import annotations

from typing import Any


def deadline_exceeded(attempt: int) -> dict[str, Any]:
    """The error of a job that was cancelled because its Cancel-After was over."""
    return {"code": "deadline_exceeded", "message": "not finished within its Cancel-After", "attempt": attempt}


def budget_exceeded(attempt: int, failure: str | None = None) -> dict[str, Any]:
    """The error of a job that ran for as long as its RGrid-Max-Cost pays; ``failure`` is what its last attempt died
    of."""
    message = "running it has cost as much as its RGrid-Max-Cost allows"
    if failure is not None:
        message += f"; its last attempt had failed: {failure}"
    return {"code": "budget_exceeded", "message": message, "attempt": attempt}


def stopped(attempt: int, *, cancelled: bool, overdue: bool) -> tuple[str, dict[str, Any] | None]:
    """Status and error of a job that was stopped: by a cancel, by its Cancel-After, or by what it may cost."""
    if overdue:
        return "cancelled", deadline_exceeded(attempt)
    return ("cancelled", None) if cancelled else ("failed", budget_exceeded(attempt))


def storable(text: str) -> str:
    """The text without what PostgreSQL cannot read again: a NUL in one message would fail every reaper's round."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
