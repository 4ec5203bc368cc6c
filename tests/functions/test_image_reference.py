from __future__ import annotations

import pytest

from functions import ids
from functions.image_reference import check_image, saved_image

ARTIFACT = "artifact:art_" + "0192" * 8
ID = "sha256:" + "a" * 64


def test_a_saved_image_is_an_artifact_with_or_without_the_images_id() -> None:
    for reference, image_id in ((ARTIFACT, None), (f"{ARTIFACT}@{ID}", ID)):
        check_image(reference)
        saved = saved_image(reference)
        assert saved is not None
        assert (f"artifact:{ids.encode(ids.ARTIFACT, saved.artifact)}", saved.image_id) == (ARTIFACT, image_id)
    assert saved_image("alpine:3") is saved_image(ID) is saved_image("artifact/tool:1") is None


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("artifact:", "artifact:art_"),
        ("artifact:art_0192", "artifact:art_"),
        ("artifact:job_" + "0" * 32, "artifact:art_"),
        (ARTIFACT + "\n", "artifact:art_"),
        (ARTIFACT + ":1", "artifact:art_"),
        (ARTIFACT.upper(), "image"),
        (ARTIFACT + "@", "sha256:"),
        (ARTIFACT + "@sha256:12", "sha256:"),
        (ARTIFACT + "@" + ID + "\n", "sha256:"),
        (ARTIFACT + "@" + ID.upper(), "sha256:"),
    ],
)
def test_what_is_no_saved_image_says_how_one_is_written(reference: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_image(reference)
