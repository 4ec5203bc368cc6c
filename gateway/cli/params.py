"""The params of an invocation from the command line: ``-p name=value`` over ``--data``. Faults are usage errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from functions.errors import RGridError

LARGEST = 1024 * 1024
"""The gateway takes no larger body."""

_DOT = re.compile(r"(?<!\\)\.")


Place = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """``params`` as they were given, and the files that become params once they are uploaded."""

    params: dict[str, Any]
    files: list[tuple[Place, Path]]

    def with_files(self, upload: Callable[[Path], str]) -> dict[str, Any]:
        """The params, with each file's ``artifact:…`` in its place."""
        for place, file in self.files:
            _set(self.params, place, upload(file))
        return self.params


def read_params(pairs: Sequence[str], data: str | None, files: Sequence[str] = ()) -> Given:
    """The object of ``data`` (JSON, ``@file`` or ``-``) with each pair set in it; ``files`` read name=path."""
    params = _object(data) if data is not None else {}
    places = _places([*((pair, "--param") for pair in pairs), *((file, "--file") for file in files)])
    for (place, value), _ in zip(places, pairs, strict=False):
        _set(params, place, value_of(value))
    return Given(params, [(place, _file(value)) for place, value in places[len(pairs) :]])


def _places(given_pairs: Sequence[tuple[str, str]]) -> list[tuple[Place, str]]:
    """Where each value goes, each place once."""
    places: list[tuple[Place, str]] = []
    given: set[Place] = set()
    for pair, option in given_pairs:
        name, equals, value = pair.partition("=")
        path = tuple(part.replace("\\.", ".") for part in _DOT.split(name))
        if not equals or not all(path):
            raise _bad(f"{pair!r} does not read name={'path' if option == '--file' else 'value'}", option)
        clash = next(
            (other for other in given if path[: len(other)] == other or other[: len(path)] == path), None
        )
        if clash is not None:
            raise _bad(
                f"{name} is set twice"
                if clash == path
                else f"{name} and {'.'.join(clash)} exclude each other",
                option,
            )
        given.add(path)
        places.append((path, value))
    return places


def _file(name: str) -> Path:
    """A file that can be read; said before anything is sent."""
    try:
        with Path(name).open("rb"):
            return Path(name)
    except OSError as error:
        raise _bad(f"{name}: {error.strerror}", "--file") from None
    except ValueError:  # a NUL in the name
        raise _bad(f"{name!r} is not a file's name", "--file") from None


def value_of(text: str) -> Any:
    """What ``text`` is as JSON, else the text itself: ``3``, ``true``, ``null``, ``["a"]``; ``"3"`` is text."""
    from functions.documents import load_json

    try:
        return load_json(text.encode("utf-8", "surrogateescape"))
    except RGridError:
        return text


def _set(params: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for part in parents:
        if not isinstance(params.get(part), dict):
            params[part] = {}
        params = params[part]
    params[last] = value


def _object(data: str) -> dict[str, Any]:
    from functions.documents import load_json

    try:
        value = load_json(content(data))
    except RGridError as error:
        raise typer.BadParameter(error.message, param_hint="--data") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("params are a JSON object", param_hint="--data")
    return value


def content(data: str) -> bytes:
    """What an option gives: its text, or what ``@file`` or ``-`` has."""
    if data != "-" and not data.startswith("@"):
        return data.encode("utf-8", "surrogateescape")
    try:
        if data == "-":
            found = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(data[1:]).open("rb") as opened:
                found = opened.read(LARGEST + 1)
    except OSError as error:
        raise typer.BadParameter(f"{data}: {error.strerror}", param_hint="--data") from None
    except ValueError:  # a NUL in the name
        raise typer.BadParameter(f"{data!r} is not a file's name", param_hint="--data") from None
    if len(found) > LARGEST:
        raise typer.BadParameter(f"{data}: larger than {LARGEST} bytes", param_hint="--data")
    return found


def _bad(message: str, option: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=option)
