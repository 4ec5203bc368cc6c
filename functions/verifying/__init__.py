"""Who has sent a webhook: one module for each scheme, pure, over the bytes as they came.

``verify`` raises ``Unverified`` and nothing else, whatever was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType

from functions.verifying import discord, github, gitlab, plain_hmac, shopify, slack, standard, stripe, token, twilio
from functions.verifying.digests import pretend
from functions.verifying.received import Event, Headers, Options, Received, Unverified

__all__ = [
    "NONE", "SCHEMES", "TIMED", "Event", "Headers", "Options", "Received", "Unverified", "hidden_headers", "pretend",
    "sign", "verify",
]  # fmt: skip

NONE = "none"
_MODULES: Mapping[str, ModuleType] = {
    "standard": standard,
    "github": github,
    "gitlab": gitlab,
    "stripe": stripe,
    "slack": slack,
    "shopify": shopify,
    "twilio": twilio,
    "discord": discord,
    "hmac": plain_hmac,
    "token": token,
}
SCHEMES = (*_MODULES, NONE)
TIMED = frozenset({"stripe", "slack", "discord"})
"""Schemes that sign a timestamp and have no id in a header: of those ``verify`` returns what was signed, as a hash."""
SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", gitlab.HEADER})


def verify(scheme: str, received: Received, secrets: Sequence[bytes], options: Options) -> str | None:
    """The id that the sender's headers have for this delivery, if any, or see ``TIMED``; raises ``Unverified``."""
    if scheme == NONE:
        return None
    if not secrets:
        raise Unverified("the project does not have the secret (any more)")
    found: str | None = _MODULES[scheme].verify(received, secrets, options)
    return found


def sign(scheme: str, event: Event, secret: bytes, options: Options) -> dict[str, str]:
    """Headers that a test event is sent with; raises ``ValueError`` for a secret that is none of the scheme."""
    if scheme == NONE:
        return {"webhook-id": event.id}
    headers: dict[str, str] = _MODULES[scheme].sign(event, secret, options)
    return headers


@lru_cache(maxsize=256)
def hidden_headers(scheme: str, options: Options) -> frozenset[str]:
    """Headers, in lower case, that hold a secret rather than a signature: nobody is shown them."""
    own = {options.header.lower()} if scheme == "token" and options.header is not None else set()
    return SECRET_HEADERS | own
