"""A server that answers as it is told, for what a real gateway does rarely: losing answers, being away, lying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """``cut``: how many bytes of the body are sent before the connection breaks; -1 cuts before the head."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Server:
    """``answers`` come in order, the last one again and again; ``asked`` are method, path with query, headers."""

    answers: list[Answer]
    url: str = ""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def answering(*answers: Answer, respond: Callable[[str, dict[str, str]], Answer] | None = None) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1. ``respond`` chooses by path and headers instead of ``answers``."""
    told = Server(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.rfile.read(int(headers.get("content-length", 0)))
            told.asked.append((self.command, self.path, headers))
            found = told.next() if respond is None else respond(self.path, headers)
            self.close_connection = True
            if found.cut == -1:
                return
            self.send_response(found.status)
            self.send_header("Content-Type", found.content_type)
            self.send_header("Content-Length", str(len(found.body)))
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body if found.cut is None else found.body[: found.cut])

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
