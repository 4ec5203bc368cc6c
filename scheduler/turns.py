"""Taking everybody in turn, some at a time: where the walk over all endpoints has got to, and who is in line. Values
only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from functions.ids import ProjectId

Key = tuple[ProjectId, str]
"""A project and an endpoint of it (scheme, host and port)."""
FROM_THE_FIRST: Key = (ProjectId(0), "")
EVERY_S = 1.0
LONG = 64
"""So many endpoints of a project in line are enough: its others need not be looked for now."""
SHORT = 32
"""So many at most are lined up out of turn, so that those whose turn it is are looked for now and then."""


@dataclass(slots=True)
class Turns:
    """A round is a walk past all of them, from wherever it begins back to there, in one look or in several.

    Where several are needed (``long``), a round begins once in ``EVERY_S``: thousands of endpoints that wait for their
    next attempt would keep it walking for ever.
    """

    after: Key = FROM_THE_FIRST
    """The next look begins behind it."""
    under_way: bool = False
    long: bool = False
    _looks: int = 0
    _began_behind: Key = FROM_THE_FIRST
    _began_s: float = float("-inf")
    _from_the_first: bool = True
    _left: dict[ProjectId, Key] = field(default_factory=dict)

    def begin(self, now_s: float, long: Collection[ProjectId] = ()) -> bool:
        """Whether there is to be a look now; begins a round if none is under way and it is time for one. Projects
        whose line is ``long`` are passed by, and so are those that were ``left``."""
        if not self.under_way and not (self.long and now_s < self._began_s + EVERY_S):
            self.under_way, self._looks = True, 0
            left = next((project for project in self._left if project not in long), None)
            self.after = FROM_THE_FIRST if left is None else self._left.pop(left)
            self._began_s, self._began_behind = now_s, self.after
            self._from_the_first = self.after == FROM_THE_FIRST
        return self.under_way

    def looked(self, last: Key | None) -> None:
        """A look has ended at ``last``, or with the last one of all (None)."""
        if last is not None:
            self._looks += 1
            self.long = True
            self.after = last
            self._end_if(self._from_the_first and last >= self._began_behind > FROM_THE_FIRST)
        else:
            self.after = FROM_THE_FIRST
            self._end_if(self._from_the_first)
            self._from_the_first = True

    @property
    def left(self) -> frozenset[ProjectId]:
        """Projects of which only a part was looked at."""
        return frozenset(self._left)

    def leave(self, key: Key) -> None:
        """Pass by those of its project that come after ``key``: a round begins with them once its line is short."""
        self._left[key[0]] = key

    def _end_if(self, over: bool) -> None:
        if over:
            self.under_way, self.long = False, self._looks > 0


@dataclass(slots=True)
class Lines:
    """Each project's endpoints that may be sent something, in the order in which they were found: one that is served
    stands behind all others when it is found again. A dict is a set in order."""

    _lines: dict[ProjectId, dict[str, None]] = field(default_factory=dict)

    def join(self, keys: Iterable[Key]) -> None:
        for project, endpoint in keys:
            self._lines.setdefault(project, {}).setdefault(endpoint)

    def of(self, length: int) -> frozenset[ProjectId]:
        """Projects that have so many in line, or more."""
        return frozenset(project for project, line in self._lines.items() if len(line) >= length)

    def projects(self, in_flight: Callable[[ProjectId], int]) -> list[ProjectId]:
        """Those with somebody in line: who has the fewest messages under way first, and who was served longest ago."""
        return sorted(self._lines, key=in_flight)

    def take(self, project: ProjectId) -> str | None:
        """The first in a project's line, which leaves it; None if nobody is."""
        line = self._lines.pop(project, None)
        if line is None:
            return None
        endpoint = next(iter(line))
        del line[endpoint]
        if line:
            self._lines[project] = line
        return endpoint
