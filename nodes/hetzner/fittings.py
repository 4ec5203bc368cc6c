"""What every server is given: a firewall that lets nothing in, and a key so that the cloud mails nobody a password."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hcloud.firewalls import BoundFirewall, Firewall
from hcloud.ssh_keys import BoundSSHKey, SSHKey

from nodes.hetzner.calls import Calls
from nodes.hetzner.faults import Rejected
from nodes.provider import OWNER_LABEL, Refused, Uncertain

UNIQUENESS = "uniqueness_error"
FORGET_EVERY = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Fitting:
    firewall: Firewall
    key: SSHKey


class Fittings:
    """Made once for a deployment and found again by name."""

    def __init__(self, calls: Calls, owner: str) -> None:
        self._calls = calls
        self._name = f"rgrid-{owner}"
        self._labels = {OWNER_LABEL: owner}
        self._known: Fitting | None = None
        self._forgotten_at: datetime | None = None

    async def get(self) -> Fitting:
        """Raises ``Refused`` if somebody opened the firewall."""
        if self._known is None:
            firewall, key = await self._firewall(), await self._key()
            self._known = Fitting(Firewall(id=firewall.id), SSHKey(id=key.id))
        return self._known

    async def missing(self) -> tuple[str, ...]:
        """What ``get`` would make. Makes nothing; raises as ``get`` does."""
        firewall, key = await self._firewall_by_name(), await self._key_by_name()
        if firewall is not None:
            self._check_closed(firewall)
        return tuple(what for what, found in (("firewall", firewall), ("SSH key", key)) if found is None)

    def proven(self) -> None:
        """A server was bought with them."""
        self._forgotten_at = None

    def forget(self, now: datetime) -> bool:
        """The cloud says that one of them does not exist (any more). False if it did so of those made just now: then it
        is something else that it does not find."""
        if self._forgotten_at is not None and abs(now - self._forgotten_at) < FORGET_EVERY:
            return False
        self._known, self._forgotten_at = None, now
        return True

    async def _firewall(self) -> BoundFirewall:
        found = await self._firewall_by_name()
        if found is None:
            try:
                made = await self._calls(
                    # The client's annotation of labels is wrong here, its code is not.
                    lambda client: client.firewalls.create(self._name, rules=[], labels=self._labels),  # type: ignore[arg-type]
                    writes=True,
                )
                found = made.firewall
            except Rejected as error:
                if error.reason != UNIQUENESS:
                    raise
                found = await self._firewall_by_name()
        if found is None:
            raise Uncertain(f"the firewall {self._name} exists and is not listed")
        self._check_closed(found)
        return found

    def _check_closed(self, firewall: BoundFirewall) -> None:
        if any(rule.direction == "in" for rule in firewall.rules or ()):
            raise Refused(f"the firewall {self._name} lets something in: remove its inbound rules, or all of it")

    async def _firewall_by_name(self) -> BoundFirewall | None:
        answer = await self._calls(lambda client: client.firewalls.get_list(name=self._name))
        return next((each for each in answer.firewalls if each.name == self._name), None)

    async def _key(self) -> BoundSSHKey:
        found = await self._key_by_name()
        if found is None:
            try:
                return await self._calls(
                    lambda client: client.ssh_keys.create(self._name, _public_key(), self._labels), writes=True
                )
            except Rejected as error:
                if error.reason != UNIQUENESS:
                    raise
                found = await self._key_by_name()
        if found is None:
            raise Uncertain(f"the SSH key {self._name} exists and is not listed")
        return found

    async def _key_by_name(self) -> BoundSSHKey | None:
        answer = await self._calls(lambda client: client.ssh_keys.get_list(name=self._name))
        return next((each for each in answer.ssh_keys if each.name == self._name), None)


def _public_key() -> str:
    """Of a key whose private half is forgotten here and now: nobody logs in to a node."""
    public = Ed25519PrivateKey.generate().public_key()
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return public.public_bytes(encoding, form).decode()
