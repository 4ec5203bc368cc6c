"""From a name to addresses: looked up once, every answer vetted."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

from functions.egress.errors import EgressFailed, EgressRefused
from functions.egress.policy import Address, EgressPolicy, is_public
from functions.egress.target import Target

RESOLVE_S = 3.0
MOST_ANSWERS = 32
MOST_LOOKUPS = 256

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) → addresses as text; raises ``OSError`` when there are none. Another one is given in tests
only."""

_lookups = 0
_lookups_lock = threading.Lock()


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """getaddrinfo, on a thread of its own.

    The loop's shared threads are few, and a name server that does not answer would hold one for half a
    minute; and they are joined at exit, which a daemon thread is not.
    """
    global _lookups  # noqa: PLW0603
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look_up() -> None:
        global _lookups  # noqa: PLW0603
        found: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            found = [str(info[4][0]) for info in infos]
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError(str(error))
        finally:
            with _lookups_lock:
                _lookups -= 1
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    with _lookups_lock:
        if _lookups >= MOST_LOOKUPS:
            raise OSError("too many look-ups are waiting for name servers")
        _lookups += 1
    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    return await answer


async def vetted_addresses(target: Target, policy: EgressPolicy, resolver: Resolver) -> list[Address]:
    """All addresses of the target, IPv4 first; raises ``EgressRefused`` if even one of them is forbidden."""
    if target.literal is not None:
        return [target.literal]
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = {ip_address(text) for text in await resolver(target.host, target.port)}
    except TimeoutError:
        raise EgressFailed("dns", f"{target.host} could not be looked up within {RESOLVE_S:g} s") from None
    except (OSError, ValueError) as error:
        raise EgressFailed("dns", f"{target.host} could not be looked up: no such host") from error
    if not found:
        raise EgressFailed("dns", f"{target.host} has no address")
    if len(found) > MOST_ANSWERS:
        raise EgressRefused("address", f"{target.host} has more than {MOST_ANSWERS} addresses")
    # Good ones beside a bad one are refused too: whoever mixes them wants something else.
    if not all(_may_call(address, target, policy) for address in found):
        raise EgressRefused("address", f"{target.host} has an address that may not be called")
    return sorted(found, key=lambda address: (address.version, int(address)))


def _may_call(address: Address, target: Target, policy: EgressPolicy) -> bool:
    if policy.denies_address(address, target.port):
        return False
    if target.trusted or policy.allows_address(address, target.port):
        return True
    return not target.allowed_only and is_public(address)
