"""What a failure looks like over HTTP: RFC 9457 problem documents. The only place that knows statuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import asyncpg
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from functions import errors
from functions.errors import CODES, FieldError, RGridError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
"""What a client is told to wait when the failure does not know better."""

STATUSES: Mapping[type[RGridError], HTTPStatus] = {
    errors.Malformed: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.BudgetExceeded: HTTPStatus.PAYMENT_REQUIRED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Gone: HTTPStatus.GONE,
    errors.MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    errors.NotAcceptable: HTTPStatus.NOT_ACCEPTABLE,
    errors.TimedOut: HTTPStatus.REQUEST_TIMEOUT,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.AddressTooLong: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.HeadersTooLarge: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.LimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.JobFailed: HTTPStatus.BAD_GATEWAY,
    errors.JobTimedOut: HTTPStatus.GATEWAY_TIMEOUT,
}

CLOSING = frozenset({400, 408, 413, 414, 431})
"""After these, what the client sent on cannot be told from a next request, or is not worth reading."""

DATABASE_AWAY = (
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InvalidAuthorizationSpecificationError,  # 28: the operator is changing a password
    asyncpg.TransactionRollbackError,  # 40: deadlock, serialization
    asyncpg.InsufficientResourcesError,  # 53: too many connections, disk full, out of memory
    asyncpg.LockNotAvailableError,  # 55P03
    asyncpg.OperatorInterventionError,  # 57: shutting down, starting up, statement timeout
    asyncpg.PostgresSystemError,  # 58: I/O error
    asyncpg.ReadOnlySQLTransactionError,  # 25006: the primary became a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,  # refused, reset, no such socket, no such name
    TimeoutError,
)


class FieldProblem(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pointer: str
    message: str


class Problem(BaseModel):
    """A failure (RFC 9457). ``code`` is stable and in the reference; ``instance`` is the request's id."""

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldProblem]


def possible(*, key: bool, body: bool, changes: bool) -> set[HTTPStatus]:
    """Which failures a call may answer with: one that asks for a key, takes a body, changes something."""
    kinds = {errors.Malformed, errors.NotFound, errors.MethodNotAllowed, errors.AddressTooLong}
    kinds |= {errors.Invalid, errors.HeadersTooLarge, errors.TimedOut, errors.Unavailable}
    if key:
        kinds |= {errors.Unauthenticated, errors.Forbidden}
    if body:
        kinds |= {errors.TooLarge, errors.UnsupportedMedia}
    if changes:
        kinds |= {errors.Conflict}
    return {STATUSES[kind] for kind in kinds} | {HTTPStatus.INTERNAL_SERVER_ERROR}


def kind_of(error: BaseException) -> RGridError | None:
    """The failure that a user may be told of; None when ``error`` is a fault of ours."""
    if isinstance(error, RGridError):
        return error if type(error) is not RGridError else None
    if isinstance(error, DATABASE_AWAY) or type(error) is asyncpg.InterfaceError:
        return errors.Unavailable("a part of the service does not answer now: try again soon")
    return None


def status_of(error: RGridError) -> HTTPStatus:
    for kind in type(error).__mro__:
        if (status := STATUSES.get(kind)) is not None:
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def document(
    status: HTTPStatus, code: str, detail: str, request_id: str, errors: Sequence[FieldError] = ()
) -> dict[str, Any]:
    return {
        "type": f"urn:rgrid:problem:{code}",
        "title": CODES.get(code, status.phrase),
        "status": int(status),
        "detail": detail,
        "instance": request_id,
        "code": code,
        "errors": [{"pointer": error.pointer, "message": error.message} for error in errors],
    }


def encode(problem: Mapping[str, Any]) -> bytes:
    """As JSON bytes. Half a surrogate pair, which a client may have sent, is escaped rather than fatal."""
    return json.dumps(problem, separators=(",", ":")).encode("ascii")


def problem_response(error: BaseException, request_id: str) -> Response:
    """The answer for any failure. An unexpected one tells only the request's id, to find it in the log."""
    known = kind_of(error)
    if known is None:
        status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "internal"
        detail = "this is a fault of the service; its log has more under the request id"
        body = document(status, code, detail, request_id)
        return Response(encode(body), int(status), media_type=MEDIA_TYPE)
    status = status_of(known)
    body = document(status, known.code, known.message, request_id, known.errors)
    return Response(encode(body), int(status), _headers(known, status), media_type=MEDIA_TYPE)


def _headers(error: RGridError, status: HTTPStatus) -> dict[str, str]:
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="rgrid"'
    if isinstance(error, errors.MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if error.retry_after_s is not None or status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S)))
    if status in CLOSING:
        headers["Connection"] = "close"
    return headers
