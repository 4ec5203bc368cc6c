"""The manifests that ``rgrid apply -f`` is pointed at: files, folders and standard input, one function each."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functions.errors import RGridError
from gateway.cli.failures import Failed

LARGEST = 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")
STDIN = Path("-")
NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""It becomes part of the address that the manifest is sent to."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A manifest as it lies there: the gateway checks what is in it. ``source`` is how the user called it."""

    source: str
    name: str
    content: bytes
    content_type: str


def read_manifests(paths: Iterable[Path]) -> tuple[list[ManifestFile], list[str]]:
    """Those of files, folders (not the folders in them) and ``-``, and the files that are no manifests.

    Files of a folder that are no manifests (parameters, say) are passed over; one that was named must be one.
    Raises ``Failed`` with the file's name before anything is sent.
    """
    found: list[ManifestFile] = []
    passed_over: list[str] = []
    for path in paths:
        if path != STDIN and path.is_dir():
            inside = list(_of_folder(path, passed_over))
            if not inside:
                raise Failed(f"{path}: no manifest in this folder (*.yaml or *.json with kind: Function)")
            found += inside
        else:
            content = _standard_input() if path == STDIN else _content(path)
            found.append(_manifest(str(path), content, _parsed(str(path), content)))
    twice = {one.name for one in found if sum(other.name == one.name for other in found) > 1}
    for name in sorted(twice):
        sources = ", ".join(one.source for one in found if one.name == name)
        raise Failed(f"{sources}: all of them are the function {name}")
    return found, passed_over


def _of_folder(folder: Path, passed_over: list[str]) -> Iterator[ManifestFile]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES and entry.is_file())
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}") from None
    for entry in entries:
        content = _content(entry)
        document = _parsed(str(entry), content)
        if isinstance(document, dict) and {"apiVersion", "kind", "metadata", "spec"} & document.keys():
            yield _manifest(str(entry), content, document)
        else:
            passed_over.append(str(entry))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return _bounded(str(path), opened.read(LARGEST + 1))
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise Failed(f"{str(path)!r} is not a file's name") from None


def _standard_input() -> bytes:
    return _bounded("-", sys.stdin.buffer.read(LARGEST + 1))


def _bounded(source: str, content: bytes) -> bytes:
    if len(content) > LARGEST:
        raise Failed(f"{source}: larger than {LARGEST} bytes, which no manifest is")
    return content


def _is_json(source: str, content: bytes) -> bool:
    return source.endswith(".json") or (source == "-" and content.lstrip().startswith(b"{"))


def _parsed(source: str, content: bytes) -> Any:
    from functions.documents import load_json, load_yaml

    try:
        return load_json(content) if _is_json(source, content) else load_yaml(content)
    except RGridError as error:
        raise Failed(f"{source}: {error.message}") from None


def _manifest(source: str, content: bytes, document: Any) -> ManifestFile:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise Failed(f"{source}: /metadata/name: a manifest names its function here")
    if not NAME.fullmatch(name):
        raise Failed(
            f"{source}: /metadata/name: {name[:80]!r} is no function's name: small letters, digits and dashes, "
            "at most 63, a letter first and no dash last"
        )
    content_type = "application/json" if _is_json(source, content) else "application/yaml"
    return ManifestFile(source, name, content, content_type)
