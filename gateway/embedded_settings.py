"""Which environment each process of ``rgrid up`` gets. Pure."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway import probes
from gateway.embedded_folder import Keys

OVERRIDDEN = (
    "RGRID_DATABASE_URL",
    "RGRID_S3_ENDPOINT",
    "RGRID_S3_REGION",
    "RGRID_S3_BUCKET",
    "RGRID_S3_ACCESS_KEY_ID",
    "RGRID_S3_SECRET_ACCESS_KEY",
    "RGRID_SECRET_KEY",
    "RGRID_MAX_SLOTS",
    "RGRID_GATEWAY_URL",
    "RGRID_NODE_DIR",
    "RGRID_JOIN_TOKEN",
)
"""Settings of a deployment in parts, which have no say here: the data directory and the options decide."""
SECRETS = (*OVERRIDDEN, "RGRID_BOOTSTRAP_KEY")
SLOT_MEMORY_BYTES = 2 * 1024**3
DRAIN_S = 1


@dataclass(frozen=True, slots=True)
class Options:
    data_dir: str
    host: str
    port: int
    slots: int
    verbose: bool

    @property
    def url(self) -> str:
        """Where this machine reaches the gateway."""
        return probes.url_of(probes.reached_at(self.host), self.port)


def cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def unused(environment: Mapping[str, str]) -> list[str]:
    """Variables that are set and have no effect."""
    return [name for name in OVERRIDDEN if environment.get(name)]


def for_stores(environment: Mapping[str, str]) -> dict[str, str]:
    """PostgreSQL and rclone get no secret of ours, and nothing that would change how they run."""
    return {
        name: value
        for name, value in environment.items()
        if name not in SECRETS and not name.startswith(("PG", "RCLONE_"))
    }


def for_servers(
    environment: Mapping[str, str],
    options: Options,
    keys: Keys,
    *,
    database_url: str,
    s3_endpoint: str,
    memory_bytes: int,
) -> dict[str, str]:
    """Gateway and scheduler: everything of the user's but where things are."""
    public_url = environment.get("RGRID_PUBLIC_URL") or options.url
    public_host = urlsplit(public_url).hostname or probes.reached_at(options.host)
    ours = {
        "RGRID_DATABASE_URL": database_url,
        "RGRID_S3_ENDPOINT": s3_endpoint,
        "RGRID_S3_ACCESS_KEY_ID": keys.s3_key_id,
        "RGRID_S3_SECRET_ACCESS_KEY": keys.s3_secret,
        "RGRID_SECRET_KEY": keys.secret_key,
        "RGRID_BOOTSTRAP_KEY": api_key(environment, keys),
        "RGRID_HOST": options.host,
        "RGRID_PORT": str(options.port),
        "RGRID_PUBLIC_URL": public_url,
        "RGRID_MAX_SLOTS": str(options.slots),
    }
    defaults = {
        "RGRID_S3_PUBLIC_ENDPOINT": probes.url_of(public_host, keys.s3_port),
        "RGRID_SLOT_MEMORY": str(max(SLOT_MEMORY_BYTES, memory_bytes // options.slots)),
    }
    kept = {name: value for name, value in environment.items() if name not in OVERRIDDEN and value != ""}
    return defaults | kept | ours


def for_node(
    environment: Mapping[str, str], options: Options, *, node_dir: str, join_token: str | None
) -> dict[str, str]:
    ours = {
        "RGRID_GATEWAY_URL": options.url,
        "RGRID_NODE_DIR": node_dir,
        "RGRID_NODE_NAME": "local",
        "RGRID_SLOTS": str(options.slots),
        "RGRID_DRAIN_S": str(DRAIN_S),
        "RGRID_LEAVE_ON_EXIT": "0",
    }
    if join_token is not None:
        ours["RGRID_JOIN_TOKEN"] = join_token
    return {name: value for name, value in environment.items() if name not in SECRETS} | ours


def api_key(environment: Mapping[str, str], keys: Keys) -> str:
    """The user's own key if one is given, else the last one, which the first start may have made."""
    return environment.get("RGRID_BOOTSTRAP_KEY") or keys.api_key
