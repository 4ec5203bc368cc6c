"""What PRODUCT §3 has in a manifest and no release serves yet: known, so that it can be told from a typing error."""

from __future__ import annotations

from typing import Any

from functions.documents import pointer
from functions.faults import Fault
from functions.fields import UNSUPPORTED

_INSTEAD_OF: dict[tuple[str, ...], str | None] = {
    ("spec", "triggers"): None,
    ("spec", "callbacks", "*", "secret"): None,
}
"""Each key with the one that is not missed where it stands."""

EVENTS = frozenset({"job.started", "schedule.missed"})


class TakenOut:
    """``document`` without those keys, a fault for each, and pointers to the keys that are not missed then."""

    def __init__(self, document: Any) -> None:
        self.faults: list[Fault] = []
        self.excused: set[str] = set()
        for path, instead in _INSTEAD_OF.items():
            document = self._without(document, path, (), instead)
        self.document = document

    def _without(self, value: Any, path: tuple[str, ...], at: tuple[str | int, ...], instead: str | None) -> Any:
        """A copy, as far as something in it changes."""
        key, rest = path[0], path[1:]
        if key == "*":
            if not isinstance(value, list):
                return value
            return [self._without(item, rest, (*at, index), instead) for index, item in enumerate(value)]
        if not isinstance(value, dict) or key not in value:
            return value
        if rest:
            return {**value, key: self._without(value[key], rest, (*at, key), instead)}
        self.faults.append(Fault(pointer(*at, key), f"{key} is not supported yet", UNSUPPORTED))
        if instead is not None:
            self.excused.add(pointer(*at, instead))
        return {name: item for name, item in value.items() if name != key}
