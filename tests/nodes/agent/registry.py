"""A small image registry on 127.0.0.1 (which Docker talks plain HTTP to), to pull from and to fail at."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GZIP = b"\x1f\x8b"
TOKEN = "a-token-for-pulling"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """``push`` images, read ``served``; ``fail`` answers everything with a status, ``hold`` stops
    layers half-way. With a ``login`` (``user:token``) it is asked for by token, as large registries do."""

    def __init__(self, login: str | None = None) -> None:
        self.login = login
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.served: Counter[str] = Counter()
        self.fail: tuple[int, dict[str, Any]] | None = None
        self.hold: threading.Event | None = None
        self.claimed_bytes: int | None = None
        """What a layer's length is said to be, in place of what it is."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry._answer(self, head=False)

            def do_HEAD(self) -> None:
                registry._answer(self, head=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def push(self, name: str, tag: str, files: dict[str, bytes]) -> str:
        """Store an image of one layer; returns its digest."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.mode, entry.size = 0o755, len(content)
                archive.addfile(entry, io.BytesIO(content))
        layer = gzip.compress(packed.getvalue(), mtime=0)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/x"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(packed.getvalue())]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._blob("application/vnd.docker.container.image.v1+json", config),
                "layers": [self._blob("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)],
            }
        ).encode()
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}:{_digest(manifest)}"] = manifest
        return _digest(manifest)

    def _blob(self, kind: str, content: bytes) -> dict[str, Any]:
        self.blobs[_digest(content)] = content
        size = self.claimed_bytes if "rootfs" in kind else None
        return {"mediaType": kind, "size": size or len(content), "digest": _digest(content)}

    def _answer(self, request: BaseHTTPRequestHandler, *, head: bool) -> None:
        status, headers, body = self._find(request.path, request.headers.get("Authorization", ""))
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        layer = status == 200 and body.startswith(GZIP)
        size = self.claimed_bytes if layer and self.claimed_bytes else len(body)
        request.send_header("Content-Length", str(size))
        request.end_headers()
        if head:
            return
        try:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            if layer and self.hold is not None:
                self.hold.wait()
            request.wfile.write(body[len(body) // 2 :])
        except ConnectionError:
            pass

    def _find(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        if self.login is not None and (answer := self._login(self.login, path, authorization)) is not None:
            return answer
        if self.fail is not None:
            return self.fail[0], {"Content-Type": "application/json"}, json.dumps(self.fail[1]).encode()
        if path.rstrip("/") == "/v2":
            return 200, {"Content-Type": "application/json"}, b"{}"
        name, _, rest = path.removeprefix("/v2/").partition("/manifests/")
        if rest and (manifest := self.manifests.get(f"{name}:{rest}")):
            self.served["manifest"] += 1
            return 200, {"Content-Type": MANIFEST, "Docker-Content-Digest": _digest(manifest)}, manifest
        digest = path.partition("/blobs/")[2]
        if digest in self.blobs:
            self.served["layer" if self.blobs[digest].startswith(GZIP) else "config"] += 1
            return 200, {"Content-Type": "application/octet-stream"}, self.blobs[digest]
        missing = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return 404, {"Content-Type": "application/json"}, json.dumps(missing).encode()


    def _login(self, login: str, path: str, authorization: str) -> tuple[int, dict[str, str], bytes] | None:
        """None for who is in."""
        if path.startswith("/token"):
            if authorization == "Basic " + base64.b64encode(login.encode()).decode():
                self.served["token"] += 1
                return 200, {"Content-Type": "application/json"}, json.dumps({"token": TOKEN}).encode()
        elif authorization == f"Bearer {TOKEN}":
            return None
        asks = {"WWW-Authenticate": f'Bearer realm="http://{self.host}/token",service="{self.host}"'}
        refused = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        return 401, asks | {"Content-Type": "application/json"}, json.dumps(refused).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
