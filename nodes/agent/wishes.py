"""/out/retry.json: when a job that fails wants to be tried again, ``{"after": "30s", "reason": "…"}``.

Read when the container is dead, as its results are. Whether there is another attempt is not the job's to say; a file
that cannot be read changes nothing, and the error says so.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from nodes.agent.results import NotAResult, parse_result
from nodes.agent.tasks import to_the_end
from nodes.agent.tree import Odd, open_file
from nodes.agent.workspace import Workspace
from nodes.protocol import RETRY_AFTER_CAP_S

FILE = ("retry.json",)
LARGEST_BYTES = 4096
REASON_MOST = 500

_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?")
_SECONDS = (86_400, 3600, 60, 1, 0.001)


@dataclass(frozen=True, slots=True)
class Wish:
    """``after_s`` None: nothing was asked for. ``remark`` goes after the error's message."""

    after_s: float | None = None
    remark: str = ""


class NotAWish(ValueError):
    """The message ends the sentence ``/out/retry.json was ignored: it is …``."""


async def read_wish(workspace: Workspace) -> Wish:
    """The container must be dead and removed."""
    return await to_the_end(lambda: _read(workspace.out_fd))


def _read(out: int) -> Wish:
    try:
        os.stat(FILE[0], dir_fd=out, follow_symlinks=False)
        return parse_wish(_content(out))
    except FileNotFoundError:
        return Wish()
    except OSError:
        why = "unreadable"
    except Odd as odd:
        why = f"no plain file ({odd.reason})"
    except (NotAWish, NotAResult) as fault:
        why = str(fault)
    return Wish(None, f" (/out/retry.json was ignored: it is {why})")


def _content(out: int) -> bytes:
    handle, state = open_file(out, FILE)
    try:
        if state.st_size > LARGEST_BYTES:
            raise NotAWish(f"larger than {LARGEST_BYTES} bytes")
        return os.pread(handle, LARGEST_BYTES, 0)
    finally:
        os.close(handle)


def parse_wish(data: bytes) -> Wish:
    """Raises ``NotAWish`` or ``NotAResult``, whatever the bytes are."""
    value = parse_result(data)
    if not isinstance(value, dict) or not value.keys() <= {"after", "reason"} or "after" not in value:
        raise NotAWish('not of the form {"after": "30s", "reason": "…"}')
    reason = value.get("reason", "")
    if not isinstance(reason, str):
        raise NotAWish("not right: reason must be text")
    after_s = min(_seconds(value["after"]), float(RETRY_AFTER_CAP_S))
    said = "".join(c if c.isprintable() else " " for c in reason[:REASON_MOST]).strip()
    return Wish(after_s, f" (asks to be tried again after {after_s:g} s{f': {said}' if said else ''})")


def _seconds(after: Any) -> float:
    if isinstance(after, (int, float)) and not isinstance(after, bool):
        if after < 0:
            raise NotAWish("not right: after must not be negative")
        try:
            return float(after) if math.isfinite(after) else float(RETRY_AFTER_CAP_S)
        except OverflowError:
            return float(RETRY_AFTER_CAP_S)
    match = _DURATION.fullmatch(after) if isinstance(after, str) and after else None
    if match is None:
        raise NotAWish("not right: after must be a duration such as 30s or 1h30m, or a number of seconds")
    return sum(int(part) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True) if part)
