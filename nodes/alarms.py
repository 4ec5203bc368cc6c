"""What the operator must know of the fleet, as of now: a sentence for each thing that it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import structlog

log = structlog.get_logger(__name__)


class Alarms(Mapping[str, str]):
    """In the order in which they came. What one is about begins with its kind, one of ``fleet.ALARMS``."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def say(self, about: str, text: str | None) -> None:
        """None: it is over."""
        if text is None:
            self._said.pop(about, None)
        elif self._said.get(about) != text:
            self._said[about] = text
            log.error("the fleet needs its operator", problem=text)

    def keep(self, kind: str, abouts: set[str]) -> None:
        """Of this kind only these still are."""
        for about in [about for about in self._said if about.startswith(f"{kind} ") and about not in abouts]:
            self.say(about, None)

    def __getitem__(self, about: str) -> str:
        return self._said[about]

    def __iter__(self) -> Iterator[str]:
        return iter(self._said)

    def __len__(self) -> int:
        return len(self._said)
