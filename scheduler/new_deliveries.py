"""Messages as they are written, in the transaction of what they tell of. ``deliveries`` has what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from functions import ids
from functions.ids import EndpointId, JobId, MessageId
from scheduler.callbacks import Endpoint

DISABLED = "the endpoint is disabled"


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """One event for one endpoint, written with what it tells of. ``ended_reason`` is why it is not sent at all."""

    id: MessageId
    job_id: JobId
    type: str
    url: str
    endpoint: str
    endpoint_id: EndpointId | None = None
    secrets: tuple[str, ...] | None = None
    ended_reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "job_id": str(self.job_id),
            "type": self.type,
            "url": self.url,
            "endpoint": self.endpoint,
            "endpoint_id": None if self.endpoint_id is None else str(self.endpoint_id),
            "secrets": self.secrets,
            "state": "pending" if self.ended_reason is None else "exhausted",
            "ended_reason": self.ended_reason,
        }


def new_delivery(subject: UUID, kind: str, endpoint: Endpoint) -> NewDelivery:
    """An event of ``subject`` for an endpoint; for one that is disabled it is written down and not sent."""
    return NewDelivery(
        MessageId(ids.new_uuid7()), JobId(subject), kind, endpoint.url, endpoint.key, endpoint.id, endpoint.secrets,
        None if endpoint.enabled else DISABLED,
    )  # fmt: skip
