"""How a command says that it cannot: an exception with one plain line, which ``main.py`` alone prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 5
"""No more faults of one document are printed; the rest is counted."""


class Failed(Exception):
    """The command cannot do what was asked. The message is one line that says what to do."""


class Refused(Failed):
    """The gateway answered with a problem document (or something else that is no success)."""

    def __init__(
        self, message: str, *, status: int, code: str = "", faults: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.faults = tuple(faults)
        """Pointers into what was sent, each with what is wrong there."""


class PipeClosed(Exception):
    """Nobody reads our output any more (``| head``): stop without a word."""


def in_one_line(text: str) -> str:
    """``text`` without line breaks or anything else that a terminal would obey."""
    visible = (character if character.isprintable() else " " for character in text)
    return " ".join("".join(visible).split())


def problem_line(problem: Mapping[str, Any]) -> str:
    """A problem document as one line: its code, then each fault with its pointer, else the detail."""
    code = str(problem.get("code") or "refused")
    faults = [fault for fault in problem.get("errors") or () if isinstance(fault, Mapping)]
    if faults:
        said = "; ".join(_fault(fault) for fault in faults[:SHOWN])
        if len(faults) > SHOWN:
            said += f"; and {len(faults) - SHOWN} more"
    else:
        said = str(problem.get("detail") or problem.get("title") or "no reason given")
    if code == "internal" and problem.get("instance"):
        said += f" (request {problem['instance']})"
    return in_one_line(f"{code}: {said}")


def faults_of(problem: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The faults of a problem document: pointers and what is wrong there."""
    found = [fault for fault in problem.get("errors") or () if isinstance(fault, Mapping)]
    return [(str(fault.get("pointer") or ""), in_one_line(str(fault.get("message") or "not valid"))) for fault in found]


def _fault(fault: Mapping[str, Any]) -> str:
    pointer, message = str(fault.get("pointer") or ""), str(fault.get("message") or "not valid")
    return f"{pointer}: {message}" if pointer else message
