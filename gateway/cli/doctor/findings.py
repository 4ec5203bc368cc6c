"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but not as well or as safely as it should."""
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    part: str
    state: State
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    def at_most_a_warning(self, why: str) -> Finding:
        """The same where the part is not needed."""
        if self.state is not State.WRONG:
            return self
        return replace(self, state=State.WARNING, advice=f"{why}: {self.advice}")


def ok(part: str, found: str) -> Finding:
    return Finding(part, State.OK, found)


def warning(part: str, found: str, advice: str) -> Finding:
    return Finding(part, State.WARNING, found, advice)


def wrong(part: str, found: str, advice: str) -> Finding:
    return Finding(part, State.WRONG, found, advice)


def skipped(part: str, found: str, advice: str = "") -> Finding:
    return Finding(part, State.SKIPPED, found, advice)
