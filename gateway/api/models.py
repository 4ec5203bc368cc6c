"""What answers look like: the models that the OpenAPI document is made from. Tests hold the real answers to them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["scheduled", "queued", "running", "succeeded", "failed", "timed_out", "cancelled", "expired"]


class View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NothingMore(View):
    """The body of a call that takes no options. It may be left out."""


class JobError(View):
    code: str
    message: str
    attempt: int


class OutputView(View):
    name: str
    path: str
    artifact: str
    uri: str
    size: int
    sha256: str
    content_type: str
    url: str | None
    url_expires_at: datetime | None
    link: str


class Cost(View):
    """EUR net. ``estimated`` until the job has ended and the hours that its nodes were paid for are settled."""

    currency: str
    amount: str
    estimated: bool


class JobLinks(View):
    self: str
    logs: str
    events: str
    cancel: str
    retry: str


class JobView(View):
    """The job object. Times are RFC 3339 UTC; ``*_ms`` are milliseconds."""

    id: str
    function: str | None
    version: int
    status: Status
    trigger: dict[str, Any]
    params: dict[str, Any]
    batch: str | None
    retried_from: str | None
    attempt: int
    max_attempts: int
    wait_reason: str | None
    eta: datetime | None
    progress: float | None
    exit_code: int | None
    result: Any
    error: JobError | None
    outputs: list[OutputView]
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    queue_ms: int | None
    boot_ms: int
    pull_ms: int
    run_ms: int
    cost: Cost
    node: str | None
    callback_url: str | None
    links: JobLinks


class JobList(View):
    data: list[JobView]
    next_cursor: str | None


class EventView(BaseModel):
    """One thing that happened; further members depend on ``type``."""

    model_config = ConfigDict(extra="allow")

    at: datetime
    type: str


class EventList(View):
    data: list[EventView]


class BatchCounts(View):
    scheduled: int
    queued: int
    running: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    expired: int


class BatchLinks(View):
    self: str
    jobs: str
    cancel: str


class BatchView(View):
    """A batch. ``counts`` adds up to ``total``; a list leaves it out (null) while the batch runs."""

    id: str
    function: str | None
    version: int | None
    status: Literal["running", "completed"]
    total: int
    counts: BatchCounts | None
    callback_url: str | None
    created_at: datetime
    completed_at: datetime | None
    links: BatchLinks


class BatchList(View):
    data: list[BatchView]
    next_cursor: str | None


class Refusal(View):
    """A job that no new one can be made of, and why."""

    job: str
    code: str
    message: str


class BulkCancelled(View):
    """``matched`` is what the filters fit; ``remaining`` of it is not dealt with yet: call again."""

    dry_run: bool
    matched: int
    cancelled: int
    remaining: int


class BulkRetried(View):
    """``skipped`` had been retried before and are not counted as matched; ``errors`` are the first of the refused."""

    dry_run: bool
    matched: int
    retried: int
    skipped: int
    refused: int
    remaining: int
    errors: list[Refusal]


class Spread(View):
    p50: int
    p95: int


class CostSpread(View):
    currency: str
    p50: str
    p95: str


class QuoteView(View):
    """What the last ``jobs`` of the function took and cost; null when there are none."""

    function: str
    version: int
    jobs: int
    run_ms: Spread | None
    queue_ms: Spread | None
    cost: CostSpread | None


class DryRun(View):
    valid: Literal[True]
    function: str | None
    version: int
    params: dict[str, Any]


class VersionView(View):
    version: int
    image: str
    image_digest: str | None
    created_at: datetime


class VersionList(View):
    data: list[VersionView]
    next_cursor: str | None


class FunctionView(View):
    name: str
    description: str
    labels: dict[str, str]
    version: int
    manifest: dict[str, Any]
    image_digest: str | None
    paused: bool
    created_at: datetime
    updated_at: datetime


class AppliedView(FunctionView):
    changed: bool


class Change(View):
    """What an apply makes of a function, or would make: its manifest then, and ``before``, the one that it had."""

    name: str
    version: int
    created: bool
    changed: bool
    manifest: dict[str, Any]
    before: dict[str, Any] | None


class ChangeList(View):
    data: list[Change]


class FunctionList(View):
    data: list[FunctionView]
    next_cursor: str | None


class ArtifactView(View):
    id: str
    uri: str
    name: str
    size: int
    sha256: str
    content_type: str
    created_at: datetime
    url: str
    url_expires_at: datetime
    link: str


class SingleUpload(View):
    """One PUT of the whole file; ``headers`` are signed and must be sent exactly."""

    url: str
    headers: dict[str, str]


class PartUpload(View):
    """``url`` is null for a part that is there already, of the right size."""

    number: int
    size: int
    uploaded: bool
    url: str | None
    headers: dict[str, str]


class UploadView(View):
    """An announced file. One that is not ``complete`` has either ``upload`` or ``parts``, whose links work until
    ``expires_at``."""

    id: str
    uri: str
    name: str
    size: int
    sha256: str
    content_type: str
    complete: bool
    expires_at: datetime | None
    upload: SingleUpload | None
    part_size: int | None
    parts: list[PartUpload] | None


class HookAnswer(View):
    """The job that the sender's first delivery of this id made."""

    id: str


class HandshakeAnswer(BaseModel):
    """What a sender that asks before it sends wants to hear: its `challenge`, or the `type` of a ping."""

    model_config = ConfigDict(extra="allow")


class WebhookRateView(View):
    limit: int
    per: str


class WebhookView(View):
    """A webhook. ``secret`` names project secrets; ``origin`` says who takes it away: an apply, or a call."""

    id: str
    function: str
    name: str
    url: str
    origin: Literal["manifest", "api"]
    enabled: bool
    verify: str
    secret: list[str]
    header: str | None
    algorithm: str | None
    encoding: str | None
    prefix: str | None
    filter: dict[str, list[Any]]
    params: dict[str, Any] | None
    dedupe: str | None
    rate: WebhookRateView | None
    created_at: datetime
    updated_at: datetime


class WebhookList(View):
    data: list[WebhookView]
    next_cursor: str | None


Verdict = Literal["accepted", "repeated", "filtered", "answered", "refused", "invalid", "rejected"]


class ReceiptSummary(View):
    """A request that came in. ``delivery`` is the sender's id of it, ``job`` what it made or had made."""

    id: str
    webhook: str
    verdict: Verdict
    reason: str | None
    job: str | None
    delivery: str | None
    replay_of: str | None
    size: int
    at: datetime


class ReceiptList(View):
    data: list[ReceiptSummary]
    next_cursor: str | None


class ReceiptView(ReceiptSummary):
    """``headers`` in the order in which they came, without secrets. ``body`` is its text, or ``body_base64`` of bytes
    that are none; both null: it was not kept. ``truncated``: only its beginning was."""

    headers: list[list[str]]
    query: str
    body: str | None
    body_base64: str | None
    truncated: bool


RunState = Literal["submitted", "skipped", "missed", "failed"]


class LastRun(View):
    planned_at: datetime
    state: RunState
    job: str | None


class ScheduleView(View):
    """A schedule, as its manifest has it. ``next_runs`` are the next five times; none while it is paused. ``origin``
    says who takes it away: an apply, or a call."""

    id: str
    function: str
    name: str
    origin: Literal["manifest", "api"]
    cron: str
    timezone: str
    params: dict[str, Any]
    overlap: Literal["skip", "allow", "replace"]
    catchUp: Literal["none", "one", "all"]
    jitter: str
    paused: bool
    next_runs: list[datetime]
    last_run: LastRun | None
    created_at: datetime
    updated_at: datetime


class ScheduleList(View):
    data: list[ScheduleView]
    next_cursor: str | None


class RunError(View):
    code: str
    message: str


class RunView(View):
    """What came of a planned time. A ``missed`` one may stand for ``count`` times (null: too many to count), the last
    of them ``until``. ``manual``: somebody asked for it, at that moment."""

    planned_at: datetime
    state: RunState
    manual: bool
    job: str | None
    error: RunError | None
    until: datetime | None
    count: int | None


class RunList(View):
    data: list[RunView]
    next_cursor: str | None


class ServerView(View):
    """Of a rented node. ``hourly`` is EUR (net); up to ``paid_until`` its hours are paid for."""

    state: Literal["planned", "creating", "booting", "ready", "draining", "deleting", "gone", "lost", "failed"]
    type: str
    location: str
    hourly: str
    created_at: datetime | None
    paid_until: datetime | None
    ended_at: datetime | None
    error: str | None


class FleetView(View):
    """How the autoscaler stands with the cloud. ``unknown`` of the ``listed`` servers have our label and no row: 0."""

    reconciled_at: datetime | None
    listed: int
    unknown: int
    frozen_until: datetime | None
    account_limit: int | None
    problem: str | None
    problem_at: datetime | None


class NodeEvent(View):
    at: datetime
    type: str
    detail: str | None


class NodeEventList(View):
    data: list[NodeEvent]


class NodeView(View):
    id: str
    name: str
    provider: str
    state: Literal["joining", "ready", "draining", "gone", "silent"]
    slots: int
    running: int
    version: str | None
    facts: dict[str, Any]
    created_at: datetime
    joined_at: datetime | None
    last_seen_at: datetime | None
    server: ServerView | None


class NodeList(View):
    data: list[NodeView]
    next_cursor: str | None
    fleet: FleetView | None


class JoinTokenView(View):
    """``join_token`` is shown this once and works once."""

    id: str
    join_token: str
    expires_at: datetime


class Amount(View):
    currency: str
    amount: str


class UsageRow(View):
    """``group`` is the function's name, the day or the project; null: jobs without a function, and hours in which
    nothing ran. ``idle`` is the part of ``cost`` for time of nodes that nothing filled."""

    group: str | None
    jobs: int
    slot_seconds: float
    bytes: int
    cost: Amount
    idle: Amount


class UsageTotal(View):
    jobs: int
    slot_seconds: float
    bytes: int
    cost: Amount
    idle: Amount


class UsageView(View):
    """Days are UTC, both included: of a job that of its end, of cost that on which the node's hour began. ``cost`` is
    of hours that are settled, EUR net; ``reserved`` is set aside for those that are not yet."""

    project: str
    first: date = Field(alias="from")
    last: date = Field(alias="to")
    group_by: Literal["function", "day", "project"]
    data: list[UsageRow]
    total: UsageTotal
    reserved: Amount
    next_cursor: None


class BudgetView(View):
    """EUR net of a calendar month (UTC). Without a budget ``monthly`` and ``left`` are null."""

    project: str
    currency: str
    monthly: str | None
    spent: str
    reserved: str
    left: str | None
