"""Artifacts, and uploads that become such."""

from __future__ import annotations

from datetime import datetime

from gateway.api.models import View


class ArtifactView(View):
    id: str
    uri: str
    name: str
    size: int
    sha256: str
    content_type: str
    created_at: datetime
    url: str
    url_expires_at: datetime
    link: str


class SingleUpload(View):
    """One PUT of the whole file; ``headers`` are signed and must be sent exactly."""

    url: str
    headers: dict[str, str]


class PartUpload(View):
    """``url`` is null for a part that is there already, of the right size."""

    number: int
    size: int
    uploaded: bool
    url: str | None
    headers: dict[str, str]


class UploadView(View):
    """An announced file. One that is not ``complete`` has either ``upload`` or ``parts``, whose links work until
    ``expires_at``."""

    id: str
    uri: str
    name: str
    size: int
    sha256: str
    content_type: str
    complete: bool
    expires_at: datetime | None
    upload: SingleUpload | None
    part_size: int | None
    parts: list[PartUpload] | None
