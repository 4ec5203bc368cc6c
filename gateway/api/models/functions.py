"""Functions, their versions, and what an apply changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gateway.api.models import View


class VersionView(View):
    version: int
    image: str
    image_digest: str | None
    created_at: datetime


class VersionList(View):
    data: list[VersionView]
    next_cursor: str | None


class FunctionView(View):
    name: str
    description: str
    labels: dict[str, str]
    version: int
    manifest: dict[str, Any]
    image_digest: str | None
    paused: bool
    created_at: datetime
    updated_at: datetime


class AppliedView(FunctionView):
    changed: bool


class Change(View):
    """What an apply makes of a function, or would make: its manifest then, and ``before``, the one that it had."""

    name: str
    version: int
    created: bool
    changed: bool
    manifest: dict[str, Any]
    before: dict[str, Any] | None


class ChangeList(View):
    data: list[Change]


class FunctionList(View):
    data: list[FunctionView]
    next_cursor: str | None
