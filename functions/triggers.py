"""``spec.triggers`` of a manifest: what makes jobs of the function without a caller that holds a key."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from functions import schedule_spec
from functions.fields import Part, at_most
from functions.schedule_spec import MOST_SCHEDULES, ScheduleSpec
from functions.webhook_spec import MOST_WEBHOOKS, WebhookSpec, check_distinct


class Triggers(Part):
    webhooks: Annotated[
        tuple[WebhookSpec, ...], at_most(MOST_WEBHOOKS), Field(strict=False), AfterValidator(check_distinct)
    ] = ()
    schedules: Annotated[
        tuple[ScheduleSpec, ...],
        at_most(MOST_SCHEDULES),
        Field(strict=False),
        AfterValidator(schedule_spec.check_distinct),
    ] = ()


TriggersOrNone = Annotated[Triggers | None, AfterValidator(lambda given: None if given == Triggers() else given)]
"""Triggers that are none mean the same as no word of them: manifests of releases before have the hash that they had."""
