"""Paths in a job's container: inputs lie below ``/in``, outputs below ``/out``.

Only plain paths pass, so that what the manifest says is what an ``openat`` by the agent finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from functions.documents import shown

PARAMS_FILE = "/in/params.json"
_LONGEST_PATH, _LONGEST_NAME = 1024, 255
_WILD = re.compile(r"[*?\[]")
_MOST_WILD = 16
"""Each one may be tried at each character of a name."""
OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_input_path(path: str) -> None:
    """Raise ``ValueError`` unless it is a plain path below /in."""
    _check_path(path, "/in/")
    if path == PARAMS_FILE or path.startswith(PARAMS_FILE + "/"):
        raise ValueError(f"{PARAMS_FILE} is taken: the params are there")


def check_output_path(path: str) -> None:
    """Raise ``ValueError`` unless it is a plain path or a glob below /out."""
    _check_path(path, "/out/")
    if len(_WILD.findall(path)) > _MOST_WILD:
        raise ValueError(f"has more than {_MOST_WILD} wildcards")
    for name in path.split("/"):
        if "**" in name and name != "**":
            raise ValueError("** stands for folders and must stand alone between slashes")


def is_glob(path: str) -> bool:
    return _WILD.search(path) is not None


def check_output_name(name: str) -> None:
    if not OUTPUT_NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 128 letters, digits, dots, dashes and underscores, and begin with a letter or digit"
        )


def clash(paths: Sequence[str]) -> tuple[int, str] | None:
    """The first path that cannot exist beside an earlier one, by index, and why."""
    files: set[str] = set()
    folders: set[str] = set()
    for index, path in enumerate(paths):
        parents = [path[:at] for at, character in enumerate(path) if character == "/" and at]
        if path in files:
            return index, f"{shown(path)} stands twice"
        if path in folders or not files.isdisjoint(parents):
            return index, f"{shown(path)} cannot be a file and a folder"
        files.add(path)
        folders.update(parents)
    return None


def _check_path(path: str, root: str) -> None:
    if not path.startswith(root) or path == root:
        raise ValueError(f"must be a path below {root[:-1]}, as in {root}file")
    if not path.isprintable():
        raise ValueError("has a character that cannot be printed")
    if len(path.encode()) > _LONGEST_PATH:
        raise ValueError(f"is longer than {_LONGEST_PATH} bytes")
    for name in path[1:].split("/"):
        if name in ("", ".", ".."):
            raise ValueError("must be a plain path: no . or .., no // and no / at the end")
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"has a name of more than {_LONGEST_NAME} bytes")
