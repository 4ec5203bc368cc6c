"""A small gateway for the agent's tests: a real HTTP server that speaks ``nodes/protocol.py``, keeps leases
as the real one does (tokens, expiry, fencing) and remembers everything it was told. It runs in a thread, so
that it can be stopped and started again on its port while an agent runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nodes.protocol import (
    AttemptReport,
    ClaimAnswer,
    ClaimRequest,
    Empty,
    FinishAnswer,
    HeartbeatAnswer,
    HeartbeatRequest,
    Image,
    JobLease,
    JoinAnswer,
    JoinRequest,
    LeaseVerdict,
    LogAnswer,
    ReleaseRequest,
    Resources,
    Upload,
    UploadAnswer,
    UploadRequest,
    Wire,
)


@dataclass
class Job:
    """``state``: queued, leased or one of the ends. ``times`` says when each state was entered
    (monotonic)."""

    lease: JobLease
    state: str = "queued"
    attempt: int = 0
    token: str = ""
    expires_s: float = 0
    cancel: bool = False
    progress: float | None = None
    timeline: dict[str, int] = field(default_factory=dict)
    logs: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    report: AttemptReport | None = None
    reported_token: str = ""
    released: int = 0
    lost: int = 0
    times: dict[str, float] = field(default_factory=dict)
    chunks: list[tuple[int, int]] = field(default_factory=list)

    def enter(self, state: str) -> None:
        self.state = state
        self.times[state] = time.monotonic()

    @property
    def log(self) -> bytes:
        return bytes(self.logs[self.attempt])


class TestGateway:
    __test__ = False

    def __init__(self, *, heartbeat_s: float = 0.3, lease_s: float = 5.0) -> None:
        self.heartbeat_s, self.lease_s = heartbeat_s, lease_s
        self.jobs: dict[str, Job] = {}
        self.join_tokens: dict[str, str | None] = {}
        """Token → SHA-256 of the credential that redeemed it."""
        self.credentials: dict[str, str] = {}
        self.joins: list[JoinRequest] = []
        self.calls: list[tuple[float, str]] = []
        self.refusals: list[tuple[str, int]] = []
        self.store: dict[str, bytes] = {}
        self.draining = False
        self.left = 0
        self.polling = 0
        """Claims that wait for work now."""
        self.before: Callable[[str], Response | None] = lambda path: None
        """Looked at before each call: an answer of its own replaces the real one."""
        self.after: Callable[[str], bool] = lambda path: True
        """False: the call is done, and a proxy on the way loses its answer."""
        self._sockets: list[socket.socket] = []
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    # What tests say

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def credential(self) -> str:
        """A node that has joined already."""
        credential = uuid4().hex * 2
        self.credentials[hashlib.sha256(credential.encode()).hexdigest()] = "node_" + uuid4().hex
        return credential

    def add(self, image: str, *command: str, slots: int = 1, **fields: Any) -> Job:
        values: dict[str, Any] = {
            "resources": Resources(cpu=1, memory_bytes=64 * 2**20, disk_bytes=16 * 2**20),
            "params": "{}",
            "timeout_s": 60,
            "grace_s": 1,
            "user": 65532,
        }
        lease = JobLease(
            job_id="job_" + uuid4().hex,
            token="0" * 32,
            attempt=1,
            slots=slots,
            function="test",
            version=1,
            image=Image(reference=image),
            command=list(command) or None,
            **values | fields,
        )
        job = self.jobs[lease.job_id] = Job(lease)
        job.enter("queued")
        return job

    def count(self, part: str) -> int:
        return sum(part in path for _, path in self.calls)

    def start(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._app(), http="h11", ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._sockets = [listening]
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline, "the test gateway does not start"
            time.sleep(0.005)

    def stop(self) -> None:
        """Gone at once, as after kill -9: connections are cut, waiting calls get no answer."""
        assert self._server is not None and self._thread is not None
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        for each in self._sockets:
            each.close()

    # The node protocol

    def _app(self) -> Starlette:
        def post(path: str, handler: Any) -> Route:
            return Route("/node/v1/" + path, self._guarded(handler), methods=["POST"])

        return Starlette(
            routes=[
                post("join", self._join),
                post("leases", self._claim),
                post("heartbeat", self._heartbeat),
                post("jobs/{job}/logs", self._logs),
                post("jobs/{job}/outputs", self._outputs),
                post("jobs/{job}/finish", self._finish),
                post("jobs/{job}/release", self._release),
                post("leave", self._leave),
                Route("/store/{key:path}", self._put, methods=["PUT"]),
            ]
        )

    def _guarded(self, handler: Any) -> Any:
        async def call(request: Request) -> Response:
            path = request.url.path.removeprefix("/node/v1/")
            self.calls.append((time.monotonic(), path))
            early = self.before(path)
            if early is not None:
                return early
            try:
                if path != "join":
                    self._node(request)
                answer = await handler(request)
            except HTTPException as error:
                self.refusals.append((path, error.status_code))
                return JSONResponse({"code": error.detail, "detail": error.detail}, error.status_code)
            except ClientDisconnect:
                return Response(status_code=499)
            if not self.after(path):
                return Response(status_code=502)
            return JSONResponse(answer.model_dump(mode="json"))

        return call

    def _node(self, request: Request) -> str:
        credential = request.headers.get("authorization", "").removeprefix("Bearer ")
        node = self.credentials.get(hashlib.sha256(credential.encode()).hexdigest())
        if node is None:
            raise HTTPException(401, "unauthenticated")
        return node

    def _held(self, job_id: str, token: str) -> Job:
        self._reap()
        job = self.jobs.get(job_id)
        if job is None or job.state != "leased" or job.token != token:
            raise HTTPException(409, "lease_lost")
        return job

    def _reap(self) -> None:
        for job in self.jobs.values():
            if job.state == "leased" and time.monotonic() > job.expires_s:
                job.lost += 1
                job.enter("queued")

    async def _join(self, request: Request) -> Wire:
        body = JoinRequest.model_validate_json(await request.body())
        self.joins.append(body)
        if body.token not in self.join_tokens:
            raise HTTPException(401, "join_token_invalid")
        if self.join_tokens[body.token] not in (None, body.credential_sha256):
            raise HTTPException(401, "join_token_invalid")
        self.join_tokens[body.token] = body.credential_sha256
        node = self.credentials.setdefault(body.credential_sha256, "node_" + uuid4().hex)
        return JoinAnswer(node_id=node, heartbeat_s=self.heartbeat_s, lease_s=self.lease_s)

    async def _claim(self, request: Request) -> Wire:
        body = ClaimRequest.model_validate_json(await request.body())
        deadline = time.monotonic() + body.wait_s
        self.polling += 1
        try:
            return await self._poll(request, body, deadline)
        finally:
            self.polling -= 1

    async def _poll(self, request: Request, body: ClaimRequest, deadline: float) -> Wire:
        while True:
            self._reap()
            leases, free = [], body.free_slots
            for job in list(self.jobs.values()):
                if job.state == "queued" and job.lease.slots <= free and not self.draining:
                    free -= job.lease.slots
                    leases.append(self._lease(job))
            if leases or self.draining or time.monotonic() >= deadline:
                return ClaimAnswer(leases=leases, draining=self.draining)
            if await request.is_disconnected():
                raise ClientDisconnect
            await asyncio.sleep(0.01)

    def _lease(self, job: Job) -> JobLease:
        job.attempt += 1
        job.token = str(uuid4())
        job.expires_s = time.monotonic() + self.lease_s
        job.enter("leased")
        return job.lease.model_copy(update={"token": job.token, "attempt": job.attempt})

    async def _heartbeat(self, request: Request) -> Wire:
        body = HeartbeatRequest.model_validate_json(await request.body())
        verdicts = []
        for held in body.leases:
            try:
                job = self._held(held.job_id, held.token)
            except HTTPException:
                verdicts.append(LeaseVerdict(job_id=held.job_id, verdict="lost"))
                continue
            job.expires_s = time.monotonic() + self.lease_s
            job.progress, job.timeline = held.progress, {str(k): v for k, v in held.timeline.items()}
            verdicts.append(LeaseVerdict(job_id=held.job_id, verdict="cancel" if job.cancel else "keep"))
        return HeartbeatAnswer(leases=verdicts, draining=self.draining)

    async def _logs(self, request: Request) -> Wire:
        attempt, position = int(request.query_params["attempt"]), int(request.query_params["position"])
        job = self._held(request.path_params["job"], request.headers["rgrid-lease"])
        data, log = await request.body(), job.logs[attempt]
        assert attempt == job.attempt
        if data:
            job.chunks.append((position, len(data)))
            # Chunks lie end to end; one that comes again is known by its position.
            if position == len(log):
                log += data
        return LogAnswer(next_position=len(log))

    async def _outputs(self, request: Request) -> Wire:
        body = UploadRequest.model_validate_json(await request.body())
        job = self._held(request.path_params["job"], body.token)
        names = [f"{job.lease.job_id}/{job.attempt}/{index}" for index, _ in enumerate(body.files)]
        return UploadAnswer(
            uploads=[
                Upload(
                    artifact_id=name,
                    url=f"{self.url}/store/{name}",
                    headers={"content-type": file.content_type, "content-length": str(file.size)},
                )
                for name, file in zip(names, body.files, strict=True)
            ]
        )

    async def _put(self, request: Request) -> Response:
        digest, size = hashlib.sha256(), 0
        kept = bytearray()
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
            if size <= 2**20:
                kept += piece
        self.store[request.path_params["key"]] = (
            bytes(kept) if size <= 2**20 else json.dumps([size, digest.hexdigest()]).encode()
        )
        return Response(status_code=200)

    async def _finish(self, request: Request) -> Wire:
        body = AttemptReport.model_validate_json(await request.body())
        job = self.jobs[request.path_params["job"]]
        if job.reported_token == body.token:
            return FinishAnswer(status=job.state)
        self._held(job.lease.job_id, body.token)
        assert all(artifact in self.store for artifact in body.artifacts), "reported without an upload"
        job.report, job.reported_token = body, body.token
        job.enter(body.status)
        return FinishAnswer(status=job.state)

    async def _release(self, request: Request) -> Wire:
        body = ReleaseRequest.model_validate_json(await request.body())
        job = self._held(request.path_params["job"], body.token)
        job.released += 1
        job.enter("queued")
        return Empty()

    async def _leave(self, request: Request) -> Wire:
        self.left += 1
        for job in self.jobs.values():
            if job.state == "leased":
                job.enter("queued")
        return Empty()
