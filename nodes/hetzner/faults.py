"""What a failed call means: from the client's exceptions and the API's error codes to the errors of ``provider.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hcloud
import requests
import urllib3

from nodes.provider import Busy, Limit, ProviderError, Refused, Uncertain, Unreachable

# The request was read and not carried out, whatever it was.
_REFUSED = {
    "unauthorized": "the cloud does not know the token (any more): set a valid one",
    "token_readonly": "the token may only read: set one with the permission `Read & Write`",
    "forbidden": "the token may not do this",
    "protected": "the server is protected against deletion: lift the protection in the cloud's console",
    "resource_locked": "the cloud's operator has locked it: contact their support",
    "deprecated_api_endpoint": "the cloud has retired this call: upgrade to a newer release",
    "method_not_allowed": "the cloud has retired this call: upgrade to a newer release",
}
_BUSY = {"conflict", "locked", "maintenance", "service_error"}
# Something broke on the cloud's side; it may have been carried out before.
_BROKEN = {"server_error", "unavailable", "bad_gateway", "timeout", "unknown_error"}
RATE = "rate_limit_exceeded"


class TooManyCalls(ProviderError):
    """Inside this package only: the caller knows until when."""


class Rejected(Refused):
    """The cloud gave a reason that this call may know what to do about: ``code``, and the fields it names."""

    def __init__(self, message: str, *, reason: str, fields: frozenset[str], limits: frozenset[str]) -> None:
        super().__init__(message)
        self.reason = reason
        self.fields = fields
        self.limits = limits


@dataclass(frozen=True, slots=True)
class _Unknown:
    """What to raise when the outcome is not known: for a call that only reads nothing is lost."""

    writes: bool

    def __call__(self, message: str) -> ProviderError:
        return Uncertain(message) if self.writes else Unreachable(message)


def meaning(error: Exception, *, writes: bool, clean: Callable[[str], str]) -> ProviderError:
    """The error of ours for one that a call raised; ``clean`` takes the token out of texts."""
    unknown = _Unknown(writes)
    if isinstance(error, hcloud.APIException):
        return _of_api(error, unknown, clean)
    if isinstance(error, requests.RequestException):
        if _never_sent(error):
            return Unreachable(clean(f"the cloud cannot be reached: {_cause(error)}"))
        return unknown(clean(f"the cloud did not answer: {_cause(error)}"))
    # The client could not read the answer: the API has changed, or something in between answered.
    return unknown(clean(f"the cloud's answer was not understood: {type(error).__name__}: {error}"))


def _of_api(error: hcloud.APIException, unknown: _Unknown, clean: Callable[[str], str]) -> ProviderError:
    code = error.code
    said = clean(f"{error.message or 'no message'} ({code})")
    if code in (RATE, 429):
        return TooManyCalls(said)
    if isinstance(code, int):  # not the API's own JSON
        proxy = 300 <= code < 500
        return Unreachable(f"not the cloud's API answered: {said}") if proxy else unknown(f"the cloud failed: {said}")
    if code is None or code in _BROKEN:
        return unknown(f"the cloud failed: {said}")
    if code in _REFUSED:
        return Refused(f"{_REFUSED[code]}; the cloud says: {said}")
    if code in _BUSY:
        return Busy(f"another action is in the way: {said}")
    return _rejected(error, said, clean)


def _rejected(error: hcloud.APIException, said: str, clean: Callable[[str], str]) -> Rejected:
    fields, limits = _names(error.details, "fields"), _names(error.details, "limits")
    where = f", in {', '.join(sorted(fields))}" if fields else ""
    return Rejected(clean(f"the cloud refused: {said}{where}"), reason=str(error.code), fields=fields, limits=limits)


def _never_sent(error: requests.RequestException) -> bool:
    """Whether no byte of the request can have reached the cloud: there never was a connection."""
    if isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError):
        return True
    if isinstance(error, requests.exceptions.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" in str(error)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, urllib3.exceptions.NewConnectionError)


def _cause(error: requests.RequestException) -> str:
    inner = error.args[0] if error.args else error
    return f"{type(error).__name__}: {getattr(inner, 'reason', None) or inner}"


def _names(details: Any, key: str) -> frozenset[str]:
    entries = details.get(key) if isinstance(details, dict) else None
    if not isinstance(entries, list):
        return frozenset()
    return frozenset(str(entry["name"])[:50] for entry in entries if isinstance(entry, dict) and "name" in entry)


def limit_of(error: Rejected) -> Limit:
    """Which of an account's limits it was: they are counted apart."""
    said = " ".join((*sorted(error.limits), error.message)).lower().replace("_", " ")
    if "ip" in said.split():
        return Limit.ADDRESSES
    if "core" in said or "vcpu" in said or "dedicated" in said:
        return Limit.CORES
    return Limit.SERVERS if "server" in said else Limit.OTHER
