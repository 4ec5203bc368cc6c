"""``secret`` of a webhook or a callback: the name of a project secret, or of two while one takes the other's place."""

from __future__ import annotations

from typing import Annotated

from functions.documents import pointer
from functions.fields import ReadAs, fault, quoting_hint
from functions.jobspec import check_secret_name

MOST_SECRETS = 2


def _read(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else [value]
    if not names:
        raise fault("must name a secret")
    if len(names) > MOST_SECRETS:
        raise fault(f"has {len(names)} entries, and {MOST_SECRETS} is the most: the old one and the new one")
    for index, name in enumerate(names):
        at = pointer(index) if isinstance(value, list | tuple) else ""
        if not isinstance(name, str):
            raise fault(f"must be the name of a secret{quoting_hint(name)}", at=at)
        try:
            check_secret_name(name)
        except ValueError as error:
            raise fault(str(error), at=at) from None
        if name in names[:index]:
            raise fault(f"{name} stands twice", at=at)
    return tuple(names)


def _write(names: tuple[str, ...]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)


_NAME = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,254}$"}
_NAMES = {"type": "array", "minItems": 1, "maxItems": MOST_SECRETS, "items": _NAME}

SecretNames = Annotated[
    tuple[str, ...],
    ReadAs(_read, _write, {"oneOf": [_NAME, _NAMES]}),
]


def places_of_names(names: tuple[str, ...], at: str) -> dict[str, str]:
    """Pointer → name of each, of names that stand at ``at``."""
    if len(names) == 1:
        return {at: names[0]}
    return {f"{at}{pointer(index)}": name for index, name in enumerate(names)}
