"""Time zones by their IANA names, from the pinned ``tzdata`` package: all processes of an installation have the same
rules, whatever their machines have."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

from functions.documents import shown


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """Raises ``ValueError`` for what is no zone's name."""
    if name not in names():
        near = get_close_matches(name[:63], names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "write a name such as Europe/Berlin, or UTC"
        raise ValueError(f"there is no time zone {shown(name)}: {hint}")
    with resources.files("tzdata.zoneinfo").joinpath(*name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)
