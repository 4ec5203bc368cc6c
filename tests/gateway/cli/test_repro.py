"""``rgrid repro``: what it prints is what a node would do, and with Docker it does it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.conftest import Connected
from tests.images.build import busybox

JOB: dict[str, Any] = {
    "image": "busybox:1",
    "command": ["sh", "-c", 'cat /in/a /in/params.json; echo "$WHO $TOKEN" > /out/made; id -u; exit 7'],
    "env": {"WHO": "{{ params.who }}"},
    "secrets": ["TOKEN"],
    "resources": {"memory": "64Mi", "cpu": "500m"},
    "files": {"inputs": [{"path": "/in/a", "content": "hello {{ params.who }}\n"}]},
}


async def made(call: Connected, image: str) -> str:
    await call("secrets", "set", "TOKEN", "--value", "hidden")
    await call.apply(job=JOB | {"image": image})
    return (await call("invoke", "greet", "-p", "who=you")).out.strip()


async def test_the_command_has_the_nodes_flags_and_no_secret(call: Connected, tmp_path: Path) -> None:
    job_id = await made(call, "busybox:1")
    folder = tmp_path / "again"
    done = await call("repro", job_id, "--print", "-o", folder)
    words = shlex.split(done.out)
    assert words[:3] == ["docker", "run", "--rm"]
    for flag, value in (
        ("--network", "none"), ("--memory", "67108864"), ("--memory-swap", "67108864"), ("--cpu-quota", "50000"),
        ("--pids-limit", "256"), ("--user", "65532:65532"), ("--cap-drop", "ALL"), ("--entrypoint", "sh"),
    ):  # fmt: skip
        assert words[words.index(flag) + 1] == value
    assert "WHO=you" in words and "TOKEN" in words and "hidden" not in done.out
    assert words[-3:] == ["busybox:1", *JOB["command"][1:]]
    assert (folder / "in" / "a").read_text() == "hello you\n"
    assert (folder / "in" / "params.json").read_text() == '{"who": "you"}'
    assert "is there already" in (await call("repro", job_id, "-o", folder)).refused()
    assert (await call("repro", "job_nonsense", "-o", tmp_path / "b")).refused().startswith("job_not_found: ")


@pytest.mark.docker
async def test_it_runs_as_on_a_node(call: Connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = await made(call, busybox())
    monkeypatch.setenv("TOKEN", "mine")
    folder = tmp_path / 'a, "b" and = c'
    done = await call("repro", job_id, "-o", folder)
    assert done.status == 7, done.err
    assert (folder / "out" / "made").read_text() == "you mine\n"
    assert "exit status 7" in done.err
