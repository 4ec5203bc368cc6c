"""Which files an output of the manifest means: ``*``, ``?`` and ``[…]`` within a name, ``**`` over any number of
folders. Pure; the time it takes is bounded whatever the pattern is.

Names that begin with a dot are matched like others: what a job writes to /out is there to be collected.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

_WILD = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """``literal``: it names one file and nothing else. ``parts`` are names, or ``None`` for ``**``."""

    literal: bool
    parts: tuple[re.Pattern[str] | str | None, ...]

    @classmethod
    def parse(cls, path: str) -> Pattern:
        """``path`` is absolute in the container, such as ``/out/frames/*.png``."""
        names = [name for name in path.split("/") if name not in ("", ".")]
        parts: list[re.Pattern[str] | str | None] = []
        for name in names:
            if name == "**":
                if not parts or parts[-1] is not None:
                    parts.append(None)
            elif _WILD.search(name):
                # Compiled to atomic groups, so that no name makes it try for ever.
                parts.append(re.compile(fnmatch.translate(name)))
            else:
                parts.append(name)
        return cls(all(isinstance(part, str) for part in parts), tuple(parts))

    @property
    def names(self) -> tuple[str, ...]:
        """The path of a literal one, from the container's root on."""
        return tuple(part for part in self.parts if isinstance(part, str))

    def matches(self, names: Sequence[str]) -> bool:
        """Whether a path, given as its names from the container's root on, is meant."""
        parts, at, part = self.parts, 0, 0
        # Where to go back to: the last ``**`` and how much of the path it has taken.
        star, taken = -1, 0
        while at < len(names):
            if part < len(parts) and parts[part] is None:
                star, taken = part, at
                part += 1
            elif part < len(parts) and _is(parts[part], names[at]):
                part += 1
                at += 1
            elif star >= 0:
                taken += 1
                part, at = star + 1, taken
            else:
                return False
        return all(rest is None for rest in parts[part:])


def _is(part: re.Pattern[str] | str | None, name: str) -> bool:
    if isinstance(part, str):
        return part == name
    return part is not None and part.match(name) is not None
