"""The manifests that ``rgrid apply -f`` is pointed at: files, folders and standard input, one function each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functions.errors import RGridError
from gateway.cli.failures import Failed, in_one_line
from gateway.cli.positions import place

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
    document: Mapping[str, Any]

    def at(self, pointer: str) -> str:
        """Where a pointer into it leads, for people: ``function.yaml:12``."""
        return place(self.source, self.content, pointer)


def read_manifests(paths: Iterable[Path]) -> tuple[list[ManifestFile], list[str]]:
    """Those of files, folders (with the folders in them) and ``-``, and the files that are no manifests.

    Files of a folder that are no manifests (parameters, say) are passed over, and hidden ones are not looked at; a
    file that was named must be one. Raises ``Failed`` with file and line before anything is sent.
    """
    found: list[ManifestFile] = []
    passed_over: list[str] = []
    for path in paths:
        if path != STDIN and path.is_dir():
            inside = list(_of_folder(path, passed_over))
            if not inside:
                raise Failed(f"{path}: no manifest in this folder (*.yaml, *.yml or *.json with kind: Function)")
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
    for file in _files(folder):
        content = _content(file)
        try:
            document = _parsed(str(file), content)
        except Failed:
            # Broken, and maybe nobody's manifest; but one of ours must not be missing without a word.
            if b"rgrid/v" in content:
                raise
            passed_over.append(str(file))
            continue
        if _is_meant(document):
            yield _manifest(str(file), content, document)
        else:
            passed_over.append(str(file))


def _files(folder: Path) -> Iterator[Path]:
    """Files that may be manifests, in the order of their paths; hidden files and folders are not entered."""

    def failed(error: OSError) -> None:
        raise Failed(f"{error.filename}: {error.strerror}")

    found = []
    for place_of, folders, files in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place_of) / name for name in files if not name.startswith(".")]
    return (file for file in sorted(found) if file.suffix in SUFFIXES and file.is_file())


def _is_meant(document: Any) -> bool:
    """Whether it is to be a manifest, a wrong one maybe: not the parameters, or Kubernetes', or somebody else's."""
    if not isinstance(document, dict):
        return False
    if str(document.get("apiVersion", "")).startswith("rgrid/") or document.get("kind") == "Function":
        return True
    return not {"apiVersion", "kind"} & document.keys() and {"metadata", "spec"} <= document.keys()


def _content(path: Path) -> bytes:
    """A byte more than a manifest can have, if there are so many."""
    try:
        with path.open("rb") as opened:
            return opened.read(LARGEST + 1)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise Failed(f"{str(path)!r} is not a file's name") from None


def _standard_input() -> bytes:
    return sys.stdin.buffer.read(LARGEST + 1)


def _is_json(source: str, content: bytes) -> bool:
    return source.endswith(".json") or (source == "-" and content.lstrip().startswith(b"{"))


def _parsed(source: str, content: bytes) -> Any:
    from functions.documents import load_json, load_yaml

    if len(content) > LARGEST:
        raise Failed(f"{source}: larger than {LARGEST} bytes, which no manifest is")
    try:
        return load_json(content) if _is_json(source, content) else load_yaml(content)
    except RGridError as error:
        if error.errors:  # pointers tell more than the message
            said = "; ".join(f"{fault.pointer}: {fault.message}" for fault in error.errors)
            raise Failed(f"{place(source, content, error.errors[0].pointer)}: {in_one_line(said)}") from None
        one = ": each manifest is a file of its own" if "second one starts" in error.message else ""
        raise Failed(f"{source}: {error.message}{one}") from None


def _manifest(source: str, content: bytes, document: Any) -> ManifestFile:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    at = place(source, content, "/metadata/name")
    if not isinstance(name, str) or not name:
        raise Failed(f"{at}: /metadata/name: a manifest names its function here")
    if not NAME.fullmatch(name):
        raise Failed(
            f"{at}: /metadata/name: {name[:80]!r} is no function's name: small letters, digits and dashes, "
            "at most 63, a letter first and no dash last"
        )
    content_type = "application/json" if _is_json(source, content) else "application/yaml"
    return ManifestFile(source, name, content, content_type, document)
