"""Plays a load against a cloud under a policy, event by event, and records what came of it: the same for one seed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

from functions.errors import Invalid
from functions.ids import NodeId, ProjectId
from nodes.policy.decision import Buy, Decision, Drop
from nodes.policy.dispatch import is_forced
from nodes.policy.state import HOUR, Caps, FleetState, Node, Phase, Queued, Rules, Running
from nodes.simulate.clouds import GIB, Cloud
from nodes.simulate.loads import Job
from nodes.simulate.shop import Shop
from nodes.simulate.waiting import Alike, Waiting

DELETE_AGAIN_S = 30.0


class Policy(Protocol):
    """``nodes.policy``, or what it is compared with."""

    name: str

    def decide(self, state: FleetState, caps: Caps, now: float, rules: Rules) -> Decision: ...

    def best_node(self, nodes: Iterable[Node], job: Queued, now: float, rules: Rules) -> Node | None: ...


@dataclass(slots=True)
class Machine:
    """A server's life; ``node`` is what the policy sees of it. ``busy`` has from, until and slots of each job."""

    node: Node
    ready: float | None = None
    gone: float = math.inf
    busy: list[tuple[float, float, int]] = field(default_factory=list)
    jobs: dict[int, tuple[Job, float]] = field(default_factory=dict)
    pulled: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Run:
    """``starts`` has the jobs and when each started, twice if its node was lost; ``lost`` is how many runs that
    were."""

    policy: str
    jobs: Sequence[Job]
    machines: list[Machine] = field(default_factory=list)
    starts: list[tuple[Job, float]] = field(default_factory=list)
    lost: int = 0
    calls: int = 0
    rounds: int = 0
    most_nodes: int = 0
    ended: float = 0.0


def play(
    jobs: Sequence[Job],
    cloud: Cloud,
    policy: Policy,
    *,
    caps: Caps,
    rules: Rules,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Run:
    """Until the last job has ended and the last server is gone. ``progress`` is told how many more jobs ended. Raises
    ``Invalid`` for a job that no server can hold: it would wait for ever."""
    for slots, memory in sorted({(job.slots, job.memory) for job in jobs}):
        if not any(offer.slots >= slots and offer.memory >= memory for offer in cloud.offers):
            size = f"{slots} slots" + (f" and {memory / GIB:,.1f} GiB" if memory > GIB else "")
            types = ", ".join(dict.fromkeys(offer.type for offer in cloud.offers))
            raise Invalid(f"a job takes {size}: no server of {types} can hold it")
    return _Engine(jobs, cloud, policy, caps=caps, rules=rules, seed=seed, progress=progress).play()


class _Engine:
    def __init__(
        self,
        jobs: Sequence[Job],
        cloud: Cloud,
        policy: Policy,
        *,
        caps: Caps,
        rules: Rules,
        seed: int,
        progress: Callable[[int], None],
    ) -> None:
        self.cloud, self.policy, self.caps, self.rules, self.progress = cloud, policy, caps, rules, progress
        self.shop = Shop(cloud, seed)
        self.waiting = Waiting()
        self.run = Run(policy.name, jobs)
        self.machines: dict[NodeId, Machine] = {}
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.left = len(jobs)
        self.last_round, self.next_round = -rules.round_s, math.inf

    def play(self) -> Run:
        last = self.run.jobs[-1].at if self.run.jobs else 0.0
        for job in self.run.jobs:
            self._at(job.at, self._arrive, job)
        for at, key in self.shop.changes(last + 48 * HOUR):
            self._at(at, self._turn, key)
        for _, until in self.cloud.outages:
            self._at(until, self._look)
        if self.cloud.dearer is not None:
            self._at(self.cloud.dearer[0], lambda _: self.shop.raise_prices())
        now = 0.0
        while self.left or self.machines:
            now = min(self.events[0][0] if self.events else math.inf, self.next_round)
            if now == math.inf:
                raise RuntimeError(f"{self.left} jobs left and nothing to happen")
            if self.next_round <= now:
                self._round(now)
            else:
                _, _, happen, what = heapq.heappop(self.events)
                happen(now, *what)
        self.run.ended, self.run.calls = now, self.shop.calls
        return self.run

    def _at(self, when: float, happen: Callable[..., None], *what: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, happen, what))

    # What the policy decides

    def _round(self, now: float) -> None:
        self.last_round, self.next_round = now, math.inf
        self.run.rounds += 1
        nodes = tuple(machine.node for machine in self.machines.values())
        state = FleetState(nodes, self.waiting.groups(now), self.shop.offers(), arrivals=self.waiting.arrivals(now))
        decision = self.policy.decide(state, self.caps, now, self.rules)
        for renewal in decision.renew:
            self._change(renewal.node, reserved_until=renewal.until)
        for drop in decision.drop:
            self._drop(now, drop)
        for node in nodes:
            if node.closed != (node.id in decision.closed):
                self._change(node.id, closed=not node.closed)
        for each in decision.buy:
            self._buy(now, each)
        self._dispatch(now)
        # What waits for paid minutes only waits for events, and its deadline is in ``again_at``.
        urgent = any(is_forced(head, now, self.rules.boot_s, self.rules) for _, head in self.waiting.heads())
        again = min(decision.again_at, now + self.rules.round_s if urgent else math.inf)
        self._look(again if again > now else now + self.rules.round_s)

    def _look(self, when: float) -> None:
        """A round at the first of the autoscaler's turns from ``when`` on. They follow the last round regularly; those
        that would find nothing to do are left out."""
        if when < math.inf:
            turns = max(1, math.ceil((when - self.last_round) / self.rules.round_s - 1e-9))
            self._look_at(self.last_round + turns * self.rules.round_s)

    def _wake(self, now: float) -> None:
        """A round at once, for a job that found no room."""
        self._look_at(max(now, self.last_round + self.rules.apart_s))

    def _look_at(self, when: float) -> None:
        self.next_round = min(self.next_round, self._up(when))

    def _up(self, when: float) -> float:
        return next((until for since, until in self.cloud.outages if since <= when < until), when)

    def _buy(self, now: float, buy: Buy) -> None:
        if not (self.shop.call(now) and self.shop.sells(buy.offer, now)):
            return
        node = NodeId(UUID(int=len(self.run.machines) + 1))
        machine = Machine(Node(node, buy.offer, Phase.BOOTING, buy.account, buy.payer, now, now + HOUR))
        self.machines[node] = machine
        self.run.machines.append(machine)
        self.run.most_nodes = max(self.run.most_nodes, len(self.machines))
        boot = self.shop.boot_s()
        if boot is not None:
            self._at(now + boot, self._join, machine)

    def _drop(self, now: float, drop: Drop) -> None:
        machine = self.machines[drop.node]
        if machine.jobs and not drop.failed:
            raise RuntimeError(f"{self.run.policy} drops a node that has jobs")
        self._change(drop.node, phase=Phase.DELETING)
        self._delete(now, machine)

    def _delete(self, now: float, machine: Machine) -> None:
        if self.shop.call(now):
            self._at(now + self.shop.delete_s(), self._gone, machine)
        else:
            self._at(now + DELETE_AGAIN_S, self._delete, machine)

    def _change(self, node: NodeId, **changes: Any) -> None:
        machine = self.machines[node]
        machine.node = replace(machine.node, **changes)

    # What happens by itself

    def _join(self, now: float, machine: Machine) -> None:
        if machine.node.phase is Phase.BOOTING:
            machine.ready = now
            self._change(machine.node.id, phase=Phase.READY)
            lives = self.shop.lives_s()
            if lives < math.inf:
                self._at(now + lives, self._lose, machine)
            self._dispatch(now)
            self._look(now)

    def _gone(self, now: float, machine: Machine) -> None:
        machine.gone = now
        del self.machines[machine.node.id]
        if self.waiting:
            self._look(now)

    def _lose(self, now: float, machine: Machine) -> None:
        if machine.node.phase is not Phase.READY:
            return
        for job, since in machine.jobs.values():
            machine.busy.append((since, now, job.slots))
            self.waiting.add_again(job)
            self.run.lost += 1
        machine.jobs.clear()
        self._change(machine.node.id, phase=Phase.DELETING, running=())
        self._gone(now, machine)
        self._dispatch(now)

    def _turn(self, now: float, key: tuple[str, str]) -> None:
        self.shop.turn(key)
        if self.waiting:
            self._look(now)

    def _arrive(self, now: float, job: Job) -> None:
        self.waiting.add(job)
        self._dispatch(now)
        if self.waiting:
            self._wake(now)
        elif self.rules.spares.hold(now):
            self._look(now)  # what it has taken may have been a spare

    def _dispatch(self, now: float) -> None:
        if self._up(now) != now:
            return
        while self.waiting:
            ready = [each.node for each in self.machines.values() if each.node.phase is Phase.READY]
            if not any(node.free for node in ready) or not self._start_one(now, ready):
                return

    def _start_one(self, now: float, ready: list[Node]) -> bool:
        for alike, head in self.waiting.heads():
            node = self.policy.best_node(ready, head, now, self.rules)
            if node is not None:
                self._start(now, self.machines[node.id], alike)
                return True
        return False

    def _start(self, now: float, machine: Machine, alike: Alike) -> None:
        job = self.waiting.take(alike)
        pull = 0.0 if job.kind in machine.pulled else self.cloud.pull_s
        machine.pulled.add(job.kind)
        running = Running(ProjectId(job.account), job.slots, now, self.waiting.expected(job), job.paid)
        self._change(machine.node.id, running=(*machine.node.running, running))
        self.count += 1
        machine.jobs[self.count] = job, now
        self._at(now + pull + job.runs, self._end, machine, self.count, running)
        self.run.starts.append((job, now))

    def _end(self, now: float, machine: Machine, attempt: int, running: Running) -> None:
        if attempt not in machine.jobs:  # lost with its node
            return
        job, since = machine.jobs.pop(attempt)
        machine.busy.append((since, now, job.slots))
        rest = list(machine.node.running)
        rest.remove(running)
        self._change(machine.node.id, running=tuple(rest))
        self.waiting.learn(job, now - since)
        self.left -= 1
        self.progress(1)
        self._dispatch(now)
        if self.waiting or not machine.jobs:
            self._look(now)
