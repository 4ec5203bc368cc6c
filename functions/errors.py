"""The kinds of failure. An error says what happened and carries a stable ``code``; it knows nothing of HTTP.

``gateway/problems.py`` alone turns a kind into a status and a problem document; the command line prints it as
one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in a document: ``pointer`` is an RFC 6901 JSON pointer into it ("" is the whole)."""

    pointer: str
    message: str


class RGridError(Exception):
    """Base of every failure that a user may see. The message is one plain sentence that says what to do."""

    code = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class Malformed(RGridError):
    """The request cannot be read at all: not JSON, bad header, bad cursor."""

    code = "malformed"


class Invalid(RGridError):
    """It was read and breaks a rule; ``errors`` points at each place."""

    code = "invalid"


class NotFound(RGridError):
    """No such thing, or it belongs to somebody else: the two must look the same."""

    code = "not_found"


class Gone(NotFound):
    """It was there, and its time is over."""

    code = "artifact_gone"


class Conflict(RGridError):
    """The thing is in a state that does not allow this."""

    code = "conflict"


class LeaseLost(Conflict):
    """The job was offered to another node because this lease ran out."""

    code = "lease_lost"


class Unauthenticated(RGridError):
    """No credential, or one that is not valid."""

    code = "unauthenticated"


class Forbidden(RGridError):
    """The credential is valid and may not do this."""

    code = "forbidden"


class TooLarge(RGridError):
    """More bytes than the limit."""

    code = "too_large"


class UnsupportedMedia(RGridError):
    """A content type or encoding that this call does not take."""

    code = "unsupported_media_type"


class NotAcceptable(RGridError):
    """The client accepts none of the forms that the answer comes in."""

    code = "not_acceptable"


class MethodNotAllowed(RGridError):
    """The path exists and does not take this method; ``allowed`` are those that it does."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class AddressTooLong(RGridError):
    """The path or the query is longer than any that exists."""

    code = "address_too_long"


class HeadersTooLarge(RGridError):
    """More headers, or more bytes of them, than are read."""

    code = "headers_too_large"


class TimedOut(RGridError):
    """The client took too long to send its request."""

    code = "request_timeout"


class LimitReached(RGridError):
    """More of something than may be at once; the same call works when some of it has ended."""

    code = "limit_reached"


class BudgetExceeded(RGridError):
    """It would cost more than may be spent."""

    code = "budget_exceeded"


class Unavailable(RGridError):
    """A part that is needed (database, store) does not answer now; the same call may work later."""

    code = "unavailable"


class JobFailed(RGridError):
    """The job that a request waited for did not succeed; ``code`` is the job's."""


class JobTimedOut(JobFailed):
    """It, or its time in the queue, took too long."""


CODES = {
    "address_too_long": "The address is too long",
    "artifact_gone": "The artifact is not kept any more",
    "artifact_not_found": "There is no such artifact",
    "artifact_unknown": "The attempt has reserved no such artifact",
    "attempt_not_found": "The job has had no such attempt",
    "batch_not_found": "There is no such batch",
    "batch_too_large": "The batch's params are too large together",
    "budget_exceeded": "The budget is used up",
    "callback_cycle": "The chain of functions leads back to its beginning",
    "callback_deleted": "The callback was deleted",
    "callback_disabled": "The callback is disabled",
    "callback_not_found": "There is no such callback",
    "callback_of_manifest": "The callback is of a manifest",
    "callback_without_key": "The callback has no key of its own",
    "chain_too_deep": "The chain of jobs is too long",
    "concurrency_rejected": "As many jobs of the function run as may",
    "conflict": "The state does not allow this",
    "cursor_invalid": "The cursor is not one of this list",
    "delivery_not_found": "There is no such delivery",
    "exit_nonzero": "The job's process failed",
    "forbidden": "The credential may not do this",
    "function_deleted": "The function was deleted",
    "function_not_found": "There is no such function",
    "headers_too_large": "The headers are too large",
    "idempotency_key_busy": "The Idempotency-Key is in use",
    "idempotency_key_reused": "The Idempotency-Key was used with another body",
    "image_pull_failed": "The job's image could not be had",
    "input_unavailable": "An input of the job could not be had",
    "internal": "A fault of the service",
    "invalid": "A value breaks a rule",
    "invalid_text": "Text that cannot be stored",
    "job_cancelled": "The job was cancelled",
    "job_expired": "The job did not start in time",
    "job_not_finished": "The job is not finished",
    "job_not_found": "There is no such job",
    "join_address_wrong": "The join token is for another machine",
    "join_token_invalid": "The join token is not valid",
    "join_token_used": "The join token was used before",
    "lease_lost": "The lease was lost",
    "limit_reached": "A limit is reached",
    "malformed": "The request cannot be read",
    "manifest_invalid": "The manifest breaks a rule",
    "method_not_allowed": "The path does not take this method",
    "node_credential_invalid": "The node credential is not valid",
    "node_joined_before": "The machine is a node already",
    "node_lost": "The job lost its nodes",
    "node_not_found": "There is no such node",
    "node_not_ready": "The node is not ready",
    "not_acceptable": "The answer does not come in that form",
    "not_found": "There is no such thing",
    "oom_killed": "The job used too much memory",
    "output_missing": "The job did not write a required output",
    "output_rejected": "An output of the job is no plain file",
    "output_too_large": "An output of the job is too large",
    "params_invalid": "The params do not fit the function",
    "receipt_not_found": "There is no such receipt of a webhook",
    "receipt_not_verified": "The request was not verified, or is not kept",
    "request_timeout": "The request took too long to arrive",
    "rotation_pending": "Too many earlier keys sign along still",
    "schedule_exists": "The function has a schedule of this name",
    "schedule_not_found": "There is no such schedule",
    "schedule_of_manifest": "The schedule is of a manifest",
    "secret_missing": "The project has no such secret",
    "secret_not_found": "There is no such secret",
    "server_unknown": "The cloud has not told of this server yet",
    "signature_invalid": "The webhook's signature is not valid",
    "store_unavailable": "The object store does not answer now",
    "template_invalid": "A template cannot be filled in",
    "timeout": "The job ran too long",
    "too_large": "The body is too large",
    "too_large_for_any_node": "No node is large enough",
    "too_many_callbacks": "The project has as many callbacks as it may",
    "too_many_files": "The attempt has too many files",
    "unauthenticated": "No valid credential",
    "unavailable": "A part does not answer now",
    "unsupported_media_type": "The content type is not taken",
    "upload_mismatch": "What was uploaded is not what was announced",
    "url_refused": "The address may not be called",
    "version_not_found": "There is no such version",
    "webhook_exists": "The function has a webhook of this name",
    "webhook_not_found": "There is no such webhook",
    "webhook_of_manifest": "The webhook is of a manifest",
}
"""Every ``code`` that an answer may carry, with the title of its problem document; docs/reference/problems.md
explains each. A test holds the code, this table and that page together."""
