"""The command line in-process: ``rgrid("jobs", "--json")`` is its exit status and what it printed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.cli.main import run
from gateway.services import Services
from tests.gateway.cli.worker import Worker
from tests.gateway.conftest import BOOTSTRAP_KEY, listening


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, status: int = 1) -> str:
        """The one line that it said on stderr and nothing else; fails if it did not end so."""
        assert self.status == status, self
        assert self.out == "", self
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self
        assert self.err.startswith("error: ") and "Traceback" not in self.err, self
        return self.err[len("error: ") : -1]


Rgrid = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has set nothing and logged in nowhere."""
    for name in list(os.environ):
        if name.startswith("RGRID_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def rgrid(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rgrid:
    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


class Connected:
    """``await call("jobs")`` in a thread, while the gateway serves in the test's event loop."""

    def __init__(self, url: str, rgrid: Rgrid) -> None:
        self.url = url
        self._rgrid = rgrid

    async def __call__(self, *arguments: object, stdin: bytes = b"") -> Result:
        return await asyncio.to_thread(self._rgrid, *arguments, stdin=stdin)

    async def apply(self, **changes: object) -> None:
        done = await self("apply", "-f", "-", stdin=manifest(**changes))
        assert done.status == 0, done

    async def worker(self, slots: int = 4) -> Worker:
        token = (await self("nodes", "add", "--json")).json["join_token"]
        return await asyncio.to_thread(Worker, self.url, token, slots)


@pytest.fixture
async def call(services: Services, rgrid: Rgrid, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connected]:
    """The command line against a gateway of its own, with an admin's key."""
    with capture_logs():  # the gateway's lines would run into the command's
        async with listening(services) as gateway:
            url = f"http://127.0.0.1:{gateway.port}"
            monkeypatch.setenv("RGRID_URL", url)
            monkeypatch.setenv("RGRID_API_KEY", BOOTSTRAP_KEY)
            yield Connected(url, rgrid)


def manifest(name: str = "greet", command: object = "true", **spec: object) -> bytes:
    document = {
        "apiVersion": "rgrid/v1",
        "kind": "Function",
        "metadata": {"name": name, "description": "Says hello"},
        "spec": {
            "params": {"type": "object", "properties": {"who": {"type": "string", "default": "world"}}},
            "job": {
                "image": "busybox:1",
                "command": ["echo", command, "{{ params.who }}"],
                "files": {"outputs": [{"path": "/out/file.txt", "name": "file"}]},
            },
            "retry": {"attempts": 1},
            **spec,
        },
    }
    return json.dumps(document).encode()
