"""The agent's files as ``make agent`` built them: one for each Python and processor, known by its content's hash.

A gateway serves them, and whoever buys servers tells these which one to fetch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from functions.errors import Unavailable

BUILT = Path(__file__).parent.parent / "dist" / "agent"
"""Where ``make agent`` puts them."""
INDEX = "index.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


class AgentFile(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0)


class _Index(BaseModel):
    version: str
    files: dict[str, AgentFile] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """``files`` by target: ``cp312-x86_64`` is CPython 3.12 on that processor. Empty where none were built."""

    folder: Path
    version: str = ""
    files: Mapping[str, AgentFile] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> AgentFiles:
        """What is there; nothing at all is fine. Raises ``Unavailable`` for what cannot be served from."""
        try:
            index = _Index.model_validate_json((folder / INDEX).read_bytes())
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValidationError):
            raise Unavailable(f"{folder / INDEX} cannot be read: build the agent's files anew (make agent)") from None
        found = cls(folder, index.version, index.files)
        for file in index.files.values():
            path = found.path(file.sha256)
            if path is None or path.stat().st_size != file.size:
                raise Unavailable(f"{folder} lacks files that its index names: build them anew (make agent)")
        return found

    def path(self, sha256: str) -> Path | None:
        """The file with this content, of this release or of another whose servers still ask for it; None if there is
        none."""
        if not DIGEST.fullmatch(sha256):
            return None
        path = self.folder / f"{sha256}.pyz"
        return path if path.is_file() else None
