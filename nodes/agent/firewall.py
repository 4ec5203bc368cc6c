"""What jobs with ``network: true`` may send where: the internet, never this node, its neighbours or metadata.

The rules stand in chains of this node's own at mangle PREROUTING, for every bridge whose name begins with its
prefix. A packet is judged there before anyone decides whether it is for this machine (INPUT) or to be passed on
(FORWARD), whatever address it is for; so neither Docker's chains, nor ufw's, nor the order among them
matters. DOCKER-USER alone would not do: it never sees packets to the node itself (SECURITY §1.4).
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import structlog

from functions.egress import FORBIDDEN_V4, is_public

log = structlog.get_logger()

TABLE = "mangle"
_CHAINS = "RGRID-"
COMMAND_S = 15.0
LOCK_S = 5
"""How long iptables waits for another one."""

BYTES_A_SECOND = "100mb"
"""Each way, each job; a little under a gigabit."""
NEW_A_SECOND, NEW_BURST = 100, 500
CONNECTIONS = 1024
DNS_A_SECOND = 100
MAIL_PORTS = "25,465,587"

PUBLIC_RESOLVERS = ("1.1.1.1", "8.8.8.8")
RESOLV_CONF = Path("/etc/resolv.conf")
_IPV6 = Path("/proc/net/if_inet6").exists()


class FirewallUnusable(Exception):
    """This machine cannot keep jobs with a network apart from itself. The message says why."""


class Firewall:
    """The rules of one node, told apart from those of others on this machine by the node's name."""

    def __init__(
        self,
        node: str,
        *,
        dns: Sequence[str],
        deny: Sequence[IPv4Network] = (),
        allow: Sequence[IPv4Network] = (),
    ) -> None:
        tag = hashlib.sha256(node.encode()).hexdigest()[:6]
        self.prefix = f"rg{tag}"
        """Of its bridges' names; 7 more characters fit."""
        self._chain = f"{_CHAINS}{tag}"
        self._dns = dns
        self._deny = deny
        self._allow = allow

    async def install(self) -> None:
        """May be repeated. Raises ``FirewallUnusable``."""
        limits = limiting_rules(self.prefix)
        drops = dropping_rules(dns=self._dns, deny=self._deny, allow=self._allow)
        try:
            await self._restore("iptables", self._table(limits, drops))
        except FirewallUnusable as error:
            # A kernel without hashlimit or connlimit still keeps jobs apart.
            await self._restore("iptables", self._table(([], []), drops))
            log.warning("jobs with a network have no limits of rate here", error=str(error)[:300])
        await self._jump("iptables")
        if _IPV6:
            await self._restore("ip6tables", self._table(([], []), ["-j DROP"]))
            await self._jump("ip6tables")

    async def in_place(self) -> bool:
        """Whether packets still come to the rules first: somebody may have emptied the table."""
        return await self._is_first("iptables", "PREROUTING")

    async def dropped(self) -> int:
        """How many packets to this node itself were stopped since the rules were installed."""
        code, words = await run([*_base("iptables"), "-nvxL", self._chain])
        if code != 0:
            raise FirewallUnusable(words)
        return sum(int(line.split()[0]) for line in words.splitlines() if "type LOCAL" in line)

    async def remove(self) -> None:
        """Take the rules away; nothing to take away is fine."""
        for program in ("iptables", "ip6tables"):
            if _program(program) is None:
                continue
            base = _base(program)
            for hook, rule in self._jumps().items():
                while (await run([*base, "-D", hook, *rule.split()]))[0] == 0:
                    pass
            for chain in self._chains():
                await run([*base, "-F", chain])
                await run([*base, "-X", chain])

    def _chains(self) -> tuple[str, str]:
        return self._chain, f"{self._chain}-down"

    def _table(self, limits: tuple[list[str], list[str]], drops: list[str]) -> str:
        """What iptables-restore puts in place in one step, in place of what stood in the chains."""
        up, down = self._chains()
        return "\n".join(
            [
                f"*{TABLE}",
                f":{up} - [0:0]",
                f":{down} - [0:0]",
                *(f"-A {up} {rule}" for rule in [*limits[0], *drops]),
                *(f"-A {down} {rule}" for rule in limits[1]),
                "COMMIT",
                "",
            ]
        )

    def _jumps(self) -> dict[str, str]:
        up, down = self._chains()
        return {"PREROUTING": f"-i {self.prefix}+ -j {up}", "POSTROUTING": f"-o {self.prefix}+ -j {down}"}

    async def _jump(self, program: str) -> None:
        for hook, rule in self._jumps().items():
            if not await self._is_first(program, hook):
                # An older one further down may stay: it only judges again what was let through.
                code, words = await run([*_base(program), "-I", hook, "1", *rule.split()])
                if code != 0:
                    raise FirewallUnusable(words)

    async def _is_first(self, program: str, hook: str) -> bool:
        """Only those of other nodes on this machine may stand before it: they judge other bridges."""
        code, words = await run([*_base(program), "-S", hook])
        rules = [line for line in words.splitlines() if line.startswith("-A ") and f"-j {_CHAINS}" not in line]
        before = words.partition(f"-A {hook} {self._jumps()[hook]}")[0]
        return code == 0 and before != words and not any(rule in before for rule in rules)

    async def _restore(self, program: str, table: str) -> None:
        code, words = await run([f"{program}-restore", "--noflush", "-w", str(LOCK_S)], table)
        if code != 0:
            raise FirewallUnusable(words)


def dropping_rules(
    *, dns: Iterable[str], deny: Iterable[IPv4Network], allow: Iterable[IPv4Network] = ()
) -> list[str]:
    """What never leaves a job's bridge. ``dns``: name servers inside these ranges that the operator has named
    get through on their port, and nothing else of theirs; to ``allow`` everything does."""
    holes = [server for server in dns if not is_public(IPv4Address(server))]
    return [
        *(f"-d {network} -j RETURN" for network in allow),
        *(f"-d {server}/32 -p {kind} --dport 53 -j RETURN" for server in holes for kind in ("udp", "tcp")),
        "-m addrtype --dst-type LOCAL -j DROP",
        "-m addrtype --dst-type BROADCAST -j DROP",
        *(f"-d {network} -j DROP" for network in (*FORBIDDEN_V4, *deny)),
        f"-p tcp -m multiport --dports {MAIL_PORTS} -j DROP",
    ]


def limiting_rules(prefix: str) -> tuple[list[str], list[str]]:
    """How much a job may send and open; how much it may receive."""
    new = "-m conntrack --ctstate NEW"
    up = [
        f"-m hashlimit --hashlimit-above {BYTES_A_SECOND}/s --hashlimit-mode srcip --hashlimit-name {prefix}u -j DROP",
        f"{new} -m connlimit --connlimit-above {CONNECTIONS} --connlimit-mask 32 --connlimit-saddr -j DROP",
        f"{new} -m hashlimit --hashlimit-above {NEW_A_SECOND}/sec --hashlimit-burst {NEW_BURST} "
        f"--hashlimit-mode srcip --hashlimit-name {prefix}n -j DROP",
        f"-p udp --dport 53 -m hashlimit --hashlimit-above {DNS_A_SECOND}/sec --hashlimit-burst {DNS_A_SECOND} "
        f"--hashlimit-mode srcip --hashlimit-name {prefix}q -j DROP",
    ]
    down = [
        f"-m hashlimit --hashlimit-above {BYTES_A_SECOND}/s --hashlimit-mode dstip --hashlimit-name {prefix}d -j DROP",
    ]
    return up, down


def resolvers(named: Sequence[str], resolv_conf: Path = RESOLV_CONF) -> tuple[str, ...]:
    """The name servers of jobs: those that the operator names, else the machine's own if they are public, else
    well-known public ones.

    A private server would tell the names inside the operator's network, and its address is one that jobs must
    not reach: it takes the operator to say so.
    """
    if named:
        return tuple(named)
    found = []
    try:
        lines = resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = IPv4Address(words[1])
        except ValueError:
            continue
        if is_public(address):
            found.append(str(address))
    return tuple(found[:3]) or PUBLIC_RESOLVERS


def _base(program: str) -> list[str]:
    return [program, "-w", str(LOCK_S), "-t", TABLE]


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


async def run(command: Sequence[str], stdin: str = "", timeout_s: float = COMMAND_S) -> tuple[int, str]:
    """Exit code and output; raises ``FirewallUnusable`` if the program is missing or hangs."""
    path = _program(command[0])
    if path is None:
        raise FirewallUnusable(f"{command[0]} is missing on this node")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        path, *command[1:], stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate(stdin.encode())
    except TimeoutError:
        raise FirewallUnusable(f"{command[0]} does not end") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace").strip()
