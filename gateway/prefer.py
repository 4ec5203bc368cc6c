"""``Prefer: wait=N`` (RFC 7240): how long a caller wants its answer held until the job has ended."""

from __future__ import annotations

import re
from dataclasses import dataclass

from functions.errors import FieldError, Malformed

LONGEST_S = 300
USUAL_S = 60
"""What ``wait`` without a number means."""


@dataclass(frozen=True, slots=True)
class Preference:
    """``wait_s`` is None unless the caller waits; ``applied`` is what ``Preference-Applied`` says, if anything."""

    wait_s: int | None = None
    applied: str | None = None


def read_prefer(text: str | None) -> Preference:
    """Preferences that we do not know are ignored, as the RFC wants; a bad ``wait`` raises ``Malformed``."""
    if text is None:
        return Preference()
    known: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition(";")[0].partition("=")
        known.setdefault(name.strip().lower(), value.strip().strip('"') if equals else str(USUAL_S))
    if (wait := known.get("wait")) is not None:
        if not re.fullmatch(r"[0-9]{1,9}", wait) or int(wait) > LONGEST_S:
            fault = FieldError("/header/Prefer", f"wait takes whole seconds, {LONGEST_S} at most")
            raise Malformed("the Prefer header breaks a rule", errors=[fault])
        return Preference(int(wait), f"wait={int(wait)}")
    return Preference(applied="respond-async") if "respond-async" in known else Preference()
