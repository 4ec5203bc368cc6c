"""GitLab: the secret itself in ``X-Gitlab-Token``; or, where a signing token is set, Standard Webhooks."""

from __future__ import annotations

from collections.abc import Sequence

from functions.verifying import standard
from functions.verifying.digests import require_match
from functions.verifying.received import Event, Options, Received

HEADER = "x-gitlab-token"


def verify(received: Received, secrets: Sequence[bytes], options: Options) -> str | None:
    if "webhook-signature" in received.headers:
        return standard.verify(received, secrets, options)
    token = received.headers.need(HEADER)
    require_match([token.encode("latin-1")], secrets)
    return received.headers.one("webhook-id") or received.headers.one("idempotency-key")


def sign(event: Event, secret: bytes, options: Options) -> dict[str, str]:
    return {HEADER: secret.decode("latin-1"), "idempotency-key": event.id, "x-gitlab-event": "Push Hook"}
