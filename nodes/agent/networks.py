"""A network of its own for each job that asks for one: a bridge with room for one container, behind the
firewall of this node.

The subnets are pairs of addresses out of the range for benchmarks (RFC 2544), which no network should route
and jobs cannot reach: an engine's own pools hold some thirty networks and may overlap with the operator's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import structlog

from nodes.agent import netprobe
from nodes.agent.docker_api import DockerApi, DockerError
from nodes.agent.firewall import Firewall, FirewallUnusable, resolvers
from nodes.agent.sandbox import JOB_LABEL, NODE_LABEL, JobNetwork

log = structlog.get_logger()

POOL = IPv4Network("198.18.0.0/15")
_IPV6 = Path("/proc/sys/net/ipv6").exists()
_PAIR = 30
"""Prefix of a subnet: gateway and container."""
_TRIES = 16
"""Others may have taken the subnet that was drawn."""


class JobNetworks:
    """Those of one node. ``dns``, ``deny`` and ``allow`` are the operator's; see ``firewall``."""

    def __init__(
        self,
        api: DockerApi,
        node: str,
        *,
        dns: Sequence[str] = (),
        deny: Sequence[IPv4Network] = (),
        allow: Sequence[IPv4Network] = (),
    ) -> None:
        self._api = api
        self._node = node
        self._dns = resolvers(dns)
        self._allow = tuple(allow)
        self._firewall = Firewall(node, dns=self._dns, deny=deny, allow=allow)
        self._proven = False
        self._checking = asyncio.Lock()

    async def create(self, job_id: str) -> JobNetwork:
        """A network that leads to the internet and nowhere else. Raises ``FirewallUnusable`` if that is not so
        on this machine."""
        await self._prove()
        network_id, _, _ = await self._create(job_id)
        return JobNetwork(network_id, self._dns, ipv6=_IPV6)

    async def remove(self, network_id: str) -> None:
        """May be repeated."""
        try:
            await self._api.call("DELETE", f"/networks/{network_id}")
        except DockerError as error:
            if error.status != 404:
                raise

    async def prune(self) -> None:
        """Remove those without a container, as an agent that was killed leaves them."""
        await netprobe.remove_leftovers(self._firewall.prefix)
        for network_id in await self._mine():
            try:
                await self.remove(network_id)
            except DockerError as error:
                # 403: a container of a job that goes on is in it.
                if error.status != 403:
                    log.error("network not removed", network=network_id[:12], error=error.message[:300])

    async def aclose(self) -> None:
        """Take the rules away, unless a job that the next agent goes on with is still behind them."""
        if not await self._mine():
            await self._firewall.remove()

    async def _mine(self) -> list[str]:
        networks = await self._api.call(
            "GET", "/networks", query={"filters": {"label": [f"{NODE_LABEL}={self._node}"]}}
        )
        return [str(network["Id"]) for network in networks]

    async def _prove(self) -> None:
        """Before each job: the rules stand. Before the first, and after somebody took them away: they hold."""
        async with self._checking:
            if self._proven and await self._firewall.in_place():
                return
            self._proven = False
            await self._firewall.install()
            network_id, bridge, subnet = await self._create("probe")
            try:
                reached = await netprobe.reachable_from(bridge, subnet)
            finally:
                await self.remove(network_id)
            if reached := [each for each in reached if not self._allowed(each)]:
                raise FirewallUnusable(f"its firewall lets through to {', '.join(reached[:5])}")
            if await self._firewall.dropped() == 0:
                raise FirewallUnusable("packets of jobs do not come to its rules")
            self._proven = True
            log.info("firewall proven", dns=list(self._dns))

    def _allowed(self, place: str) -> bool:
        """``place``: ``10.0.0.1:80``."""
        address = IPv4Address(place.rpartition(":")[0])
        return any(address in network for network in self._allow)

    async def _create(self, job_id: str) -> tuple[str, str, IPv4Network]:
        """The network's id, its bridge and its subnet."""
        for attempt in range(_TRIES):
            number = random.randrange(2 ** (_PAIR - POOL.prefixlen))  # noqa: S311
            subnet = IPv4Network((int(POOL.network_address) + number * 4, _PAIR))
            bridge = f"{self._firewall.prefix}{secrets.token_hex(4)[:7]}"
            try:
                answer = await self._api.call("POST", "/networks/create", body=self._body(job_id, bridge, subnet))
                return str(answer["Id"]), bridge, subnet
            except DockerError as error:
                if "overlap" not in error.message or attempt == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _body(self, job_id: str, bridge: str, subnet: IPv4Network) -> dict[str, object]:
        options = {
            "com.docker.network.bridge.name": bridge,
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
        }
        if (mtu := outgoing_mtu()) is not None:
            options["com.docker.network.driver.mtu"] = str(mtu)
        return {
            "Name": f"rgrid-{bridge}",
            "CheckDuplicate": True,
            "Driver": "bridge",
            "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Config": [{"Subnet": str(subnet), "Gateway": str(subnet[1])}]},
            "Options": options,
            "Labels": {NODE_LABEL: self._node, JOB_LABEL: job_id},
        }


def outgoing_mtu(root: Path = Path("/")) -> int | None:
    """The largest packet on this machine's way out. A bridge that takes larger ones loses them where the
    messages about it are filtered."""
    try:
        for line in (root / "proc/net/route").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1] == "00000000":
                return int((root / "sys/class/net" / fields[0] / "mtu").read_text(encoding="ascii"))
    except (OSError, ValueError, IndexError):
        pass
    return None
