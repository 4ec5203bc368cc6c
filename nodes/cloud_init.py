"""What a rented server is told at its start: how to become a node. The files are in ``templates/cloud-init``.

The text stays readable at the cloud for as long as the server lives. Its one secret is a join token, which works once,
for minutes, and from the server's own address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from functions.errors import Unavailable
from functions.ids import NodeId
from nodes.agent_files import AgentFiles
from nodes.provider import USER_DATA_BYTES

TEMPLATES = Path(__file__).parent.parent / "templates" / "cloud-init"
ENV = "/etc/rgrid/node.env"
PLAIN = re.compile(r"[A-Za-z0-9._~:/@%+=,\[\]-]*")
"""What means nothing but itself to a shell and to systemd."""


@dataclass(frozen=True)
class UserData:
    """``told(node, token)`` is the text. ``job_deny`` are CIDRs that jobs with a network must not reach; with
    ``enforce_floors`` a machine below the version floors does not join.

    Raises ``Unavailable`` if the agent was not built, or if the text would be longer than clouds take."""

    gateway_url: str
    agent: AgentFiles
    enforce_floors: bool = True
    job_deny: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.agent.files:
            raise Unavailable(f"there is no agent for nodes in {self.agent.folder}: build it (make agent)")
        if not PLAIN.fullmatch(self.gateway_url):
            raise Unavailable("RGRID_PUBLIC_URL has characters that servers cannot be told")

    def __call__(self, node: NodeId, token: str) -> str:
        files = [*self._files, {"path": ENV, "permissions": "0600", "content": env_file(self._settings(node, token))}]
        text = "#cloud-config\n" + yaml.safe_dump(self._config | {"write_files": files}, sort_keys=False)
        if len(text.encode()) > USER_DATA_BYTES:
            raise Unavailable(f"servers can be told {USER_DATA_BYTES} bytes at most: shorten RGRID_NODE_JOB_DENY")
        return text

    def _settings(self, node: NodeId, token: str) -> dict[str, str]:
        return {
            "RGRID_GATEWAY_URL": self.gateway_url,
            "RGRID_AGENT_HASHES": ",".join(f"{target}:{file.sha256}" for target, file in self.agent.files.items()),
            "RGRID_ENFORCE_FLOORS": str(int(self.enforce_floors)),
            "RGRID_LEAVE_ON_EXIT": "1",
            "RGRID_JOB_DENY": ",".join(self.job_deny),
            "RGRID_JOIN_TOKEN": token,
        }

    @cached_property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((TEMPLATES / "cloud-config.yaml").read_text(encoding="utf-8"))
        return config

    @cached_property
    def _files(self) -> list[dict[str, str]]:
        return [
            {"path": file["path"], "content": (TEMPLATES / file["source"]).read_text(encoding="utf-8")}
            for file in self._config["write_files"]
        ]


def env_file(settings: Mapping[str, str]) -> str:
    """For a shell and for systemd alike; raises ``ValueError`` for a value that they might read differently."""
    for name, value in settings.items():
        if not PLAIN.fullmatch(value):
            raise ValueError(f"{name} has characters that an environment file cannot hold")
    return "".join(f"{name}={value}\n" for name, value in settings.items())
