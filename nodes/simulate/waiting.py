"""The jobs that wait, and what is known from those that ran before: what the scheduler's tables tell a round."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import takewhile

from functions.ids import AccountId, ProjectId
from nodes.policy.arrivals import Arrivals
from nodes.policy.expected import UNKNOWN, Expected, expected
from nodes.policy.state import NEAR_S, Queued
from nodes.simulate.loads import Job

LEARNED_FROM = 200
"""The last runs of a kind, by which the next is judged."""

Alike = tuple[int, str, int, int, bool]
"""Account, kind, slots, memory, paid: what jobs of one queue have in common."""


class Waiting:
    def __init__(self) -> None:
        self._queues: dict[Alike, deque[Job]] = {}
        self._runs: dict[str, deque[float]] = {}
        self._expected: dict[str, Expected] = {}
        self._arrivals = Arrivals()

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def add(self, job: Job) -> None:
        self._queue(job).append(job)
        self._arrivals.add(AccountId(job.account), job.at, jobs=1, slots=job.slots)

    def add_again(self, job: Job) -> None:
        """A job whose node was lost goes first."""
        self._queue(job).appendleft(job)

    def heads(self) -> list[tuple[Alike, Queued]]:
        """The first of each queue, in the order in which they are served: paid jobs after the others."""
        queues = [(alike, queue) for alike, queue in self._queues.items() if queue]
        queues.sort(key=lambda each: (each[0][4], each[1][0].at))
        return [(alike, self._group(queue[0], len(queue))) for alike, queue in queues]

    def take(self, alike: Alike) -> Job:
        return self._queues[alike].popleft()

    def groups(self, now: float) -> tuple[Queued, ...]:
        return tuple(group for queue in self._queues.values() if queue for group in self._groups(queue, now))

    def learn(self, job: Job, took: float) -> None:
        runs = self._runs.setdefault(job.kind, deque(maxlen=LEARNED_FROM))
        runs.append(took)
        self._expected[job.kind] = expected(runs)

    def expected(self, job: Job) -> Expected:
        return self._expected.get(job.kind, UNKNOWN)

    def arrivals(self, now: float) -> dict[AccountId, float]:
        return self._arrivals.rates(now)

    def _queue(self, job: Job) -> deque[Job]:
        return self._queues.setdefault((job.account, job.kind, job.slots, job.memory, job.paid), deque())

    def _groups(self, queue: deque[Job], now: float) -> Iterator[Queued]:
        urgent = sum(
            1 for _ in takewhile(lambda job: job.deadline is not None and job.deadline < now + NEAR_S, queue)
        )
        by_deadline: dict[float | None, list[Job]] = {}
        for at in range(urgent):
            by_deadline.setdefault(queue[at].deadline, []).append(queue[at])
        for jobs in by_deadline.values():
            yield self._group(jobs[0], len(jobs))
        if len(queue) > urgent:
            yield self._group(queue[urgent], len(queue) - urgent)

    def _group(self, job: Job, count: int) -> Queued:
        account, project = AccountId(job.account), ProjectId(job.account)
        return Queued(
            account, project, job.slots, job.memory, count, job.at, self.expected(job), job.paid, job.deadline
        )
