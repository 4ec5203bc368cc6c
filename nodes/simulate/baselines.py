"""What the policy is compared with: others buy at once what the queue lacks, and differ in what they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from functions.ids import NodeId
from nodes.policy.buying import buy, shortages
from nodes.policy.decision import Decision, Drop
from nodes.policy.dispatch import best_node, forced_at, serves
from nodes.policy.purse import Purse
from nodes.policy.round import decide
from nodes.policy.spare_hours import NEVER
from nodes.policy.state import COMING, Caps, FleetState, Node, Phase, Queued, Rules
from nodes.simulate.engine import Policy


class Ours:
    """``nodes.policy``, as the autoscaler calls it."""

    name = "rgrid"
    decide = staticmethod(decide)
    best_node = staticmethod(best_node)


class NoSpares:
    """What the policy does where no spares are wanted, to see what they cost."""

    name = "no-spares"

    best_node = staticmethod(best_node)

    def decide(self, state: FleetState, caps: Caps, now: float, rules: Rules) -> Decision:
        return decide(state, caps, now, replace(rules, spares=NEVER))


class KeepHour:
    """Keeps idle nodes to the end of the hour, and gives a job to the oldest node with room."""

    name = "keep-hour"

    def decide(self, state: FleetState, caps: Caps, now: float, rules: Rules) -> Decision:
        return decide(state, caps, now, replace(rules, thrift=0.0))

    def best_node(self, nodes: Iterable[Node], job: Queued, now: float, rules: Rules) -> Node | None:
        return _oldest(nodes, job)


class DropIdle:
    """Deletes what has been idle for ``idle_s``, whatever of its hour is left."""

    def __init__(self, name: str, idle_s: float) -> None:
        self.name = name
        self._idle_s = idle_s
        self._since: dict[NodeId, float] = {}

    def decide(self, state: FleetState, caps: Caps, now: float, rules: Rules) -> Decision:
        bought, _ = buy(state, shortages(state, now, replace(rules, thrift=0.0)), Purse(state, caps), now)
        idle = [node.id for node in state.nodes if node.phase is Phase.READY and not node.running]
        self._since = {node: self._since.get(node, now) for node in idle}
        drop = [Drop(node, "idle") for node, since in self._since.items() if now - since >= self._idle_s]
        times = [since + self._idle_s for since in self._since.values() if now - since < self._idle_s]
        times += [at for job in state.queue if job.paid and (at := forced_at(job, rules.boot_s, rules)) > now]
        for node in state.nodes:
            if node.phase in COMING and now >= node.created_at + rules.boot_deadline:
                drop.append(Drop(node.id, "not ready", failed=True))
            elif node.phase in COMING:
                times.append(node.created_at + rules.boot_deadline)
        return Decision(buy=bought, drop=tuple(drop), again_at=min(times, default=float("inf")))

    def best_node(self, nodes: Iterable[Node], job: Queued, now: float, rules: Rules) -> Node | None:
        return _oldest(nodes, job)


POLICIES: dict[str, Callable[[], Policy]] = {
    "rgrid": Ours,
    "keep-hour": KeepHour,
    "idle-10m": lambda: DropIdle("idle-10m", 600.0),
    "when-idle": lambda: DropIdle("when-idle", 0.0),
    "no-spares": NoSpares,
}


def _oldest(nodes: Iterable[Node], job: Queued) -> Node | None:
    free = [node for node in nodes if serves(node, job) and node.free >= job.slots]
    return min(free, key=lambda node: (node.created_at, node.id), default=None)
