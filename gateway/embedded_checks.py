"""What must hold on this machine before ``rgrid up`` starts anything. Each failure is one line that says what
to do."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

from gateway import probes
from gateway.spawning import CannotStart

DOCKER_SOCKET = Path("/var/run/docker.sock")


def check_system() -> None:
    if sys.platform != "linux":
        raise CannotStart("rgrid up needs Linux: its node runs containers on file systems with a quota")
    if os.geteuid() != 0:
        raise CannotStart(
            "rgrid up mounts a file system with a quota for each job: run it as root, `sudo rgrid up`"
        )


def docker_socket() -> Path:
    """The engine's socket: the default one, or that of ``DOCKER_HOST``. An engine elsewhere cannot see our
    mounts."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        return DOCKER_SOCKET
    if not host.startswith("unix://"):
        raise CannotStart(
            f"DOCKER_HOST is {host}: the node of rgrid up needs the Docker engine of this machine, unset it"
        )
    return Path(host.removeprefix("unix://"))


def check_docker() -> None:
    socket = docker_socket()
    answer = probes.http_get(socket, "/_ping", timeout_s=5)
    if answer is not None and answer[0] == 200:
        return
    if not socket.exists() and shutil.which("dockerd") is None and shutil.which("docker") is None:
        raise CannotStart("Docker is missing: install it, for instance `sudo apt-get install docker.io`")
    raise CannotStart(
        f"Docker does not answer on {socket}: start it, for instance `sudo systemctl start docker`"
    )


def check_port(host: str, port: int) -> None:
    try:
        if probes.is_free(host, port):
            return
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, None) or not error.errno or error.errno < 0:
            raise CannotStart(
                f"{host} is not an address of this machine: choose another with --host"
            ) from None
        raise CannotStart(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another with --port"
        ) from None
    raise CannotStart(
        f"port {port} of {host} is taken by another program: stop that, or choose another with --port"
    )
