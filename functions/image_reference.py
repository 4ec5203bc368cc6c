"""How an image is named: ``alpine``, ``alpine:3``, ``ghcr.io/acme/tool@sha256:…``, by its id ``sha256:…``, or as a
saved one, ``artifact:art_…``, with or without the id that it has (``artifact:art_…@sha256:…``).

The grammar is that of the distribution project, which Docker follows: what passes here is never read by a registry or
a shell as something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from functions import ids
from functions.ids import ArtifactId

SAVED = "artifact:"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\])"
    r"(?::[0-9]{1,5})?"
)
_LONGEST_NAME = 255
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SavedImage:
    """The output of ``docker save``, kept as an artifact. ``image_id``: ``sha256:…``, if the manifest tells."""

    artifact: ArtifactId
    image_id: str | None


def saved_image(reference: str) -> SavedImage | None:
    """None for an image of a registry or a node. Raises ``ValueError``."""
    if not reference.startswith(SAVED):
        return None
    name, at, image_id = reference.removeprefix(SAVED).partition("@")
    found = ids.decode(ids.ARTIFACT, name)
    if found is None or name != ids.encode(ids.ARTIFACT, found):
        raise ValueError("not an artifact: write artifact:art_… as its upload shows it")
    if at and not _DIGEST.fullmatch(image_id):
        raise ValueError("the image's id after @ must be sha256: and 64 hex digits")
    return SavedImage(ArtifactId(found), image_id or None)


def check_image(reference: str) -> None:
    """Raise ``ValueError`` with what is wrong, if anything is."""
    if saved_image(reference) is not None:
        return
    if _DIGEST.fullmatch(reference):
        return
    if _HEX.fullmatch(reference) or reference.startswith("sha256:"):
        raise ValueError("an image's id is written sha256: and 64 hex digits")
    if "://" in reference:
        raise ValueError("an image is named without https://")
    name, at, digest = reference.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError("the digest after @ must be sha256: and 64 hex digits")
    # A colon after the last slash begins the tag, one before it a port.
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError("the tag after : is empty or has characters that no tag has")
    _check_name(head + slash + last)


def _check_name(name: str) -> None:
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"the image's name is longer than {_LONGEST_NAME} characters")
    first, slash, rest = name.partition("/")
    if slash and (any(mark in first for mark in ".:[") or first == "localhost" or first != first.lower()):
        if not _DOMAIN.fullmatch(first):
            raise ValueError("the registry in front of the image's name cannot be read")
    else:
        rest = name
    if not all(_COMPONENT.fullmatch(component) for component in rest.split("/")):
        raise ValueError(
            "not an image's name: lower-case letters and digits, separated by . _ - or /, as in ghcr.io/acme/tool:1.2"
        )
