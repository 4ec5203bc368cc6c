"""Where a request comes from: the other end of its connection, or what a proxy that is trusted says of that."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.requests import Request

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def source_of(request: Request, trusted: Sequence[Network]) -> str:
    """The nearest address that is not a trusted proxy's; "" if there is none to be known.

    Each proxy appends whom it was called by to ``X-Forwarded-For``, so what stands left of an address that is not
    trusted may be made up.
    """
    source = _address(request.client.host if request.client else "")
    hops = [hop for line in request.headers.getlist("x-forwarded-for") for hop in line.split(",")]
    while source is not None and hops and any(source in network for network in trusted):
        source = _address(hops.pop().strip())
    return "" if source is None else str(source)


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
