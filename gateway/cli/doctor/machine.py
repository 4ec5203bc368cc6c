"""What a node, and with it ``rgrid up``, needs of the machine that it runs on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from gateway import probes
from gateway.cli.doctor.findings import Finding, ok, skipped, warning, wrong
from gateway.embedded_checks import docker_socket
from gateway.spawning import CannotStart
from nodes.agent.facts import Fact, agent_version, below_floors, machine_facts

SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
NEEDED_BYTES, WANTED_BYTES = 1024**3, 10 * 1024**3
COMMAND_S, ENGINE_S = 20, 10


def python() -> Finding:
    return ok("python", f"{platform.python_version()}, {sys.executable}, rgrid {agent_version()}")


def node_needs(data_dir: Path) -> Iterator[Finding]:
    yield _root()
    yield from _docker()
    for part, package in (("iptables", "iptables"), ("mkfs.ext4", "e2fsprogs"), ("mount", "mount")):
        yield _command(part, package)
    yield _loop_mounts()
    yield disk_space("disk", data_dir)


def disk_space(part: str, folder: Path) -> Finding:
    """Of the file system that ``folder`` is, or will be, on."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.1f} GiB free at {place}"
    if free < NEEDED_BYTES:
        return wrong(part, found, "RGrid does not start with less than 1 GiB: free some")
    if free < WANTED_BYTES:
        return warning(part, found, "images and jobs' files need room: 10 GiB or more")
    return ok(part, found)


def _root() -> Finding:
    if sys.platform != "linux":
        return wrong("system", sys.platform, "nodes need Linux")
    if os.geteuid() != 0:
        return wrong("system", f"Linux, user {os.geteuid()}", "nodes mount file systems: run as root, `sudo rgrid …`")
    return ok("system", f"Linux {platform.release()}, root")


def _docker() -> Iterator[Finding]:
    try:
        socket = docker_socket()
    except CannotStart as error:
        yield wrong("docker", str(error), "unset DOCKER_HOST")
        return
    if probes.http_get(socket, "/_ping", timeout_s=ENGINE_S) is None:
        there = shutil.which("dockerd", path=f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}") is not None
        advice = "start it: sudo systemctl start docker" if there else "install it: sudo apt-get install docker.io"
        yield wrong("docker", f"no answer on {socket}", advice)
        return
    try:
        transport = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(transport=transport, base_url="http://docker", timeout=ENGINE_S) as engine:
            version: dict[str, Any] = engine.get("/version").raise_for_status().json()
            info: dict[str, Any] = engine.get("/info").raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        yield wrong("docker", f"{socket}: {error or type(error).__name__}", "look into the log of its service")
        return
    yield ok("docker", f"{version.get('Version')}, API {version.get('ApiVersion')}")
    for shortcoming in below_floors(_facts(version)):
        yield warning("hardening", shortcoming, "see SECURITY in the docs before strangers' jobs run here")
    yield disk_space("docker disk", Path(str(info.get("DockerRootDir") or "/var/lib/docker")))


def _facts(version: dict[str, Any]) -> dict[str, Fact]:
    parts = {part.get("Name"): part.get("Version") for part in version.get("Components") or ()}
    return machine_facts("") | {"docker": version.get("Version"), "runc": parts.get("runc")}


def _command(name: str, package: str) -> Finding:
    path = shutil.which(name, path=f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}")
    if path is None:
        return wrong(name, "missing", f"install it: sudo apt-get install {package}")
    return ok(name, path)


def _loop_mounts() -> Finding:
    """Make and mount a small file system, as is done for each job."""
    part = "loop mounts"
    if os.geteuid() != 0:
        return skipped(part, "only root can try")
    environment = os.environ | {"PATH": f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryDirectory(prefix="rgrid-doctor-") as folder:
        image, place = Path(folder) / "image", Path(folder) / "mounted"
        place.mkdir()
        with image.open("wb") as opened:
            opened.truncate(4 * 1024**2)
        steps = (
            ["mkfs.ext4", "-q", "-F", str(image)],
            ["mount", "-o", "loop,nosuid,nodev,noexec", str(image), str(place)],
            ["umount", str(place)],
        )
        for step in steps:
            try:
                subprocess.run(step, env=environment, capture_output=True, text=True, check=True, timeout=COMMAND_S)
            except FileNotFoundError:
                return skipped(part, f"{step[0]} is missing")
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                said = str(error.stderr or error).strip().splitlines()
                return wrong(
                    part, f"{step[0]}: {said[-1] if said else 'failed'}",
                    "load the module (modprobe loop); in a container, run it with --privileged",
                )  # fmt: skip
    return ok(part, "ext4 on a loop device works")
