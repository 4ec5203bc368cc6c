"""Images that are kept as artifacts: a manifest names one as ``artifact:art_…``. Reads ``artifacts``."""

from __future__ import annotations

from functions import artifacts, ids
from functions.artifacts import Artifact
from functions.db import Connection
from functions.errors import FieldError, Invalid, NotFound
from functions.ids import ProjectId
from functions.image_reference import saved_image

AT = "/spec/job/image"


async def require(conn: Connection, project: ProjectId, image: str) -> None:
    """Raise ``Invalid`` if ``image`` is a saved one that is no complete file of the project."""
    saved = saved_image(image)
    if saved is None or saved.artifact in await artifacts.visible(conn, project, [saved.artifact]):
        return
    message = f"the project has no complete file {ids.encode(ids.ARTIFACT, saved.artifact)}: upload the image first"
    raise Invalid(f"{AT}: {message}", code="artifact_not_found", errors=[FieldError(AT, message)])


async def archive_of(conn: Connection, project: ProjectId, image: str) -> tuple[Artifact | None, str | None]:
    """The file with the image and the id that the manifest says it has. No file: it is not a saved image, or gone."""
    saved = saved_image(image)
    if saved is None:
        return None, None
    try:
        return await artifacts.get(conn, project, saved.artifact), saved.image_id
    except NotFound:
        return None, saved.image_id
