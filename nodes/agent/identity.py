"""Who this node is: its own credential and the name that the gateway gave it, kept in the node's folder.

The credential is made here and stored before the gateway hears its hash, so that a join whose answer got lost
can be repeated with the same pair. It never leaves the machine but as the bearer of calls to the gateway.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nodes.agent.state import write_private
from nodes.protocol import JoinAnswer


class FolderTaken(Exception):
    """Another agent runs with this folder."""


class Identity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    gateway_url: str
    node_id: str
    heartbeat_s: float
    lease_s: float


class NodeFolder:
    """The node's folder, 0700, with one lock: two agents must not adopt each other's containers."""

    def __init__(self, path: Path) -> None:
        """Raises ``FolderTaken``, or ``OSError`` if the folder cannot be made."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        self.path = path
        self.leases = path / "leases"
        self.work = path / "work"
        self.work.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise FolderTaken(str(path)) from None

    def close(self) -> None:
        os.close(self._lock)

    def credential(self) -> str:
        """This node's own secret, made at the first call."""
        path = self.path / "credential"
        try:
            text = path.read_text(encoding="ascii").strip()
            if len(text) == 64:
                return text
        except (FileNotFoundError, UnicodeDecodeError):
            pass
        text = secrets.token_hex(32)
        write_private(path, text)
        return text

    def identity(self) -> Identity | None:
        """What the gateway answered when this node joined; None before that."""
        try:
            return Identity.model_validate_json((self.path / "node.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def joined(self, gateway_url: str, answer: JoinAnswer) -> Identity:
        identity = Identity(gateway_url=gateway_url, **answer.model_dump())
        write_private(self.path / "node.json.new", identity.model_dump_json())
        (self.path / "node.json.new").replace(self.path / "node.json")
        return identity

    def forget(self) -> None:
        """The gateway does not know this node any more: the next join is with a new credential."""
        (self.path / "node.json").unlink(missing_ok=True)
        (self.path / "credential").unlink(missing_ok=True)


def sha256_hex(credential: str) -> str:
    return hashlib.sha256(credential.encode()).hexdigest()
