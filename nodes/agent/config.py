"""What an agent is told: one frozen value, read from ``RGRID_*`` variables by the entry point alone."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from functions.egress import EgressPolicy

MAX_SLOTS = 1024
MAX_IMAGES_GIB = 1_000_000
DOCKER_HOST = "unix:///var/run/docker.sock"
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


class ConfigError(Exception):
    """A setting is missing or wrong; the message is one line that names it."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``join_token`` is only needed for the first start in a ``node_dir``. Raises ``ConfigError``."""

    gateway_url: str
    node_dir: Path
    slots: int
    join_token: str | None = field(default=None, repr=False)
    name: str = ""
    input_allow: tuple[str, ...] = ()
    """CIDRs or host names that inputs may come from although they are private. Development only."""
    drain_s: float = 30.0
    """How long running jobs may go on after SIGTERM before they are handed back."""
    leave_on_exit: bool = False
    """The machine goes for good when the agent ends: its credential dies. False: it comes back with the same
    one."""
    job_dns: tuple[str, ...] = ()
    """Name servers of jobs with a network, which may be private; none: the machine's own if public, else well-known
    ones."""
    job_deny: tuple[str, ...] = ()
    """Public CIDRs that jobs with a network must not reach, such as the operator's own machines."""
    job_allow: tuple[str, ...] = ()
    """Private CIDRs that they may reach all the same. Development only."""
    images_gib: float | None = None
    """What images that jobs brought may take of the engine's disk before unused ones go. None: half of it."""
    docker_host: str = DOCKER_HOST
    enforce_floors: bool = False
    """Refuse to start on a machine below the version floors (SECURITY §1.6) instead of warning."""

    def __post_init__(self) -> None:
        if not _is_base_url(self.gateway_url):
            raise ConfigError("RGRID_GATEWAY_URL must be an http:// or https:// URL without credentials")
        if not 1 <= self.slots <= MAX_SLOTS:
            raise ConfigError(f"RGRID_SLOTS must be between 1 and {MAX_SLOTS}")
        if not 0 <= self.drain_s <= 86400:
            raise ConfigError("RGRID_DRAIN_S must be between 0 and 86400 seconds")
        if self.images_gib is not None and not 0 <= self.images_gib <= MAX_IMAGES_GIB:
            raise ConfigError(f"RGRID_IMAGES_GIB must be between 0 and {MAX_IMAGES_GIB}")
        for name, check in (
            ("RGRID_INPUT_ALLOW", lambda: EgressPolicy(allow=self.input_allow)),
            ("RGRID_JOB_DNS", lambda: [ipaddress.IPv4Address(each) for each in self.job_dns]),
            ("RGRID_JOB_DENY", lambda: [ipaddress.IPv4Network(each) for each in self.job_deny]),
            ("RGRID_JOB_ALLOW", lambda: [ipaddress.IPv4Network(each) for each in self.job_allow]),
        ):
            try:
                check()
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None

    @property
    def in_clear(self) -> bool:
        """Whether the credential would cross a network unencrypted."""
        url = urlsplit(self.gateway_url)
        return url.scheme == "http" and not _is_loopback(url.hostname or "")


def from_environment(environment: Mapping[str, str] | None = None) -> AgentConfig:
    """The settings of a stand-alone agent. Raises ``ConfigError``."""
    env = os.environ if environment is None else environment
    if not (url := env.get("RGRID_GATEWAY_URL", "").strip()):
        raise ConfigError("RGRID_GATEWAY_URL is not set: give the gateway's URL")
    return AgentConfig(
        gateway_url=url.rstrip("/"),
        node_dir=Path(env.get("RGRID_NODE_DIR") or "/var/lib/rgrid-node"),
        slots=int(_number(env, "RGRID_SLOTS", os.cpu_count() or 1)),
        join_token=env.get("RGRID_JOIN_TOKEN", "").strip() or None,
        name=env.get("RGRID_NODE_NAME", "").strip() or socket.gethostname(),
        input_allow=_list(env.get("RGRID_INPUT_ALLOW", env.get("RGRID_CALLBACK_ALLOW", ""))),
        drain_s=_number(env, "RGRID_DRAIN_S", 30.0),
        leave_on_exit=_flag(env, "RGRID_LEAVE_ON_EXIT"),
        job_dns=_list(env.get("RGRID_JOB_DNS", "")),
        job_deny=_list(env.get("RGRID_JOB_DENY", "")),
        job_allow=_list(env.get("RGRID_JOB_ALLOW", "")),
        images_gib=_number(env, "RGRID_IMAGES_GIB", 0.0) if env.get("RGRID_IMAGES_GIB", "").strip() else None,
        docker_host=env.get("DOCKER_HOST", "").strip() or DOCKER_HOST,
        enforce_floors=_flag(env, "RGRID_ENFORCE_FLOORS"),
    )


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ConfigError(f"{name} must be a number") from None


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "").strip().lower()
    if text not in _TRUE | _FALSE:
        raise ConfigError(f"{name} must be 0 or 1")
    return text in _TRUE


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _is_base_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        if url.port == 0:
            return False
    except ValueError:
        return False
    return (
        url.scheme in ("http", "https")
        and bool(url.hostname)
        and not (url.query or url.fragment or url.username)
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
