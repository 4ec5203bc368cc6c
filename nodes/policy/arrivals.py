"""How many slots the jobs that come to an account need: by this spares are sized, by autoscaler and simulator alike."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from functions.ids import AccountId

WINDOW_S = 1800.0


@dataclass(slots=True)
class _Lately:
    """``came`` has when, how many jobs and how many slots they need; the sums are of all that is in it."""

    came: deque[tuple[float, int, int]] = field(default_factory=deque)
    jobs: int = 0
    slots: int = 0


class Arrivals:
    """Those of the last ``WINDOW_S``. Times are seconds of the policy's clock."""

    def __init__(self) -> None:
        self._by_account: dict[AccountId, _Lately] = {}

    def add(self, account: AccountId, at: float, *, jobs: int, slots: int) -> None:
        """Jobs that came at ``at``, not before those that were added for the account already."""
        lately = self._by_account.setdefault(account, _Lately())
        lately.came.append((at, jobs, slots))
        lately.jobs += jobs
        lately.slots += slots

    def rates(self, now: float) -> dict[AccountId, float]:
        """Slots per second. The next job is not expected sooner than the last one is ago, so that a load that has
        stopped is forgotten soon."""
        rates = {}
        for account, lately in list(self._by_account.items()):
            while lately.came and lately.came[0][0] < now - WINDOW_S:
                _, jobs, slots = lately.came.popleft()
                lately.jobs -= jobs
                lately.slots -= slots
            if lately.came:
                since_last = max(now - lately.came[-1][0], 0.0)
                rates[account] = lately.slots / max(WINDOW_S, lately.jobs * since_last)
            else:
                del self._by_account[account]
        return rates
