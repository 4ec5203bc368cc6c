"""Tries, from where a job's packets come from, whether this node can be reached: the proof of the firewall.

A network namespace of its own is plugged into a job's bridge as a container would be, without needing an image.
From there a short program tries to connect to a listener of the agent at every address of this machine and to
the addresses where clouds keep metadata.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

from nodes.agent.firewall import FirewallUnusable, run

CONNECT_S = 1.0
_NAMESPACES = Path("/run/netns")
METADATA = (("169.254.169.254", 80), ("169.254.170.2", 80), ("100.100.100.200", 80))

_PROGRAM = """
import json, socket, sys, threading
reached = []
def attempt(host, port, seconds):
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError:
        return
    reached.append(f"{host}:{port}")
targets, seconds = json.loads(sys.argv[1])
threads = [threading.Thread(target=attempt, args=(*target, seconds)) for target in targets]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(sorted(reached)))
"""


async def reachable_from(bridge: str, subnet: IPv4Network) -> list[str]:
    """``address:port`` of all that answered though none should have. ``subnet`` is the bridge's, with its
    first address the gateway's and its second free."""
    gateway, own = list(subnet.hosts())[:2]
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", 0)  # noqa: S104
    try:
        port = listener.sockets[0].getsockname()[1]
        targets = [(address, port) for address in {str(gateway), *await _own_addresses()}]
        async with _plugged_in(bridge, f"{own}/{subnet.prefixlen}", str(gateway)) as namespace:
            return await _attempt(namespace, [*targets, *METADATA])
    finally:
        listener.close()


async def remove_leftovers(prefix: str) -> None:
    """Of a probe that was killed; ``prefix`` is of this node's bridges."""
    names = [path.name for path in _NAMESPACES.glob(f"{prefix}*-probe")]  # noqa: ASYNC240 - a folder in memory
    for name in names:
        await _ip("netns", "delete", name)


async def _attempt(namespace: str, targets: list[tuple[str, int]]) -> list[str]:
    program = [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps([targets, CONNECT_S])]
    output = await _ip("netns", "exec", namespace, *program)
    return [str(each) for each in json.loads(output)]


async def _own_addresses() -> list[str]:
    links = json.loads(await _ip("-j", "-4", "address", "show") or "[]")
    return [
        str(each["local"])
        for link in links
        for each in link.get("addr_info", [])
        if "local" in each and link.get("ifname") != "lo"
    ]


@asynccontextmanager
async def _plugged_in(bridge: str, address: str, gateway: str) -> AsyncIterator[str]:
    name, port = f"{bridge}-probe", f"p{bridge}"[:15]
    await _ip("netns", "add", name)
    try:
        await _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        await _ip("link", "set", port, "master", bridge, "up")
        await _ip("-n", name, "address", "add", address, "dev", "eth0")
        await _ip("-n", name, "link", "set", "eth0", "up")
        await _ip("-n", name, "route", "add", "default", "via", gateway)
        yield name
    finally:
        # The pair of interfaces goes with it.
        await _ip("netns", "delete", name)


async def _ip(*arguments: str) -> str:
    code, output = await run(["ip", *arguments])
    if code != 0:
        raise FirewallUnusable(f"ip {' '.join(arguments[:3])}: {output[-500:]}")
    return output
