"""Taking everybody in turn, some at a time: where the walk over all endpoints has got to. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from functions.ids import ProjectId

Key = tuple[ProjectId, str]
"""A project and an endpoint of it (scheme, host and port)."""
FROM_THE_FIRST: Key = (ProjectId(0), "")
EVERY_S = 1.0


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
    _next: Key | None = None

    def begin(self, now_s: float) -> bool:
        """Whether there is to be a look now; begins a round if none is under way and it is time for one."""
        if not self.under_way and not (self.long and now_s < self._began_s + EVERY_S):
            self.under_way, self._looks = True, 0
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

    def go_on_behind(self, key: Key) -> None:
        """There was no room for those that come after ``key``: they are the next."""
        self.after = key

    def begin_behind(self, key: Key) -> None:
        """Those that come after ``key`` have to wait for others of their project: the next round begins with them."""
        self._next = key
        if not self.under_way:
            self._end_if(True)

    def _end_if(self, over: bool) -> None:
        if over:
            self.under_way, self.long = False, self._looks > 0
            if self._next is not None:
                self.after, self._next = self._next, None
