"""What the gateway and an agent say to each other: JSON over HTTPS under ``/node/v1``.

The only module that both sides share, so it imports nothing of either. Requests but ``join`` carry
``Authorization: Bearer <node credential>``; every report carries the lease's ``token``, and a stale one is answered
with 409 ``lease_lost``. Times are milliseconds counted from the moment the lease arrived, so that a node's clock never
matters; sizes are bytes.

| call | request → answer |
| --- | --- |
| POST /node/v1/join | JoinRequest → JoinAnswer (no credential: the join token is in the body) |
| POST /node/v1/trouble | TroubleReport → Empty (the same): why a server that has started will not join |
| POST /node/v1/leases | ClaimRequest → ClaimAnswer; waits up to ``wait_s`` for work |
| POST /node/v1/heartbeat | HeartbeatRequest → HeartbeatAnswer |
| POST /node/v1/jobs/{job}/logs?attempt=&position= | raw bytes, header ``RGrid-Lease: <token>`` → LogAnswer |
| POST /node/v1/jobs/{job}/outputs | UploadRequest → UploadAnswer |
| POST /node/v1/jobs/{job}/finish | AttemptReport → FinishAnswer; safe to repeat |
| POST /node/v1/jobs/{job}/release | ReleaseRequest → Empty: the job is ready again at once |
| POST /node/v1/leave | Empty → Empty: what it still holds is released |
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LOG_CAP_BYTES = 10 * 1024 * 1024
"""An attempt's log ends here with a marker (issue: noisy jobs must not fill the database)."""
LOG_CHUNK_BYTES = 256 * 1024
RESULT_CAP_BYTES = 256 * 1024
RESULT_OUTPUT, RESULT_PATH = "result", "/out/result.json"
"""What a larger result comes back as: an output that every function has."""
RETRY_AFTER_CAP_S = 24 * 3600
OUTPUT_FILES_CAP = 1000
OUTPUT_FILE_CAP_BYTES = 5 * 1024**3
"""The largest object of one S3 PUT (AWS documentation, "Uploading objects")."""

Token = Annotated[str, Field(min_length=32, max_length=64, pattern=r"^[0-9a-f-]+$")]
Offset = Annotated[int, Field(ge=0, lt=10**11)]
"""Milliseconds after the lease arrived. Three years are enough, and a date can still be made of it."""
ExitCode = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Wire(BaseModel):
    """Both sides are of one release, so an unknown key is a bug and refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(StrEnum):
    """How far an attempt has got; the keys of a timeline, in this order."""

    PULLING = "pulling"
    FETCHING = "fetching"
    STARTED = "started"
    EXITED = "exited"
    COLLECTING = "collecting"
    UPLOADED = "uploaded"


class ErrorCode(StrEnum):
    """``error.code`` of a job, as far as a node can find it."""

    EXIT_NONZERO = "exit_nonzero"
    OOM_KILLED = "oom_killed"
    TIMEOUT = "timeout"
    IMAGE_PULL_FAILED = "image_pull_failed"
    INPUT_UNAVAILABLE = "input_unavailable"
    OUTPUT_MISSING = "output_missing"
    OUTPUT_REJECTED = "output_rejected"
    OUTPUT_TOO_LARGE = "output_too_large"
    INTERNAL = "internal"


Timeline = dict[Stage, Offset]


class Empty(Wire):
    pass


class JoinRequest(Wire):
    """Redeems a one-time join token.

    The agent makes its own credential and sends only its SHA-256 (hex), so that an answer that got lost can be asked
    for again with the same pair, and the credential never crosses the wire before its first use.
    """

    token: Annotated[str, Field(min_length=16, max_length=256)]
    credential_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    slots: Annotated[int, Field(ge=1, le=1024)]
    version: Annotated[str, Field(max_length=64)]
    facts: dict[str, str | int | float | bool | None] = {}
    """What the machine is: docker, runc, kernel, arch, cgroup, memory_bytes, hostname, warnings."""


class TroubleReport(Wire):
    """Of a server that has the token and cannot become a node."""

    token: Annotated[str, Field(min_length=16, max_length=256)]
    message: Annotated[str, Field(max_length=4096)]


class JoinAnswer(Wire):
    node_id: str
    heartbeat_s: float
    lease_s: float
    """How long the gateway keeps a lease that is not renewed; outlasts three heartbeats."""


class ClaimRequest(Wire):
    free_slots: Annotated[int, Field(ge=0, le=1024)]
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0


class Archive(Wire):
    """A saved image in our own store: ``docker save``, compressed with zstd. ``url`` is presigned."""

    url: str
    size: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Image(Wire):
    """``reference`` is what the manifest says (``alpine:3``, ``name@sha256:…``, an image id ``sha256:…``,
    ``artifact:art_…``).

    ``pinned`` is the digest or id that the first pull found; when given it is what must run. ``archive`` is where a
    node gets a saved image that it does not have. ``login`` is ``user:token`` for the image's registry.
    """

    reference: str
    pinned: str | None = None
    archive: Archive | None = None
    login: Annotated[str | None, Field(repr=False)] = None


class Input(Wire):
    """One file below /in. Exactly one of ``url`` (https or presigned) and ``content``.

    ``trusted`` marks a presigned URL of our own store, which the egress guard does not apply to.
    """

    path: str
    url: str | None = None
    content: str | None = None
    trusted: bool = False
    size: int | None = None
    sha256: str | None = None


class Output(Wire):
    """A path or glob below /out (``*``, ``?``, ``[…]``, ``**``)."""

    path: str
    name: str
    content_type: str | None = None
    required: bool = False


class Resources(Wire):
    cpu: Annotated[float, Field(gt=0)]
    memory_bytes: int
    disk_bytes: int


class JobLease(Wire):
    job_id: str
    token: Token
    attempt: Annotated[int, Field(ge=1)]
    slots: Annotated[int, Field(ge=1)]
    function: str | None
    version: int
    image: Image
    command: list[str] | None = None
    env: dict[str, str] = {}
    secrets: Annotated[dict[str, str], Field(repr=False)] = {}
    """Further variables, whose values nobody may see but the job."""
    resources: Resources
    inputs: list[Input] = []
    outputs: list[Output] = []
    params: str
    """The params as JSON text, for /in/params.json."""
    timeout_s: float
    grace_s: float
    network: bool = False
    user: int


class ClaimAnswer(Wire):
    leases: list[JobLease]
    draining: bool = False


class HeldLease(Wire):
    job_id: str
    token: Token
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    timeline: Timeline = {}


class HeartbeatRequest(Wire):
    leases: Annotated[list[HeldLease], Field(max_length=1024)] = []


class LeaseVerdict(Wire):
    """``keep``: renewed. ``cancel``: renewed, stop the job and report it cancelled. ``lost``: stop it, say nothing."""

    job_id: str
    verdict: Literal["keep", "cancel", "lost"]


class HeartbeatAnswer(Wire):
    leases: list[LeaseVerdict]
    draining: bool = False
    heartbeat_s: float | None = None
    lease_s: float | None = None
    """As in JoinAnswer, when both are given: an agent that joined long ago must follow today's settings."""


class LogAnswer(Wire):
    next_position: int
    """Where the next chunk belongs. An agent that restarted asks with an empty body."""


class CollectedFile(Wire):
    """A file as the collector read it: already hashed, not yet uploaded."""

    output: Annotated[str, Field(max_length=256)]
    """``name`` of the manifest's output that it matched."""
    path: Annotated[str, Field(max_length=1024)]
    """Absolute path in the container, below /out."""
    content_type: Annotated[str, Field(max_length=255)]
    size: Annotated[int, Field(ge=0, le=OUTPUT_FILE_CAP_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class UploadRequest(Wire):
    token: Token
    files: Annotated[list[CollectedFile], Field(max_length=OUTPUT_FILES_CAP)]


class Upload(Wire):
    """One presigned PUT; ``headers`` are signed and must be sent exactly."""

    artifact_id: str
    url: str
    headers: dict[str, str]


class UploadAnswer(Wire):
    uploads: list[Upload]
    """In the order of the request's files."""


class RejectedOutput(Wire):
    """Something below /out that the collector refused: ``reason`` is symlink, fifo, hardlink, name, count, …"""

    path: Annotated[str, Field(max_length=1024)]
    reason: Annotated[str, Field(max_length=64)]


class AttemptError(Wire):
    code: ErrorCode
    message: Annotated[str, Field(max_length=4096)]
    retryable: bool = True
    """False when another attempt cannot help: the image does not exist, an output has a forbidden type."""


class AttemptReport(Wire):
    token: Token
    status: Literal["succeeded", "failed", "timed_out", "cancelled"]
    exit_code: ExitCode | None = None
    error: AttemptError | None = None
    """Given unless ``succeeded`` or ``cancelled``."""
    result: Any = None
    artifacts: Annotated[list[str], Field(max_length=OUTPUT_FILES_CAP)] = []
    """Ids of the uploads that are complete."""
    rejected: Annotated[list[RejectedOutput], Field(max_length=100)] = []
    timeline: Timeline = {}
    image_digest: Annotated[str, Field(max_length=512)] | None = None
    """What ran: ``repo@sha256:…`` or the image id ``sha256:…``."""
    retry_after_s: Annotated[float, Field(ge=0, le=RETRY_AFTER_CAP_S)] | None = None
    """How long the job itself asks to wait before the next attempt; goes with ``failed``."""


class FinishAnswer(Wire):
    status: str
    """Where the job is now: its outcome's status, or ``scheduled`` for another attempt."""


class ReleaseRequest(Wire):
    token: Token
    reason: Annotated[str, Field(max_length=256)] = ""
