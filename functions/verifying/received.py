"""A request as it came, before anything of it is believed: what every scheme reads, and how a scheme says no."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


class Unverified(Exception):
    """Nobody with a secret has sent this. The reason is for the webhook's owner, never for the sender."""


class Headers(Mapping[str, str]):
    """Values by name, in whatever case the name is written; the first one of a name that stands twice."""

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def one(self, name: str) -> str | None:
        """The header's only value, None without one; raises ``Unverified`` when there are several."""
        values = self._values.get(name.lower(), [])
        if len(values) > 1:
            raise Unverified(f"there is more than one {name} header")
        return values[0] if values else None

    def need(self, name: str) -> str:
        """As ``one``; raises ``Unverified`` without it, too."""
        value = self.one(name)
        if not value:
            raise Unverified(f"the {name} header is missing")
        return value


@dataclass(frozen=True, slots=True)
class Received:
    """``url`` is the address that the sender was given, query included; ``now`` is seconds since 1970."""

    headers: Headers
    body: bytes
    url: str
    now: float


@dataclass(frozen=True, slots=True)
class Options:
    """What a webhook says beside its scheme, for those that need it."""

    header: str | None = None
    algorithm: str = "sha256"
    encoding: str = "hex"
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A test event to be signed. ``headers`` are those that say what it is."""

    id: str
    timestamp: int
    body: bytes
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
