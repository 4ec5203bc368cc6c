"""What this machine is, and where it is below what running strangers' code asks for (SECURITY.md §1.6)."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Fact = str | int | float | bool | None

DOCKER_FLOOR = (29, 5, 1)
KERNEL_FLOOR = (5, 10)
RUNC_FLOORS: dict[tuple[int, ...], tuple[int, ...]] = {
    (1, 2): (1, 2, 8),
    (1, 3): (1, 3, 3),
    (1, 4): (1, 4, 0),
}
"""Per release line; lines before the first are too old, lines after the last are fine."""
SYSCTL_FLOORS = {
    "protected_hardlinks": 1,
    "protected_symlinks": 1,
    "protected_fifos": 2,
    "protected_regular": 2,
}


def agent_version() -> str:
    try:
        return version("rgrid")
    except PackageNotFoundError:
        return "unknown"


def machine_facts(name: str, root: Path = Path("/")) -> dict[str, Fact]:
    """What the kernel tells; the engine's own facts are added by the caller. ``root`` is for tests."""
    facts: dict[str, Fact] = {
        "name": name[:255],
        "hostname": platform.node(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cgroup": 2 if (root / "sys/fs/cgroup/cgroup.controllers").exists() else 1,
        "swap": len(_read(root / "proc/swaps").splitlines()) > 1,
        "core_pipe": _read(root / "proc/sys/kernel/core_pattern").startswith("|"),
    }
    for key in SYSCTL_FLOORS:
        text = _read(root / f"proc/sys/fs/{key}")
        facts[key] = int(text) if text.isdigit() else None
    return facts


def below_floors(facts: Mapping[str, Fact]) -> list[str]:
    """What is too old or too open, each in a few words; empty for a machine that is fit."""
    found = []
    docker, runc, kernel = (numbers(facts.get(key)) for key in ("docker", "runc", "kernel"))
    if docker < DOCKER_FLOOR:
        found.append(f"Docker {facts.get('docker')} is older than {_text(DOCKER_FLOOR)}")
    line = runc[:2]
    if line < min(RUNC_FLOORS) or runc < RUNC_FLOORS.get(line, ()):
        floors = ", ".join(_text(floor) for floor in RUNC_FLOORS.values())
        found.append(f"runc {facts.get('runc')} is older than {floors}")
    if kernel < KERNEL_FLOOR:
        found.append(f"kernel {facts.get('kernel')} is older than {_text(KERNEL_FLOOR)}")
    if facts.get("cgroup") != 2:
        found.append("cgroup version 1: version 2 is needed")
    if facts.get("swap"):
        found.append("swap is on")
    if facts.get("core_pipe"):
        found.append("core dumps are piped to a program, past the limits")
    for key, floor in SYSCTL_FLOORS.items():
        value = facts.get(key)
        if not isinstance(value, int) or value < floor:
            found.append(f"fs.{key} is below {floor}")
    return found


def numbers(value: Fact) -> tuple[int, ...]:
    """The leading numbers of a version: ``20.10.24+dfsg1`` → (20, 10, 24); () if there are none."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", str(value))
    return () if match is None else tuple(int(part) for part in match[1].split("."))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
