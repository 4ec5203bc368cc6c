"""A real registry (Debian's docker-registry) on 127.0.0.1 that asks for a login, with images in it."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.nodes.agent.registry import MANIFEST, Registry
from tests.postgres import free_port

LOGIN = "ci:s3cret-token"
_USERS = "ci:$2b$05$abcdefghijklmnopqrstuurqlfNK1j3DPm23UErfIbGaYIPKJXOC2\n"
_CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: 127.0.0.1:{port}}}
auth: {{htpasswd: {{realm: rgrid-tests, path: {folder}/users}}}}
"""


class PrivateRegistry:
    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"
        self._port = port

    def push(self, name: str, tag: str, files: dict[str, bytes]) -> str:
        """Store an image of one layer; returns its digest."""
        source = Registry()
        try:
            digest = source.push(name, tag, files)
        finally:
            source.close()
        for blob, content in source.blobs.items():
            place = self.ask("POST", f"/v2/{name}/blobs/uploads/")["location"]
            path = place.removeprefix(f"http://{self.host}")
            self.ask("PUT", f"{path}{'&' if '?' in path else '?'}digest={blob}", content)
        self.ask("PUT", f"/v2/{name}/manifests/{tag}", source.manifests[f"{name}:{tag}"], {"Content-Type": MANIFEST})
        return digest

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, str]:
        """The answer's headers, in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        sent = {"Authorization": "Basic " + base64.b64encode(LOGIN.encode()).decode(), **(headers or {})}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status < 300, (answer.status, text)
            return {key.lower(): value for key, value in answer.getheaders()}
        finally:
            connection.close()


@contextmanager
def private_registry(folder: Path) -> Iterator[PrivateRegistry]:
    program = shutil.which("docker-registry")
    assert program is not None, "the package docker-registry is missing: scripts/system.sh install test"
    port = free_port()
    (folder / "users").write_text(_USERS)
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port))
    with (folder / "log").open("wb") as log:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
        running = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")], stdout=log, stderr=log, env=environment
        )
        try:
            registry = PrivateRegistry(port)
            _until_it_answers(registry, running, folder)
            yield registry
        finally:
            running.terminate()
            running.wait(timeout=10)


def _until_it_answers(registry: PrivateRegistry, running: subprocess.Popen[Any], folder: Path) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            registry.ask("GET", "/v2/")
        except OSError:
            assert running.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        else:
            return
