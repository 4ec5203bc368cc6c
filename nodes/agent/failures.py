"""How an attempt fails before or after its container ran, in words that the job's owner reads."""

from __future__ import annotations

from nodes.protocol import ErrorCode, RejectedOutput


class AttemptFailed(Exception):
    """The attempt ends here. ``message`` is one plain sentence; ``retryable`` False: another attempt cannot help."""

    def __init__(
        self, code: ErrorCode, message: str, *, retryable: bool = True, exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.exit_code = exit_code
        self.rejected: list[RejectedOutput] = []
        """What the collector had refused by then."""
