"""The settings of one job's container (SECURITY §1.3): a lease and an image in, the engine's request out. Pure.

Nothing in a manifest and nothing in an image makes a container less closed than this: an image's user,
volumes, health check, stop signal and ports have no effect.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes.agent.failures import AttemptFailed
from nodes.agent.seccomp import profile
from nodes.protocol import ErrorCode, JobLease

NODE_LABEL, JOB_LABEL, ATTEMPT_LABEL = "rgrid.node", "rgrid.job", "rgrid.attempt"

PIDS = 256
IO_BYTES, IO_OPS = 256 * 1024 * 1024, 4000
"""A second, read and written each, of a job's own file system: one job must not keep the node's disk to itself."""
OPEN_FILES = 1024
SHM_BYTES = 64 * 1024 * 1024
TMP_INODES_LEAST, TMP_INODES_MOST = 1024, 65_536
VOLUME_BYTES = 16 * 1024 * 1024
VOLUMES_MOST = 32
CPU_PERIOD_US = 100_000
CPU_LEAST_US = 1000
"""The kernel takes no smaller share of a period."""
OOM_SCORE = 500
"""On a node that runs out of memory itself, jobs go before the agent and the engine do."""

_CLOSED_TO_VOLUMES = ("/proc", "/sys", "/dev")
_OURS = ("/in", "/out", "/tmp")  # noqa: S108


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image that the engine has. ``digest`` is what a version is pinned to: ``repo@sha256:…``, or the id
    of an image without registry. ``tagged``: somebody gave it a name on this machine."""

    id: str
    digest: str
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    has_command: bool = True
    tagged: bool = False
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class JobNetwork:
    """A bridge of this job alone. ``ipv6``: whether this machine has the protocol that must be off in it."""

    id: str
    dns: tuple[str, ...]
    ipv6: bool


def container_settings(
    lease: JobLease,
    image: LocalImage,
    *,
    node: str,
    in_dir: Path,
    out_dir: Path,
    device: str | None = None,
    network: JobNetwork | None = None,
) -> dict[str, Any]:
    """The body of ``POST /containers/create``; ``device`` is what the two folders are on, if it is the job's alone.
    Raises ``AttemptFailed`` for what must not or cannot run."""
    if lease.user <= 0:
        raise AttemptFailed(ErrorCode.INTERNAL, "a job must not run as root", retryable=False)
    if lease.network != (network is not None):
        raise ValueError("a network for a job that asks for none, or the other way round")
    if lease.command is None and not image.has_command:
        raise _unusable("has no command of its own: give spec.job.command")
    if (folder := _inside(image.working_dir, ("/proc",))) is not None:
        # A working directory there can be a leaked handle to the host (CVE-2024-21626).
        raise _unusable(f"has its working directory at {folder}, which is not allowed")
    settings: dict[str, Any] = {
        "Image": image.id,
        "User": f"{lease.user}:{lease.user}",
        "Hostname": "job",
        "Env": [f"{name}={value}" for name, value in _environment(lease).items()],
        "Labels": {
            NODE_LABEL: node,
            JOB_LABEL: lease.job_id,
            ATTEMPT_LABEL: str(lease.attempt),
        },
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Tty": False,
        "OpenStdin": False,
        "HostConfig": _host_settings(lease, image, in_dir, out_dir)
        | _device_settings(device)
        | _network_settings(network),
    }
    if lease.command is not None:
        # All of argv, as `command` in Kubernetes: neither the image's entrypoint nor its arguments are mixed in.
        settings |= {"Entrypoint": lease.command, "Cmd": []}
    return settings


def _environment(lease: JobLease) -> dict[str, str]:
    return lease.env | lease.secrets | {
        "RGRID_JOB_ID": lease.job_id,
        "RGRID_ATTEMPT": str(lease.attempt),
        "RGRID_FUNCTION": lease.function or "",
        "RGRID_VERSION": str(lease.version),
    }


def _host_settings(lease: JobLease, image: LocalImage, in_dir: Path, out_dir: Path) -> dict[str, Any]:
    memory, disk, cpu = lease.resources.memory_bytes, lease.resources.disk_bytes, lease.resources.cpu
    return {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={profile()}"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": _tmp_options(memory, disk)},  # noqa: S108
        "Mounts": [
            _bind(in_dir, "/in", read_only=True),
            _bind(out_dir, "/out", read_only=False),
            *({"Type": "tmpfs", "Target": path, "TmpfsOptions": {"SizeBytes": VOLUME_BYTES, "Mode": 0o1777}}
              for path in _volumes(image)),
        ],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "ShmSize": min(SHM_BYTES, memory // 2),
        "Memory": memory,
        "MemorySwap": memory,  # both together: no swap
        "OomScoreAdj": OOM_SCORE,
        "CpuPeriod": CPU_PERIOD_US,
        "CpuQuota": max(CPU_LEAST_US, round(cpu * CPU_PERIOD_US)),
        "CpuShares": max(2, round(cpu * 1024)),
        "PidsLimit": PIDS,
        "Ulimits": [
            _limit("nofile", OPEN_FILES),
            _limit("core", 0),
            _limit("fsize", disk),
        ],
        "Init": True,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {"Type": "none", "Config": {}},
        "PublishAllPorts": False,
    }  # fmt: skip


def _device_settings(device: str | None) -> dict[str, Any]:
    if device is None:
        return {}
    bytes_, operations = [{"Path": device, "Rate": IO_BYTES}], [{"Path": device, "Rate": IO_OPS}]
    return {
        "BlkioDeviceReadBps": bytes_,
        "BlkioDeviceWriteBps": bytes_,
        "BlkioDeviceReadIOps": operations,
        "BlkioDeviceWriteIOps": operations,
    }


def _network_settings(network: JobNetwork | None) -> dict[str, Any]:
    if network is None:
        return {"NetworkMode": "none"}
    settings: dict[str, Any] = {
        "NetworkMode": network.id,
        "Dns": list(network.dns),
        "DnsSearch": ["."],  # the host's search domains are nobody's business
        "DnsOptions": [],
    }
    if network.ipv6:
        settings["Sysctls"] = {
            "net.ipv6.conf.all.disable_ipv6": "1",
            "net.ipv6.conf.default.disable_ipv6": "1",
        }
    return settings


def _tmp_options(memory: int, disk: int) -> str:
    # It counts as the job's memory: with half of it a full /tmp is an error that a program can see (ENOSPC).
    size = min(disk, memory // 2)
    inodes = min(max(size // 4096, TMP_INODES_LEAST), TMP_INODES_MOST)
    # Many languages run what they unpack there, so it is not noexec.
    return f"rw,exec,nosuid,nodev,mode=1777,size={size},nr_inodes={inodes}"


def _volumes(image: LocalImage) -> list[str]:
    """Where an image wants volumes, each to become a small tmpfs: a volume would be disk without a limit."""
    if len(image.volumes) > VOLUMES_MOST:
        raise _unusable(f"has more than {VOLUMES_MOST} volumes")
    paths = {_normal(path) for path in image.volumes} - set(_OURS)
    for path in paths:
        if path == "/" or _inside(path, _CLOSED_TO_VOLUMES) or _inside(path, ("/in", "/out")):
            raise _unusable(f"has a volume at {path}, which is not allowed")
    return sorted(paths)


def _bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def _limit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _inside(path: str, folders: tuple[str, ...]) -> str | None:
    """The path in its shortest form if it is one of the folders or below one."""
    shortest = _normal(path)
    return shortest if any(f"{shortest}/".startswith(f"{folder}/") for folder in folders) else None


def _unusable(what: str) -> AttemptFailed:
    return AttemptFailed(ErrorCode.IMAGE_PULL_FAILED, f"the image {what}", retryable=False)
