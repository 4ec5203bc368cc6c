"""The user's side of the demo: a small web server that offers the clip and takes the callbacks."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

LARGEST_CALLBACK = 4 * 1024**2


@dataclass(frozen=True)
class Received:
    """A callback as it came in, before anyone believes it."""

    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Receiver:
    clip_url: str
    callback_url: str
    callbacks: queue.Queue[Received]


@contextmanager
def receiver(clip: Path) -> Iterator[Receiver]:
    """Serves on a free port of 127.0.0.1."""
    received: queue.Queue[Received] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/clip":
                self.send_error(404)
                return
            with clip.open("rb") as opened:
                self.send_response(200)
                self.send_header("Content-Length", str(clip.stat().st_size))
                self.end_headers()
                shutil.copyfileobj(opened, self.wfile)

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            if self.path != "/callback" or size > LARGEST_CALLBACK:
                self.send_error(404)
                return
            body = self.rfile.read(size)
            self.send_response(204)
            self.end_headers()
            headers = {name.lower(): value for name, value in self.headers.items()}
            received.put(Received(headers, body))

        def log_message(self, format: str, *args: object) -> None:
            """Its log would run into the demo's own lines."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        yield Receiver(f"{base}/clip", f"{base}/callback", received)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
