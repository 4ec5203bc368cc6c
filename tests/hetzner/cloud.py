"""What exists in the emulated cloud and how it changes over virtual time. Thread-safe; knows nothing of HTTP."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from tests.hetzner import goods
from tests.hetzner.billing import Bill
from tests.hetzner.clock import VirtualClock
from tests.hetzner.goods import Image, Kind, Price
from tests.hetzner.rules import Fate
from tests.hetzner.things import (
    Action,
    Address,
    Fault,
    Firewall,
    Key,
    Machines,
    NoMachines,
    S,
    Server,
    Timings,
    addresses,
)

DELETABLE_DURING = frozenset({"create_server", "start_server", "apply_firewall"})
"""While one of the other actions runs on a server, a DELETE gets a 423."""


class Cloud:
    """One project of one account."""

    def __init__(
        self, clock: VirtualClock, *, machines: Machines | None = None, ipv4: Iterator[str] | None = None
    ) -> None:
        self.clock = clock
        self.machines: Machines = machines or NoMachines()
        self.kinds = goods.kinds()
        self.images = goods.images()
        self.ipv4_price = goods.IPV4
        self.currency = "EUR"
        self.timings = Timings()
        self.deletable_during = DELETABLE_DURING
        self.server_cap: int | None = None
        self.address_cap: int | None = None
        self.servers: dict[int, Server] = {}
        self.actions: dict[int, Action] = {}
        self.addresses: dict[int, Address] = {}
        self.keys: dict[int, Key] = {}
        self.firewalls: dict[int, Firewall] = {}
        self.bill = Bill()
        self.lock = threading.RLock()
        self._ips = ipv4 or addresses()
        self._ids = itertools.count(110_000_001)
        self._action_ids = itertools.count(606_028_482_673_874, 7)
        self._events: list[tuple[datetime, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._running_of: dict[int, list[Action]] = {}
        self._settled = clock.now()
        self._machine_calls: list[Callable[[], None]] = []
        self._machine_lock = threading.Lock()

    # Time.

    @property
    def now(self) -> datetime:
        """While events are caught up with: when the one at hand is due."""
        return self._settled

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        with self.lock:
            now = max(self.clock.now(), self._settled)
            while self._events and self._events[0][0] <= now:
                due, _, event = heapq.heappop(self._events)
                self._settled = max(due, self._settled)
                event()
            self._settled = now
        with self._machine_lock:
            while True:
                with self.lock:
                    if not self._machine_calls:
                        return
                    call = self._machine_calls.pop(0)
                call()

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)
        self.settle()

    def at(self, when: datetime, event: Callable[[], None]) -> None:
        """Schedule a change of the world: a price, a stock, an end of sale."""
        with self.lock:
            heapq.heappush(self._events, (when, next(self._order), event))

    def _after(self, delay: timedelta, event: Callable[[], None]) -> None:
        self.at(self._settled + delay, event)

    # The shop.

    def stock(self, type: str, location: str, *, shown: bool | None = None, left: int | None = None) -> None:
        """``shown`` is what the list says, ``left`` how many there really are; None for ``left``: any number."""
        stock = self.kinds[type].sales[location].stock
        stock.left = left
        stock.shown = (left != 0) if shown is None else shown

    def reprice(self, type: str, location: str, hourly: str, monthly: str, *, existing: bool = False) -> None:
        """As of now; ``existing``: also for the servers that there are."""
        with self.lock:
            price = Price(Decimal(hourly), Decimal(monthly))
            self.kinds[type].sales[location].price = price
            if existing:
                for server in self.servers.values():
                    if (server.kind.name, server.location) == (type, location):
                        self.bill.reprice("server", server.id, self._settled, price)

    def end_sale(self, type: str, announced: datetime, unavailable_after: datetime) -> None:
        for sale in self.kinds[type].sales.values():
            sale.announced, sale.unavailable_after = announced, unavailable_after

    # Servers.

    def create(
        self,
        *,
        name: str,
        kind: Kind,
        location: str,
        image: Image,
        labels: dict[str, str],
        user_data: str,
        firewalls: list[int],
        ipv4: bool,
        ipv6: bool,
        start: bool,
        fate: Fate,
    ) -> tuple[Server, Action, list[Action]]:
        """Raises ``Fault`` when the account or the stock does not allow it."""
        sale = kind.sales[location]
        if self.server_cap is not None and len(self.servers) >= self.server_cap:
            raise Fault(403, "resource_limit_exceeded", "server limit exceeded", _limit("server_limit"))
        if ipv4 and self.address_cap is not None and self._ipv4_count() >= self.address_cap:
            raise Fault(403, "resource_limit_exceeded", "Primary IP limit exceeded", _limit("primary_ip_limit"))
        if sale.stock.left is not None:
            if sale.stock.left < 1:
                raise Fault(412, "resource_unavailable", "error during placement")
            sale.stock.left -= 1
        created = self._settled.replace(microsecond=0)  # as it is told, and billed from
        server = Server(next(self._ids), name, kind, location, image, labels, user_data, created, fate)
        server.firewalls, server.deletes_refused = firewalls, fate.locked_deletes
        server.deletes_forgotten = fate.forgotten_deletes
        self.servers[server.id] = server
        self.bill.open("server", server.id, name, created, sale.price)
        server.ipv4 = self._address(server, "ipv4") if ipv4 else None
        server.ipv6 = self._address(server, "ipv6") if ipv6 else None
        action = self._action("create_server", server)
        following = [self._action("start_server", server)] if start else []
        if firewalls:
            following.append(apply := self._action("apply_firewall", server))
            self._after(self.timings.firewall, lambda: self._finish(apply))
        self._after(fate.initializing_for or self.timings.initializing, lambda: self._made(server, action, following))
        if fate.vanishes_after is not None:
            self._after(fate.vanishes_after, lambda: self.lose(server.id))
        if fate.off_after is not None:
            self._after(fate.off_after, lambda: self.power_off(server))
        return server, action, following

    def foreign(
        self, name: str, labels: dict[str, str], *, type: str = "cx23", location: str = "fsn1", age: timedelta = 3 * S
    ) -> Server:
        """A server that somebody else made."""
        with self.lock:
            server = Server(
                next(self._ids), name, self.kinds[type], location, self.images[0], labels, "", self._settled - age
            )
            server.status = "running"
            server.ipv4 = self._address(server, "ipv4")
            self.servers[server.id] = server
            self.bill.open("server", server.id, name, server.created, self.kinds[type].sales[location].price)
            return server

    def lose(self, server_id: int) -> None:
        """The host breaks: the server is gone at once."""
        if server := self.servers.get(server_id):
            self._stop(server)
            self._end_bill(server)
            self._remove(server)

    def delete(self, server: Server) -> Action:
        running = {action.command for action in self.running(server)}
        if server.deletes_refused > 0 or running - self.deletable_during:
            server.deletes_refused = max(0, server.deletes_refused - 1)
            raise Fault(423, "locked", "cannot perform operation because server is locked")
        if server.protected:
            raise Fault(423, "protected", "server is delete protected")
        if server.deletes_forgotten > 0:
            server.deletes_forgotten -= 1
            return self.instant("delete_server", server.id)
        for action in self.running(server):
            self._finish(action, ("action_failed", "server was deleted"))
        server.status = "deleting"
        self._stop(server)
        self._end_bill(server)
        action = self._action("delete_server", server)
        linger = server.fate.lingers_for or self.timings.deleting
        self._after(linger, lambda: (self._finish(action), self._remove(server)))
        return action

    def power(self, server: Server, command: str) -> Action:
        """``start_server``, ``stop_server``, ``shutdown_server``, ``reboot_server``, ``reset_server``, ..."""
        if self.running(server):
            raise Fault(423, "locked", "cannot perform operation because server is locked")
        action = self._action(command, server)

        def ends() -> None:
            self._finish(action)
            if self._lives(server):
                self._stop(server)
                server.status = "off"
                if command not in ("stop_server", "shutdown_server"):
                    server.status = "running"
                    self._boot(server)

        slow = command == "shutdown_server"
        server.status = {"start_server": "starting", "rebuild_server": "rebuilding"}.get(command, "stopping")
        self._after(self.timings.shutdown if slow else self.timings.power, ends)
        return action

    def instant(self, command: str, resource: int, kind: str = "server") -> Action:
        """An action that is over at once."""
        action = Action(next(self._action_ids), command, self._settled, [(resource, kind)])
        self.actions[action.id] = action
        self._finish(action)
        return action

    def power_off(self, server: Server) -> None:
        """It goes off by itself."""
        if self._lives(server):
            self._stop(server)
            server.status = "off"

    def running(self, server: Server) -> list[Action]:
        return list(self._running_of.get(server.id, ()))

    def next_id(self) -> int:
        return next(self._ids)

    def _made(self, server: Server, action: Action, following: list[Action]) -> None:
        if not self._lives(server) or action.status != "running":
            return
        server.status = "off"
        if server.fate.create_error:
            for each in (action, *following):
                self._finish(each, (server.fate.create_error, "creating the server failed"))
            return
        self._finish(action)
        start = next((each for each in following if each.command == "start_server"), None)
        if start is not None:
            self._after(self.timings.off, lambda: self._starting(server, start))

    def _starting(self, server: Server, action: Action) -> None:
        if not self._lives(server) or action.status != "running":
            return
        if server.fate.start_error:
            self._finish(action, (server.fate.start_error, "starting the server failed"))
            return
        server.status = "starting"
        self._after(self.timings.starting, lambda: self._running(server, action))

    def _running(self, server: Server, action: Action) -> None:
        if not self._lives(server) or action.status != "running":
            return
        server.status = "running"
        self._finish(action)
        self._boot(server)

    def _boot(self, server: Server) -> None:
        fate = server.fate
        if fate.machine_never:
            return

        def starts() -> None:
            if self._lives(server) and server.status == "running":
                server.started = True
                for _ in range(2 if fate.machine_twice else 1):
                    self._machine_calls.append(partial(self.machines.start, server.machine))

        self._after(fate.machine_after, starts)

    def _stop(self, server: Server) -> None:
        if server.started:
            server.started = False
            self._machine_calls.append(partial(self.machines.stop, server.machine))

    def _lives(self, server: Server) -> bool:
        return server.id in self.servers and server.status != "deleting"

    def _end_bill(self, server: Server) -> None:
        self.bill.close("server", server.id, self._settled)
        if server.ipv4 and server.ipv4.auto_delete:
            self.bill.close("ipv4", server.ipv4.id, self._settled)

    def _remove(self, server: Server) -> None:
        if self.servers.pop(server.id, None) is None:
            return
        for address in (server.ipv4, server.ipv6):
            if address is not None and address.auto_delete:
                del self.addresses[address.id]
            elif address is not None:
                address.server = None
        for action in self.running(server):
            self._finish(action, ("action_failed", "server is gone"))

    def _action(self, command: str, server: Server) -> Action:
        action = Action(next(self._action_ids), command, self._settled, [(server.id, "server")])
        self.actions[action.id] = action
        self._running_of.setdefault(server.id, []).append(action)
        return action

    def _finish(self, action: Action, error: tuple[str, str] | None = None) -> None:
        if action.status == "running":
            action.status = "error" if error else "success"
            action.finished, action.error = self._settled, error
            for number, _ in action.resources:
                if action in self._running_of.get(number, ()):
                    self._running_of[number].remove(action)

    # Addresses.

    def _ipv4_count(self) -> int:
        return sum(address.type == "ipv4" for address in self.addresses.values())

    def _address(self, server: Server, type: str) -> Address:
        number = next(self._ids)
        ip = next(self._ips) if type == "ipv4" else f"2001:db8:{number & 0xFFFF:x}::/64"
        address = Address(number, f"primary_ip-{number}", ip, type, server.location, server.created, server.id)
        self.addresses[number] = address
        if type == "ipv4":
            self.bill.open("ipv4", number, server.name, server.created, self.ipv4_price, server=server.id)
        return address

    def lone_address(self, name: str, location: str = "fsn1") -> Address:
        """An IPv4 address that belongs to no server and is billed all the same."""
        with self.lock:
            number = next(self._ids)
            address = Address(number, name, next(self._ips), "ipv4", location, self._settled, auto_delete=False)
            self.addresses[number] = address
            self.bill.open("ipv4", number, name, self._settled, self.ipv4_price)
            return address


def _limit(name: str) -> dict[str, Any]:
    return {"limits": [{"name": name}]}
