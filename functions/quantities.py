"""Quantities as manifests write them: durations (``1h30m``), CPU (``500m``) and bytes (``1Gi``), to values and back.

Every reader raises ``ValueError`` with one plain sentence. Bounds are the caller's.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

_DURATION = re.compile(
    r"(?:(?P<days>[0-9]+)d)?(?:(?P<hours>[0-9]+)h)?(?:(?P<minutes>[0-9]+)m)?(?:(?P<seconds>[0-9]+)s)?"
    r"(?:(?P<milliseconds>[0-9]+)ms)?"
)
_NUMBER = r"(?P<number>[0-9]{1,24}(?:\.[0-9]{1,9})?)"
_CPU = re.compile(_NUMBER + r"(?P<unit>m?)")
_BYTES = re.compile(_NUMBER + r"(?P<unit>k|M|G|T|Ki|Mi|Gi|Ti|)")
_LONGEST = 40
"""No quantity needs more characters; a number of a million digits is slow to read."""

_LONGEST_DURATION = timedelta(days=36500)
_MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_UNITS = {
    "Ti": 1024**4, "T": 1000**4, "Gi": 1024**3, "G": 1000**3, "Mi": 1024**2, "M": 1000**2, "Ki": 1024, "k": 1000, "": 1,
}  # fmt: skip


def parse_duration(text: str) -> timedelta:
    """``500ms``, ``90s``, ``10m``, ``1h30m``, ``30d``: whole numbers, larger units first, each once."""
    match = _DURATION.fullmatch(text) if 0 < len(text) <= _LONGEST else None
    if match is None:
        raise ValueError("not a duration: write 30s, 10m or 1h30m")
    parts = {unit: int(number) for unit, number in match.groupdict().items() if number is not None}
    try:
        value = timedelta(**parts)
    except OverflowError:
        value = timedelta.max
    if value > _LONGEST_DURATION:
        raise ValueError("the duration is longer than a hundred years")
    return value


def parse_cpu(value: object) -> float:
    """``500m``, ``"0.5"``, ``1``, ``2``: in CPUs, to a thousandth."""
    match = _CPU.fullmatch(_text(value))
    if match is None:
        raise ValueError("not an amount of CPU: write 500m, 0.5 or 2")
    milli = Decimal(match["number"]) * (1 if match["unit"] else 1000)
    if milli != int(milli):
        raise ValueError("CPU is counted in thousandths: 1m is the least step")
    return int(milli) / 1000


def parse_bytes(value: object) -> int:
    """``512Mi``, ``1.5Gi`` (of 1024), ``1G`` (of 1000), ``1073741824``: in bytes."""
    match = _BYTES.fullmatch(_text(value))
    if match is None:
        raise ValueError("not a number of bytes: write 512Mi, 1Gi or 2G")
    size = Decimal(match["number"]) * _UNITS[match["unit"]]
    if size != int(size):
        raise ValueError("this is not a whole number of bytes")
    return int(size)


def format_duration(value: timedelta) -> str:
    """The text that ``parse_duration`` reads as ``value``, down to milliseconds: ``1h30m``, ``0s``."""
    rest = value // timedelta(milliseconds=1)
    text = ""
    for unit, size in _MILLISECONDS.items():
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def format_cpu(value: float) -> str:
    """``500m``, ``2``: as Kubernetes writes it."""
    milli = round(value * 1000)
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def format_bytes(value: int) -> str:
    """In the largest unit that divides it: ``1Gi``, ``1500M``, ``1001``."""
    return next(
        f"{value // size}{unit}" for unit, size in _UNITS.items() if (value % size == 0 and value >= size) or size == 1
    )


def _text(value: object) -> str:
    """A number as it would be written; for what is neither text nor a number, something that no pattern takes."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    text = value if isinstance(value, str) else format(Decimal(str(value)), "f")
    return text if len(text) <= _LONGEST else ""
