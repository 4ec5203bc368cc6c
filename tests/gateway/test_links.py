"""The addresses in a job object."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from functions.artifacts import Artifact
from functions.ids import ArtifactId, JobId, ProjectId
from functions.s3 import S3Store
from gateway.links import JobLinks
from tests.s3 import S3Server

FILE = Artifact(
    ArtifactId(uuid4()), ProjectId(1), JobId(uuid4()), 1, "thumbnail", "/out/a/thumb.jpg", "image/jpeg", 3, "a" * 64,
    "b" * 32, "1/job/1/art", "token",
)  # fmt: skip


def test_a_file_has_a_link_that_ends_and_says_when_and_one_that_stays(s3_server: S3Server) -> None:
    links = JobLinks(S3Store(s3_server.config(bucket="b")), "https://rgrid.example", 900)
    before = datetime.now(UTC)
    url, expires_at = links.presigned(FILE)
    assert before + timedelta(seconds=900) <= expires_at <= datetime.now(UTC) + timedelta(seconds=900)
    assert "/b/1/job/1/art?" in url
    assert "X-Amz-Expires=900" in url and "thumb.jpg" in url
    assert links.stable(FILE) == "https://rgrid.example/r/token"
