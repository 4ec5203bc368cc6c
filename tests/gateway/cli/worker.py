"""A node without containers: takes leases over real HTTP and ends them as a test says."""

from __future__ import annotations

import hashlib
import secrets
from types import TracebackType
from typing import Any, Self

import httpx

from nodes.protocol import JobLease

IMAGE_ID = "sha256:" + "a" * 64
OUTPUT = "/out/file.txt"


class Worker:
    """Made with a join token; calls raise for every answer that is no success."""

    def __init__(self, url: str, join_token: str, slots: int = 4) -> None:
        credential = secrets.token_hex(32)
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        joining = {
            "token": join_token,
            "credential_sha256": hashlib.sha256(credential.encode()).hexdigest(),
            "slots": slots,
            "version": "0",
        }
        self._slots = slots
        self.node_id = str(self._post("/node/v1/join", joining)["node_id"])
        self._http.headers["Authorization"] = f"Bearer {credential}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def lease(self) -> JobLease:
        """The next job."""
        leases: list[Any] = []
        while not leases:
            leases = self._post("/node/v1/leases", {"free_slots": self._slots, "wait_s": 10})["leases"]
        assert len(leases) == 1, "one job at a time, please"
        return JobLease.model_validate(leases[0])

    def log(self, lease: JobLease, text: str, position: int = 0) -> None:
        answer = self._http.post(
            f"/node/v1/jobs/{lease.job_id}/logs",
            params={"attempt": lease.attempt, "position": position},
            headers={"RGrid-Lease": lease.token, "Content-Type": "application/octet-stream"},
            content=text.encode(),
        )
        answer.raise_for_status()

    def succeed(self, lease: JobLease, content: bytes | None = None) -> None:
        """With ``content`` as its one output."""
        artifacts = [] if content is None else [self._upload(lease, content)]
        self._finish(lease, status="succeeded", exit_code=0, artifacts=artifacts, image_digest=IMAGE_ID)

    def fail(self, lease: JobLease) -> None:
        error = {"code": "exit_nonzero", "message": "it ended with status 3"}
        self._finish(lease, status="failed", exit_code=3, error=error)

    def _upload(self, lease: JobLease, content: bytes) -> str:
        file = {
            "output": lease.outputs[0].name,
            "path": OUTPUT,
            "content_type": "text/plain",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        }
        wanted = {"token": lease.token, "files": [file]}
        (upload,) = self._post(f"/node/v1/jobs/{lease.job_id}/outputs", wanted)["uploads"]
        put = httpx.put(upload["url"], content=content, headers=upload["headers"], trust_env=False)
        put.raise_for_status()
        return str(upload["artifact_id"])

    def _finish(self, lease: JobLease, **report: Any) -> None:
        self._post(f"/node/v1/jobs/{lease.job_id}/finish", {"token": lease.token, **report})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._http.post(path, json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found
