"""The filters of jobs, as a list's query and a bulk call's body have them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field

from functions import ids
from functions.db import Pool
from functions.ids import BatchId
from gateway.services import Services
from scheduler.listing import Filters

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _plainly_written(text: object) -> datetime:
    """Pydantic reads numbers and bare dates as times, too."""
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        raise ValueError("not an RFC 3339 time: write 2026-01-31T12:00:00Z")
    return datetime.fromisoformat(text.upper())


def _utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("out of range") from None


Time = Annotated[AwareDatetime, BeforeValidator(_plainly_written), AfterValidator(_utc)]


class JobFilters(BaseModel):
    """All of them must fit. The status is one of its own in each call."""

    function: str | None = Field(None, description="Of the functions that have or had this name.")
    batch: str | None = Field(None, pattern=r"^bat_[0-9a-f]{32}$", description="Of this batch.")
    trigger: Literal["manual", "webhook", "schedule", "function"] | None = Field(
        None, description="The trigger's kind."
    )
    since: Time | None = Field(None, description="Created at this time or later.")
    until: Time | None = Field(None, description="Created before this time.")

    def pool(self, opened: Services) -> Pool:
        """A batch comes at once: a plan that was made before, while the queue was empty, would read all of it."""
        return opened.pool if self.batch is None else opened.hot_pool

    def filters(self, status: str | None) -> Filters:
        batch = None if self.batch is None else ids.decode(ids.BATCH, self.batch)
        return Filters(
            self.function, status, self.trigger, self.since, self.until, None if batch is None else BatchId(batch)
        )
