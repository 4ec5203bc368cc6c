"""The user's own server: it takes callbacks into a ledger and serves the files that inputs name."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Callback:
    """As it came in. ``headers`` have lower-case names."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]

    @property
    def type(self) -> str:
        return str(self.event["type"])

    @property
    def job(self) -> dict[str, Any]:
        return self.event["data"]  # type: ignore[no-any-return]


@dataclass
class Receiver:
    """``files``: path → bytes. ``answers``: statuses for the next callbacks, in order; then 204."""

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)

    @property
    def callback_url(self) -> str:
        return f"{self.base}/callback"

    def file_url(self, name: str) -> str:
        return f"{self.base}/{name}"

    def of(self, job_id: str) -> list[Callback]:
        return [callback for callback in list(self.callbacks) if callback.job["id"] == job_id]

    def ledger(self) -> dict[str, dict[str, set[str]]]:
        """Job → webhook-id → the outcomes that were told under it."""
        found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for callback in list(self.callbacks):
            found[callback.job["id"]][callback.id].add(f"{callback.type} {callback.job['status']}")
        return found


@contextmanager
def receiving() -> Iterator[Receiver]:
    """On a free port of 127.0.0.1."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = receiver.files.get(self.path.removeprefix("/"))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = receiver.answers.pop(0) if receiver.answers else 204
            if status < 300:
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.callbacks.append(Callback(headers, body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """A test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    receiver.base = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
