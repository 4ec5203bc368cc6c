"""Machines for the emulated cloud: a container each, with systemd, cloud-init and a Docker engine of its own.

The kernel is shared, everything else is the machine's: it boots by its units, cloud-init finds the user data in a seed and
carries it out, and the engine runs jobs.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from uuid import uuid4

from tests.hetzner.things import Machine

SEED = "lib/cloud/seed/nocloud"
"""Below /var."""
LIKE_A_MACHINE = (
    "--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined", "--device-cgroup-rule=a *:* rwm", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--volume=/var/lib/docker", "--tmpfs=/run", "--tmpfs=/tmp", "--env=container=docker",
)  # fmt: skip


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


@dataclass
class ContainerMachines:
    """``gateway`` is this machine's address in their network; ``ipv4`` are those that servers get."""

    image: str
    network: str
    gateway: str
    ipv4: Iterator[str]
    running: dict[int, str] = field(default_factory=dict)
    """Container by server id."""
    ever: list[Machine] = field(default_factory=list)
    last_words: list[str] = field(default_factory=list)

    def start(self, machine: Machine) -> None:
        assert machine.ipv4 is not None
        name = f"{self.network}-{machine.server_id}"
        docker(
            "create", "--name", name, "--hostname", machine.name[:63], "--network", self.network, "--ip", machine.ipv4,
            *LIKE_A_MACHINE, self.image, "/lib/systemd/systemd",
        )  # fmt: skip
        self.running[machine.server_id] = name
        self.ever.append(machine)
        with tempfile.TemporaryDirectory() as folder:
            seed = Path(folder, SEED)
            seed.mkdir(parents=True)
            (seed / "user-data").write_text(machine.user_data)
            (seed / "meta-data").write_text(f"instance-id: {machine.server_id}\nlocal-hostname: {machine.name}\n")
            docker("cp", f"{folder}/.", f"{name}:/var")
        docker("start", name)

    def stop(self, machine: Machine) -> None:
        name = self.running.pop(machine.server_id, None)
        if name is not None:
            self.last_words.append(self.words(name))
            docker("rm", "--force", "--volumes", name)

    def run(self, server_id: int, *command: str) -> tuple[int, str]:
        """Exit status and output of a command on the machine."""
        done = subprocess.run(
            ["docker", "exec", self.running[server_id], *command],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def monotonic_s(self, server_id: int, property: str, *unit: str) -> float:
        """When something happened, as systemd noted it."""
        status, text = self.run(server_id, "systemctl", "show", "--value", f"--property={property}", *unit)
        assert status == 0 and text.strip().isdigit(), text
        return int(text) / 1e6

    def words(self, name: str) -> str:
        script = "cat /var/log/rgrid-boot.log; tail -40 /var/log/cloud-init.log; journalctl --no-pager -u rgrid-node -n 60"
        done = subprocess.run(["docker", "exec", name, "sh", "-c", script], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


@contextmanager
def container_machines(image: str) -> Iterator[ContainerMachines]:
    """In a network of their own; what runs at the end is removed."""
    name = f"rgrid-boot-{uuid4().hex[:8]}"
    subnet = _network(name)
    try:
        addresses = (str(each) for each in list(subnet.hosts())[99:200])
        machines = ContainerMachines(image, name, str(subnet[1]), addresses)
        try:
            yield machines
        finally:
            for left in list(machines.running.values()):
                docker("rm", "--force", "--volumes", left)
    finally:
        docker("network", "rm", name)


def _network(name: str) -> IPv4Network:
    """Make a network whose addresses can be chosen; others here may have the subnet that was drawn."""
    for attempt in range(10):
        subnet = IPv4Network((f"10.{random.randrange(200, 250)}.{random.randrange(256)}.0", 24))
        made = subprocess.run(
            ["docker", "network", "create", "--subnet", str(subnet), "--gateway", str(subnet[1]), name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode == 0:
            return subnet
        assert "overlap" in made.stderr and attempt < 9, made.stderr
    raise AssertionError("unreachable")
