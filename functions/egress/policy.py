"""Which addresses may be called: public ones, those an operator allows, never those an operator denies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# A table of one's own: ``is_global`` lets through multicast, 192.88.99.0/24, NAT64, 6to4 and more (SECURITY
# §4.3).
FORBIDDEN_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is loopback to connect()
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT; metadata at Alibaba
        "127.0.0.0/8",
        "168.63.129.16/32",  # metadata at Azure
        "169.254.0.0/16",  # link-local; metadata elsewhere
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_FORBIDDEN_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 carries an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # 6bone
        "3fff::/20",  # documentation
    )
)

_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:/]+)):(?P<port>[0-9]{1,5})")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


def is_public(address: Address) -> bool:
    """Whether the address belongs to the internet, and to nobody's inside."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in FORBIDDEN_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _FORBIDDEN_V6)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a list: a network or a host name, for one port or for all."""

    network: Network | None
    host: str | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> _Entry:
        """``10.0.0.0/8``, ``127.0.0.1``, ``127.0.0.1:9000``, ``[::1]:9000``, ``name`` or ``name:9000``."""
        try:
            return cls(ip_network(text), None, None)
        except ValueError:
            pass
        bare, port = text, None
        if (match := _WITH_PORT.fullmatch(text)) is not None:
            bare, port = match["v6"] or match["host"], int(match["port"])
            if not 1 <= port <= 65535:
                raise ValueError(f"{text!r}: there is no port {port}")
        try:
            return cls(ip_network(ip_address(bare)), None, port)
        except ValueError:
            pass
        name = bare.lower().rstrip(".")
        # A slash or digits only: a network with host bits set, or an address with an error in it.
        if not _HOST.fullmatch(name) or name.rsplit(".", 1)[-1].isdigit():
            raise ValueError(f"{text!r} is no network, address or host name (a network has no host bits set)")
        return cls(None, name, port)

    def has_host(self, host: str, port: int) -> bool:
        return self.host == host and self.port in (None, port)

    def has_address(self, address: Address, port: int) -> bool:
        return self.network is not None and address in self.network and self.port in (None, port)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """``allow`` opens private networks or hosts, also for http and any port; ``deny`` closes public ones
    and wins.

    Entries are networks, addresses and host names, an address or a name also with a port; ``ValueError``
    for anything else. A host that is allowed may have any address. ``ca_file`` has roots to trust besides
    the public ones; there is no way to trust nothing.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    ca_file: str | None = None
    _allow: tuple[_Entry, ...] = field(init=False, repr=False, compare=False)
    _deny: tuple[_Entry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allow", tuple(map(_Entry.parse, self.allow)))
        object.__setattr__(self, "_deny", tuple(map(_Entry.parse, self.deny)))

    @property
    def allows_networks(self) -> bool:
        """Whether a name may turn out to be allowed once its addresses are known."""
        return any(entry.network is not None for entry in self._allow)

    def allows_host(self, host: str, port: int) -> bool:
        return any(entry.has_host(host, port) for entry in self._allow)

    def allows_address(self, address: Address, port: int) -> bool:
        return any(entry.has_address(address, port) for entry in self._allow)

    def denies_host(self, host: str, port: int) -> bool:
        return any(entry.has_host(host, port) for entry in self._deny)

    def denies_address(self, address: Address, port: int) -> bool:
        return any(entry.has_address(address, port) for entry in self._deny)
