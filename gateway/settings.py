"""Every ``RGRID_*`` variable of the control plane: type, unit, default, and what must agree with what.

Only the entry points read this; everything below them is handed what it needs. ``docs/reference/settings.md`` is
made from it.
"""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from functions.egress import EgressPolicy, origin_of
from functions.grammar import LONGEST_KEPT, SHORTEST_JOB, SHORTEST_KEPT
from functions.image_reference import check_image
from functions.jobspec import RUNTIME
from functions.quantities import format_duration, parse_duration
from nodes.agent_files import BUILT
from nodes.policy import spare_hours
from nodes.policy.state import Rules


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="RGRID_", extra="ignore", hide_input_in_errors=True)

    # Where things are
    database_url: SecretStr = Field(description="PostgreSQL 14 to 18, as a postgresql:// URL.")
    s3_endpoint: str = Field(description="URL of the S3 API that this process calls.")
    s3_public_endpoint: str | None = Field(
        None,
        description="URL of the same store as users and nodes reach it; presigned links name it. Default: s3_endpoint.",
    )
    s3_region: str = Field("us-east-1", description="Region named in S3 signatures.")
    s3_bucket: str = Field("rgrid", description="Bucket of artifacts; made at start if it is missing.")
    s3_access_key_id: str = Field(description="S3 access key.")
    s3_secret_access_key: SecretStr = Field(description="S3 secret key.")
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8080, ge=1, le=65535, description="Port that the gateway listens on.")
    public_url: str | None = Field(
        None, description="The gateway's URL as users and nodes reach it. Default: http://host:port."
    )

    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="CIDRs, comma-separated, of the proxies in front of the gateway: what their X-Forwarded-For "
        "says is believed. A rented node joins from its own address only."
    )
    agent_dir: Path | None = Field(
        None,
        description="Folder of the agent's files for rented nodes. Default: where `make agent` puts them, dist/agent.",
    )

    migrate_at_start: bool = Field(
        False, description="Whether a gateway applies migrations when it starts; else it refuses an old schema."
    )

    # Who may ask
    secret_key: SecretStr = Field(
        description="Fernet key (32 bytes, URL-safe base64) that seals secrets at rest. Several, comma-separated: the "
        "first seals, all open."
    )
    bootstrap_key: SecretStr | None = Field(
        None, description="The first admin key of project default: any string of at least 24 visible ASCII characters."
    )

    metrics_token: SecretStr | None = Field(
        None,
        description="Token that `GET /metrics` is asked for with, as `Authorization: Bearer`: any string of at least "
        "24 visible ASCII characters. Default: it is open to everyone.",
    )

    # The queue
    lease_s: float = Field(
        20, gt=0, le=3600, description="Seconds a node may stay silent before its jobs run elsewhere."
    )
    heartbeat_s: float = Field(3, gt=0, le=600, description="Seconds between a node's heartbeats.")
    poll_s: float = Field(1, gt=0, le=60, description="Seconds between looks at the queue when no hint arrives.")
    max_losses: int = Field(5, ge=0, le=100, description="Nodes that a job may lose before it fails with node_lost.")
    slot_memory: Annotated[int, Field(gt=0)] = Field(
        2 * 1024**3, description="Bytes of memory of one slot; a job that wants more takes several slots."
    )
    max_slots: int = Field(2, ge=1, le=1024, description="Slots of the largest node; a job that needs more is refused.")

    # Rented nodes
    provider: Literal["local", "hetzner"] = Field(
        "local",
        description="Where nodes come from: `local` are machines that you start, `hetzner` buys and deletes them.",
    )
    hcloud_token: SecretStr | None = Field(
        None, description="Hetzner Cloud token (Read & Write) of a project of its own. For the scheduler only."
    )
    hcloud_endpoint: str = Field("https://api.hetzner.cloud/v1", description="URL of the Hetzner Cloud API.")
    owner: str | None = Field(
        None,
        max_length=24,
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        description="What this deployment's servers are labelled with: what has it and no row here is deleted. "
        "Default: the database's own id.",
    )
    node_types: Annotated[tuple[str, ...], NoDecode] = Field(
        ("cx22", "cx23", "cx33", "cpx22"),
        min_length=1,
        description="Server types that may be bought, comma-separated; what is not sold any more is skipped.",
    )
    node_locations: Annotated[tuple[str, ...], NoDecode] = Field(
        ("fsn1", "nbg1", "hel1"), description="Where servers may be bought, comma-separated. Empty: everywhere."
    )
    node_image: str = Field("docker-ce", description="Image that servers start with.")
    node_tenancy: Literal["exclusive", "shared"] = Field(
        "exclusive", description="Whether a rented node serves one account while it lives, or all."
    )
    spare_hours: str = Field(
        "",
        description="When slots are kept free for accounts whose jobs keep coming, so that 19 of 20 find one at once: "
        "`always`, or days and times with a zone (default UTC), such as `mon-fri 08:00-18:00 Europe/Berlin`, "
        "comma-separated. Empty: never.",
    )
    max_nodes: int = Field(5, ge=0, le=10_000, description="Rented nodes at a time.")
    max_eur_hour: Decimal | None = Field(
        None, ge=0, description="EUR (net) per hour of all rented nodes together. Default: no such limit."
    )
    max_eur_month: Decimal | None = Field(
        None,
        ge=0,
        description="EUR (net) of all rented nodes together in a calendar month (UTC). Default: no such limit.",
    )
    max_eur_slot_hour: Decimal = Field(
        Decimal("0.02"),
        gt=0,
        description="EUR (net) per hour that a slot of a server may cost, its IPv4 address included.",
    )
    node_job_deny: Annotated[tuple[IPv4Network, ...], NoDecode] = Field(
        (), description="Public CIDRs, comma-separated, that jobs with a network on rented nodes must not reach, such "
        "as your own machines."
    )
    node_enforce_floors: bool = Field(
        True,
        description="Whether a rented server joins only if its Docker, runc and kernel are above the version floors.",
    )
    delete_unknown: bool = Field(
        False, description="Delete servers with our label and no row even if they are many. For a while, after a loss."
    )

    # Callbacks and inputs
    callback_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="CIDRs or host names, comma-separated, that callbacks may reach although they are private. "
        "Development only."
    )

    callback_deny: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="CIDRs or host names, comma-separated, that callbacks never reach: your own public addresses. The "
        "hosts of public_url, s3_endpoint and s3_public_endpoint are refused in any case, on their ports.",
    )
    callback_sender: Literal["builtin", "svix"] = Field(
        "builtin", description="Who sends callbacks: RGrid itself, or a Svix server that they are handed to."
    )
    svix_url: str | None = Field(None, description="URL of the Svix server, with callback_sender svix.")
    svix_token: SecretStr | None = Field(None, description="Token that the Svix server is called with.")

    runtimes: Annotated[dict[str, str], NoDecode] = Field(
        {},
        description="The catalogue of `runtime:` in manifests: `python3.12=python:3.12-slim`, comma-separated, or a "
        "JSON object of names and images. A change reaches a function at its next apply.",
    )

    # Webhooks
    webhook_rate: float = Field(
        1000,
        gt=0,
        le=1_000_000,
        description="Verified requests a second that each gateway takes for a webhook that sets no rate of its own.",
    )

    # Links
    link_s: int = Field(900, ge=5, le=604800, description="Seconds that a presigned link works.")
    upload_s: int = Field(
        3600, ge=5, le=604800, description="Seconds that a node has for one upload, or to begin with fetching an input."
    )

    largest_upload: Annotated[int, Field(gt=0, le=5 * 1024**4)] = Field(
        50 * 1024**3, description="Bytes of the largest file that may be uploaded."
    )

    # What is kept, and for how long, where manifests say nothing of it
    retention_jobs: timedelta = Field(
        timedelta(days=30), description="How long a job is kept after its end: at least 1d, as in `30d` or `36h`."
    )
    retention_artifacts: timedelta = Field(
        timedelta(days=7), description="How long a job's files are kept after its end, and uploads after they came."
    )
    retention_logs: timedelta = Field(timedelta(days=7), description="How long a job's log is kept after its end.")

    retention_webhooks: timedelta = Field(
        timedelta(days=7), description="How long what came in at webhooks is kept, up to 10,000 requests of each."
    )

    @field_validator(
        "retention_jobs", "retention_artifacts", "retention_logs", "retention_webhooks", mode="before"
    )
    @classmethod
    def _duration(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str) else value

    @field_validator("retention_jobs", "retention_artifacts", "retention_logs", "retention_webhooks")
    @classmethod
    def _kept_long_enough(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        least = SHORTEST_JOB if info.field_name == "retention_jobs" else SHORTEST_KEPT
        if not least <= value <= LONGEST_KEPT:
            raise ValueError(f"must be between {format_duration(least)} and {format_duration(LONGEST_KEPT)}")
        return value

    @field_validator(
        "callback_allow",
        "callback_deny",
        "node_types",
        "node_locations",
        "node_job_deny",
        "trusted_proxies",
        mode="before",
    )
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("runtimes", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("is no JSON object: write name=image, comma-separated") from None
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if len({name.strip() for name, _, _ in pairs}) < len(pairs):
            raise ValueError("has a name twice")
        return {name.strip(): image.strip() for name, _, image in pairs}

    @field_validator("runtimes")
    @classmethod
    def _named_images(cls, value: dict[str, str]) -> dict[str, str]:
        for name, image in value.items():
            if not RUNTIME.fullmatch(name):
                raise ValueError(f"{name[:63]!r} is no name of a runtime: write it like python3.12")
            try:
                check_image(image)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return value

    @field_validator("spare_hours")
    @classmethod
    def _hours(cls, value: str) -> str:
        spare_hours.parse(value)
        return value

    @field_validator("svix_url", "hcloud_endpoint", "public_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        return value

    @field_validator("hcloud_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        """An HTTP client's error quotes a header that cannot be sent, as with a carriage return at its end."""
        if value is None or not value.get_secret_value():
            return None
        if not all(33 <= ord(c) <= 126 for c in value.get_secret_value()):
            raise ValueError("has a space, a line break or another character that no token has")
        return value

    @field_validator("bootstrap_key", "metrics_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value()
        if len(text) < 24 or not all(33 <= ord(c) <= 126 for c in text):
            raise ValueError("needs at least 24 visible ASCII characters without spaces")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_s:
            raise ValueError(
                "RGRID_LEASE_S must be at least three times RGRID_HEARTBEAT_S, or one lost packet loses a job"
            )
        _ = self.callback_policy  # raises for an entry that means nothing
        if self.callback_sender == "svix" and (self.svix_url is None or self.svix_token is None):
            raise ValueError("RGRID_CALLBACK_SENDER=svix needs RGRID_SVIX_URL and RGRID_SVIX_TOKEN")
        return self

    @property
    def lacks_to_rent(self) -> list[str]:
        """What a scheduler misses to buy servers, a line each; a gateway does without the token."""
        needed = ("hcloud_token", "public_url") if self.provider == "hetzner" else ()
        return [f"RGRID_PROVIDER=hetzner needs RGRID_{name.upper()}" for name in needed if getattr(self, name) is None]

    @property
    def callback_policy(self) -> EgressPolicy:
        """Where callbacks may go: not to what is ours, whether it is public or not."""
        own = (self.base_url, self.s3_endpoint, self.s3_public_endpoint or self.s3_endpoint)
        # ``rgrid up`` looks at settings before it knows where its store will be.
        hosts = {origin_of(url).partition("://")[2] for url in own} - {""}
        return EgressPolicy(allow=self.callback_allow, deny=(*self.callback_deny, *sorted(hosts)))

    @property
    def agent_folder(self) -> Path:
        return self.agent_dir or BUILT

    @property
    def base_url(self) -> str:
        """The gateway's address for links, without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")


def rules_of(settings: Settings) -> Rules:
    """What the policy goes by, of which the settings say little."""
    return Rules(exclusive=settings.node_tenancy == "exclusive", spares=spare_hours.parse(settings.spare_hours))
