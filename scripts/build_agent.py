"""The agent as one file for each Python and processor that a node may have: ``dist/agent/<sha256>.pyz``.

    scripts/build_agent.py [TARGET…]   cp312-x86_64 …; default: all
    scripts/build_agent.py --lock      write scripts/agent.lock anew, out of constraints.txt

The same sources and wheels make the same bytes: entries are sorted, have no times and no owners, and every wheel is
named by its hash in the lock. ``index.json`` says which file is for which target; a gateway serves them, and a
scheduler tells them to new nodes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "scripts" / "agent.lock"
WHEELS = ROOT / ".cache" / "agent-wheels"
OUT = ROOT / "dist" / "agent"
TARGETS = tuple(f"cp{python}-{arch}" for python in ("311", "312", "313") for arch in ("x86_64", "aarch64"))
"""Debian 12, Ubuntu 24.04 (the image docker-ce), Debian 13."""
NEEDS = ("certifi", "httpcore", "httpx", "idna", "pydantic", "structlog", "zstandard")
OWN = ("functions/__init__.py", "functions/egress", "nodes/__init__.py", "nodes/protocol.py", "nodes/agent")
LEFT_OUT = re.compile(r"\.pyi$|/py\.typed$|\.dist-info/(?:RECORD|WHEEL|REQUESTED|INSTALLER)$|^zstandard/.*cffi")
"""Type stubs, what installers note, and a second copy of zstd for other kinds of Python."""
EPOCH = (1980, 1, 1, 0, 0, 0)
HEAD = "# The wheels that the agent's one file holds, of all targets. Made by build_agent.py --lock.\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--lock", action="store_true", help="write scripts/agent.lock anew")
    given = parser.parse_args(arguments)
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    try:
        if given.lock:
            lock()
        else:
            build(given.targets or TARGETS, given.out)
    except subprocess.CalledProcessError:
        sys.stderr.write("the agent's packages could not be had: pip's words are above\n")
        return 1
    return 0


def build(targets: Iterable[str], out: Path) -> None:
    """Make the files, and the index last: a reader of it finds what it names. The files of the index before stay, for
    servers that were told of them."""
    out.mkdir(parents=True, exist_ok=True)
    kept = _named(out)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    files = {}
    for target in targets:
        content = pack(entries(wheels(target), version))
        digest = hashlib.sha256(content).hexdigest()
        _write(out / f"{digest}.pyz", content)
        files[target] = {"sha256": digest, "size": len(content)}
        sys.stdout.write(f"{target}  {len(content):>9}  {digest}\n")
    _write(out / "index.json", json.dumps({"version": version, "files": files}, indent=1).encode() + b"\n")
    kept |= _named(out)
    for old in out.glob("*.pyz"):
        if old.stem not in kept:
            old.unlink()


def _named(out: Path) -> set[str]:
    """Hashes of the files that the index names, if there is one."""
    try:
        return {file["sha256"] for file in json.loads((out / "index.json").read_bytes())["files"].values()}
    except (FileNotFoundError, ValueError, KeyError):
        return set()


def wheels(target: str) -> list[Path]:
    """The target's wheels, downloaded unless they are here; pip checks them against the lock."""
    here = WHEELS / f"{target}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if not here.is_dir():
        WHEELS.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=WHEELS))
        try:
            _download(target, fresh, "--no-deps", "--require-hashes", "-r", str(LOCK))
            fresh.rename(here)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return sorted(here.glob("*.whl"))


def entries(wheels: Iterable[Path], version: str) -> dict[str, bytes]:
    """Name in the archive → content."""
    found: dict[str, bytes] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if not name.endswith("/") and not LEFT_OUT.search(name):
                    found[name] = packed.read(name)
    for own in OWN:
        path = ROOT / own
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found[file.relative_to(ROOT).as_posix()] = file.read_bytes()
    found["__main__.py"] = (ROOT / "scripts" / "agent_entry.py").read_bytes()
    metadata = f"Metadata-Version: 2.1\nName: rgrid\nVersion: {version}\n"
    found[f"rgrid-{version}.dist-info/METADATA"] = metadata.encode()
    found[f"rgrid-{version}.dist-info/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    return found


def pack(entries: Mapping[str, bytes]) -> bytes:
    """An executable archive, always the same for the same entries."""
    with tempfile.TemporaryFile() as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            for name in sorted(entries):
                info = zipfile.ZipInfo(name, EPOCH)
                info.create_system, info.external_attr = 3, 0o100644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(info, entries[name], compresslevel=9)
        file.seek(0)
        return file.read()


def lock() -> None:
    """Resolve what the agent needs within constraints.txt, for every target, and note each wheel's hash."""
    hashes: dict[str, set[str]] = {}
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            _download(target, Path(folder), "-c", str(ROOT / "constraints.txt"), *NEEDS)
            for wheel in Path(folder).glob("*.whl"):
                name, version = wheel.name.split("-")[:2]
                hashes.setdefault(f"{name}=={version}", set()).add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = (" ".join([name, *(f"--hash=sha256:{each}" for each in sorted(hashes[name]))]) for name in sorted(hashes))
    LOCK.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def _download(target: str, into: Path, *what: str) -> None:
    python, arch = target.removeprefix("cp").split("-")
    platforms = (f"--platform={tag}_{arch}" for tag in ("manylinux2014", "manylinux_2_17"))
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
         f"--python-version={python[0]}.{python[1:]}", "--implementation=cp", *platforms, f"--dest={into}", *what],
        check=True,
    )  # fmt: skip


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
