"""Names of functions and of what belongs to them: they stand in addresses."""

from __future__ import annotations

import re
from typing import Annotated

from functions.fields import checked

NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def check_name(name: str) -> None:
    """Raise ``ValueError`` for what is none."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 63 lower-case letters, digits and dashes, begin with a letter and not end with a dash"
        )


Name = Annotated[str, checked(check_name, pattern=f"^{NAME.pattern}$")]
