"""An instance for the demo: `rgrid up` as a process of its own, started, awaited and ended."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from gateway.cli.failures import Failed
from gateway.embedded import python
from gateway.embedded_settings import Options, cpus
from gateway.spawning import spawn

START_S = 120
STOP_S = 20


@dataclass(frozen=True)
class Instance:
    url: str
    key: str = field(repr=False)


@contextmanager
def instance(data_dir: Path, log: Path, *, callback_allow: str) -> Iterator[Instance]:
    """A ready instance on a free port, with its state in ``data_dir`` and its output in ``log``."""
    port = _free_port()
    up = Instance(f"http://127.0.0.1:{port}", secrets.token_urlsafe(32))
    environment = os.environ | {"RGRID_BOOTSTRAP_KEY": up.key, "RGRID_CALLBACK_ALLOW": callback_allow}
    options = Options(str(data_dir.absolute()), host="127.0.0.1", port=port, slots=cpus(), verbose=False)
    command = python("gateway.embedded", json.dumps(asdict(options)))
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C is for the demo, which then ends the instance in order.
        # If the demo is killed, the instance is told to end.
        process = spawn(command, env=environment, output=output.fileno(), death_signal=signal.SIGTERM)
    try:
        _await_ready(process, up, log)
        yield up
    finally:
        # A second Ctrl-C must not leave half of it behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _stop(process)


def _await_ready(process: subprocess.Popen[bytes], up: Instance, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{up.url}/readyz", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise Failed(lines[-1] if lines else f"rgrid up is not ready after {START_S} s and says nothing")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
