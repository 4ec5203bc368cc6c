"""The addresses under which a job object offers its files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from functions.artifacts import Artifact, Store


@dataclass(frozen=True, slots=True)
class JobLinks:
    """``base_url`` is the gateway's as users reach it; ``link_s`` is how long a presigned URL works."""

    store: Store
    base_url: str
    link_s: int

    def presigned(self, artifact: Artifact, *, method: str = "GET") -> tuple[str, datetime]:
        """A URL of the store that downloads the file (or, with HEAD, tells of it), and when it stops working."""
        # Taken before signing, so that the URL never ends earlier than we say.
        expires_at = datetime.now(UTC) + timedelta(seconds=self.link_s)
        return (
            self.store.presign_get(
                artifact.object_key, artifact.filename, artifact.content_type, self.link_s, method=method
            ),
            expires_at,
        )

    def stable(self, artifact: Artifact) -> str:
        """The gateway's address that mints a fresh presigned URL per hit."""
        return f"{self.base_url}/r/{artifact.link_token}"
