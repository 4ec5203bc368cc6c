"""What servers are told: complete, short enough, and the same to YAML, a shell and systemd."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from functions.errors import Unavailable
from functions.ids import NodeId
from nodes.agent_files import AgentFile, AgentFiles
from nodes.cloud_init import TEMPLATES, UserData, env_file
from nodes.provider import USER_DATA_BYTES
from tests.postgres import free_port

NODE = NodeId(UUID(int=1))
TOKEN = "Zm9v-YmFy_" * 4
TARGETS = [f"cp{python}-{arch}" for python in ("311", "312", "313") for arch in ("x86_64", "aarch64")]
AGENT = AgentFiles(Path("/agent"), "1", {each: AgentFile(sha256="a" * 64, size=1) for each in TARGETS})


def told(**more: Any) -> dict[str, Any]:
    text = UserData("https://rgrid.example.com", AGENT, **more)(NODE, TOKEN)
    assert text.startswith("#cloud-config\n") and len(text.encode()) < USER_DATA_BYTES / 2
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def files() -> dict[str, dict[str, str]]:
    return {file["path"]: file for file in told()["write_files"]}


def test_the_metadata_service_is_closed_before_anything_else_and_nothing_is_installed() -> None:
    config = told()
    assert config["bootcmd"] == [["ip", "-4", "route", "replace", "blackhole", "169.254.169.254/32"]]
    assert (config["package_update"], config["package_upgrade"], config["users"]) == (False, False, [])
    assert not re.search(r"\bapt(-get)? |\bdnf |\bpip ", yaml.safe_dump(config))


def test_the_token_is_in_one_file_that_root_alone_can_read() -> None:
    holders = [file for file in files().values() if TOKEN in file["content"]]
    assert [(file["path"], file["permissions"]) for file in holders] == [("/etc/rgrid/node.env", "0600")]


def test_every_file_of_the_template_is_told_as_it_stands() -> None:
    contents = {file["content"] for file in files().values()}
    named = {path.name for path in TEMPLATES.iterdir()} - {"README.md", "cloud-config.yaml"}
    assert {name for name in named if (TEMPLATES / name).read_text() not in contents} == set()
    json.loads(files()["/etc/docker/daemon.json"]["content"])


def test_settings_reach_the_node(tmp_path: Path) -> None:
    config = told(enforce_floors=False, job_deny=["203.0.113.0/24", "198.51.100.0/24"])
    env = next(file["content"] for file in config["write_files"] if file["path"] == "/etc/rgrid/node.env")
    (tmp_path / "node.env").write_text(env)
    script = f"set -aeu; . {tmp_path}/node.env; exec {sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    read = json.loads(subprocess.run(["sh", "-c", script], capture_output=True, check=True, env={}).stdout)
    assert read["RGRID_JOIN_TOKEN"] == TOKEN
    assert read["RGRID_JOB_DENY"] == "203.0.113.0/24,198.51.100.0/24"
    assert (read["RGRID_ENFORCE_FLOORS"], read["RGRID_LEAVE_ON_EXIT"]) == ("0", "1")
    assert dict(each.split(":") for each in read["RGRID_AGENT_HASHES"].split(","))["cp312-x86_64"] == "a" * 64


@pytest.mark.parametrize("value", ["a b", "a;b", "$(a)", "`a`", '"', "'", "a\nb", "\\", "a#b", "é"])
def test_a_value_that_could_be_read_in_two_ways_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="RGRID_X"):
        env_file({"RGRID_X": value})


def test_what_cannot_be_told_is_said_at_start() -> None:
    with pytest.raises(Unavailable, match="make agent"):
        UserData("https://rgrid.example.com", AgentFiles(Path("/none")))
    with pytest.raises(Unavailable, match="RGRID_PUBLIC_URL"):
        UserData("https://rgrid.example.com/$(reboot)", AGENT)
    with pytest.raises(Unavailable, match="RGRID_NODE_JOB_DENY"):
        UserData("https://rgrid.example.com", AGENT, job_deny=["203.0.113.0/24"] * 3000)(NODE, TOKEN)


@pytest.mark.parametrize("name", ["boot.sh"])
def test_the_shell_can_read_its_script(name: str) -> None:
    subprocess.run(["sh", "-n", str(TEMPLATES / name)], check=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_knows_every_word_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "rgrid-node.service"
    unit.write_text((TEMPLATES / "rgrid-node.service").read_text())
    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False).stderr
    assert "Unknown" not in said and "rgrid-node.service:" not in said, said


# boot.py, on this machine


class Gateway(http.server.BaseHTTPRequestHandler):
    answers: list[tuple[int, bytes]]
    asked: list[tuple[str, bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.asked.append((self.path, body))
        status, content = self.answers.pop(0)
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[type[Gateway]]:
    handler = type("Fresh", (Gateway,), {"answers": [], "asked": [], "port": free_port()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", handler.port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def boot(gateway: Any, root: Path, *arguments: str, content: bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
    """boot.py with its paths below ``root`` and pauses that nobody notices."""
    text = (TEMPLATES / "boot.py").read_text().replace("time.sleep(", "time.sleep(0 * ")
    text = re.sub(r'"(/(?:opt/rgrid|etc|var|run)/[^"]*)"', rf'"{root}\1"', text)
    (root / "boot.py").write_text(text)
    target = f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}"
    settings = {
        "RGRID_GATEWAY_URL": f"http://127.0.0.1:{gateway.port}",
        "RGRID_AGENT_HASHES": f"{target}:{hashlib.sha256(content).hexdigest()}",
        "RGRID_JOIN_TOKEN": TOKEN,
    }
    command = [sys.executable, "-I", str(root / "boot.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=settings | env, timeout=30)


def test_the_agent_is_asked_for_until_the_right_one_comes(gateway: Any, tmp_path: Path) -> None:
    (tmp_path / "opt/rgrid").mkdir(parents=True)
    gateway.answers[:] = [(503, b""), (404, b""), (200, b"another one"), (200, b"agent")]
    done = boot(gateway, tmp_path, "fetch", content=b"agent")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opt/rgrid/agent.pyz").read_bytes() == b"agent"
    assert {path for path, _ in gateway.asked} == {f"/node/v1/agent/{hashlib.sha256(b'agent').hexdigest()}"}
    assert "another hash" in done.stdout
    other = boot(gateway, tmp_path, "fetch", RGRID_AGENT_HASHES="cp27-vax:" + "0" * 64)
    assert other.returncode == 1 and "only for cp27-vax" in other.stderr


def test_trouble_is_told_without_the_token(gateway: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 9000 + f"\x1b[31mno {TOKEN}\xff\n".encode("latin-1") + b"the end")
    gateway.answers[:] = [(503, b""), (200, b"{}")]
    assert boot(gateway, tmp_path, "trouble", str(tmp_path / "log")).returncode == 0
    path, body = gateway.asked[-1]
    sent = json.loads(body)
    assert (path, sent["token"]) == ("/node/v1/trouble", TOKEN)
    assert sent["message"].endswith("\nthe end") and TOKEN not in sent["message"] and "\x1b" not in sent["message"]
    assert len(sent["message"]) <= 3000


def test_no_copy_of_the_token_is_left_and_cloud_init_does_not_come_again(gateway: Any, tmp_path: Path) -> None:
    held = ["var/lib/cloud/instances/7/cloud-config.txt", "run/cloud-init/x.json", "var/log/cloud-init.log"]
    for name in [*held, "etc/cloud/x", "etc/rgrid/node.env", "var/lib/cloud/instances/7/user-data.txt.i", "var/lib/cloud/keep"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("encoded" if name.endswith((".i", "keep")) else f"RGRID_X=1\nRGRID_JOIN_TOKEN={TOKEN}\n")
    for _ in range(2):
        done = boot(gateway, tmp_path, "forget")
        assert done.returncode == 0, done.stderr
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"boot.py", "etc/cloud/x", "etc/cloud/cloud-init.disabled", "etc/rgrid/node.env", "var/lib/cloud/keep"}
    env = tmp_path / "etc/rgrid/node.env"
    assert (env.read_text(), env.stat().st_mode & 0o777) == ("RGRID_X=1\n", 0o600)


# boot.sh, with programs that write down what they were asked for


def booted(gateway: Any, root: Path, *, patience_s: int = 20, **fails: str) -> list[str]:
    """What boot.sh called, in order. ``fails`` is what programs do instead of their work, a shell script each."""
    for folder in ("bin", "opt/rgrid", "etc/rgrid", "etc/docker", "var/log", "run"):
        (root / folder).mkdir(parents=True)
    (root / "etc/docker/daemon.json").touch()
    os.utime(root / "etc/docker/daemon.json", (1, 1))
    (root / "run/docker.pid").touch()
    target = f"cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}"
    settings = {
        "RGRID_GATEWAY_URL": f"http://127.0.0.1:{gateway.port}",
        "RGRID_AGENT_HASHES": f"{target}:{hashlib.sha256(b'agent').hexdigest()}",
        "RGRID_JOIN_TOKEN": TOKEN,
    }
    (root / "etc/rgrid/node.env").write_text(env_file(settings))
    for name in ("ip", "systemctl", "sysctl", "swapoff", "journalctl"):
        work = fails.get(name, "true")
        script = f'#!/bin/sh\necho "{name} $*" >>{root}/called\n{work}\n'
        (root / "bin" / name).write_text(script)
        (root / "bin" / name).chmod(0o755)
    (root / "bin/python3").symlink_to(sys.executable)
    for name in ("boot.sh", "boot.py"):
        text = (TEMPLATES / name).read_text().replace("time.sleep(", "time.sleep(0 * ")
        text = text.replace("WITHIN_S = 240", f"WITHIN_S = {patience_s}")
        text = re.sub(r"(?<![\w.])/(?=(?:opt|etc|var|run)/)", f"{root}/", text)
        (root / "opt/rgrid" / name).write_text(text)
    env = {"PATH": f"{root}/bin:/usr/bin:/bin"}
    subprocess.run(["sh", root / "opt/rgrid/boot.sh"], env=env, capture_output=True, check=False, timeout=30)
    return (root / "called").read_text().splitlines()


def test_a_machine_closes_the_metadata_service_before_it_fetches_the_agent_and_starts_it(
    gateway: Any, tmp_path: Path
) -> None:
    gateway.answers[:] = [(503, b"the gateway restarts"), (200, b"agent")]
    called = booted(gateway, tmp_path)
    assert called[0] == "ip -4 route replace blackhole 169.254.169.254/32"
    assert called[-1] == "systemctl enable --now --quiet rgrid-node.service"
    assert not [line for line in called if "restart docker" in line], "Docker had read its settings"
    assert [path.split("/")[3] for path, _ in gateway.asked] == ["agent", "agent"], "and no word of trouble"
    assert (tmp_path / "opt/rgrid/agent.pyz").read_bytes() == b"agent"


@pytest.mark.parametrize(
    ("fails", "answers", "words"),
    [
        ({"ip": "echo no route for you; exit 2"}, [], "no route for you"),
        ({"swapoff": "echo swap stays; exit 1"}, [], "swap stays"),
        ({}, [(200, b"another agent")], "what came has another hash\nthe agent cannot be had"),
        (
            {"systemctl": 'case "$*" in *rgrid-node*) exit 1;; esac', "journalctl": "echo the unit broke"},
            [(200, b"agent")],
            "the unit broke",
        ),
    ],
)
def test_whatever_goes_wrong_at_boot_the_gateway_hears_the_end_of_the_log(
    gateway: Any, tmp_path: Path, fails: dict[str, str], answers: list[tuple[int, bytes]], words: str
) -> None:
    gateway.answers[:] = [*answers, (503, b""), (200, b"{}")]
    booted(gateway, tmp_path, patience_s=0, **fails)
    path, body = gateway.asked[-1]
    assert path == "/node/v1/trouble"
    assert json.loads(body)["message"].rstrip().endswith(words)
