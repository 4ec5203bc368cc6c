"""Small questions to servers on this machine, with the bare socket: the supervisor stays light."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from pathlib import Path

ANSWER_CAP_BYTES = 1024**2


def http_get(
    server: Path | tuple[str, int],
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 2,
) -> tuple[int, bytes] | None:
    """Status and body (as sent, at most ``ANSWER_CAP_BYTES``) of one GET; None if there is no usable answer.

    ``server`` is a Unix socket, or host and port.
    """
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    try:
        with _connect(server, timeout_s) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            answer = b""
            while len(answer) < ANSWER_CAP_BYTES and (chunk := connection.recv(65536)):
                answer += chunk
    except OSError:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return (int(status[0]), body) if status and status[0].isdigit() else None


def _connect(server: Path | tuple[str, int], timeout_s: float) -> socket.socket:
    if isinstance(server, tuple):
        return socket.create_connection(server, timeout=timeout_s)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(server))
    except BaseException:
        connection.close()
        raise
    return connection


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now; raises ``OSError`` if this machine has no such address."""
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def reached_at(host: str) -> str:
    """Where this machine finds a server of its own that listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
