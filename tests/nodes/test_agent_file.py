"""The agent as one file: what is in it, that it is always the same, and that it runs where nothing else is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest

from functions.errors import Unavailable
from nodes.agent_files import AgentFiles

ROOT = Path(__file__).parent.parent.parent
EVERY_MODULE = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import nodes.agent
for found in pkgutil.walk_packages(nodes.agent.__path__, "nodes.agent."):
    importlib.import_module(found.name)
print(sum(name.startswith("nodes.agent.") for name in sys.modules))
"""


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_agent", ROOT / "scripts" / "build_agent.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def locked(builder: ModuleType) -> dict[str, str]:
    """Version by package."""
    lines = [line for line in builder.LOCK.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split()[0].split("==") for line in lines)


def test_the_lock_has_the_versions_of_everything_else(locked: dict[str, str]) -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        pinned[re.sub(r"[-_.]+", "-", name).lower()] = version
    assert {name: pinned.get(re.sub(r"[-_.]+", "-", name).lower()) for name in locked} == locked, "build_agent.py --lock"


def test_every_wheel_is_locked_for_every_target(builder: ModuleType) -> None:
    counts = [line.count("--hash=") for line in builder.LOCK.read_text().splitlines() if not line.startswith("#")]
    assert set(counts) == {1, len(builder.TARGETS)}


def test_the_same_contents_make_the_same_bytes(builder: ModuleType) -> None:
    one, other = builder.entries([], "1.2.3"), dict(reversed(builder.entries([], "1.2.3").items()))
    assert builder.pack(one) == builder.pack(other)
    assert not any(name.startswith(("gateway/", "scheduler/", "functions/s")) for name in one)


def test_the_agent_runs_with_the_locked_packages_and_nothing_else(
    builder: ModuleType, locked: dict[str, str], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    for name in locked:
        for file in distribution(name).files or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file() and not builder.LEFT_OUT.search(str(file)):
                (bare / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, bare / file)
    for name, content in builder.entries([], "1.2.3").items():
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        (bare / name).write_bytes(content)
    python = [sys.executable, "-I", "-S", "-B"]
    told = subprocess.run([*python, bare, "--version"], capture_output=True, text=True, check=True, env={})
    assert told.stdout == "1.2.3\n"
    modules = subprocess.run([*python, "-c", EVERY_MODULE, bare], capture_output=True, text=True, check=True, env={})
    assert int(modules.stdout) >= len(list((ROOT / "nodes" / "agent").glob("*.py"))) - 1
    unset = subprocess.run([*python, bare], capture_output=True, text=True, check=False, env={})
    assert (unset.returncode, unset.stderr) == (2, "RGRID_GATEWAY_URL is not set: give the gateway's URL\n")


def test_the_file_unpacks_itself_once_and_again_when_it_is_another(builder: ModuleType, tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "agent.pyz"
    env = {"RGRID_AGENT_HOME": str(home), "PATH": os.environ["PATH"]}
    entry = (ROOT / "scripts" / "agent_entry.py").read_bytes()
    agent = "import sys\ndef main(arguments):\n    print('release {}', *arguments)\n    return 3\n"
    for release in ("1", "1", "2"):
        main = {"nodes/__init__.py": b"", "nodes/agent/__init__.py": b"", "__main__.py": entry}
        file.write_bytes(builder.pack(main | {"nodes/agent/__main__.py": agent.format(release).encode()}))
        ran = subprocess.run([sys.executable, "-I", file, "a"], capture_output=True, text=True, check=False, env=env)
        assert (ran.returncode, ran.stdout, ran.stderr) == (3, f"release {release} a\n", "")
    assert len(list(home.iterdir())) == 2 and home.stat().st_mode & 0o777 == 0o700


def built(folder: Path, content: bytes = b"agent") -> str:
    digest = hashlib.sha256(content).hexdigest()
    (folder / f"{digest}.pyz").write_bytes(content)
    files = {"cp312-x86_64": {"sha256": digest, "size": len(content)}}
    (folder / "index.json").write_text(json.dumps({"version": "1.2.3", "files": files}))
    return digest


def test_a_gateway_has_the_files_that_its_index_names_and_no_others(tmp_path: Path) -> None:
    assert not AgentFiles.load(tmp_path).files
    digest = built(tmp_path)
    found = AgentFiles.load(tmp_path)
    assert (found.version, found.path(digest)) == ("1.2.3", tmp_path / f"{digest}.pyz")
    assert found.path("../index") is None and found.path("0" * 64) is None
    # A release that is rolled out: servers were told of the file before, and others are told of the next one.
    after = built(tmp_path, b"next")
    assert found.path(digest) is not None and found.path(after) is not None


@pytest.mark.parametrize("harm", ["no json", "cut short", "missing"])
def test_files_that_do_not_fit_their_index_are_said_at_start(tmp_path: Path, harm: str) -> None:
    digest = built(tmp_path)
    if harm == "no json":
        (tmp_path / "index.json").write_text("{")
    elif harm == "cut short":
        (tmp_path / f"{digest}.pyz").write_bytes(b"ag")
    else:
        (tmp_path / f"{digest}.pyz").unlink()
    with pytest.raises(Unavailable, match="make agent"):
        AgentFiles.load(tmp_path)
