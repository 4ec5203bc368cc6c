"""A job that does nothing, from the invoke to the outcome, beside a bare ``docker run`` and the bare Engine API.

The flags of both are read from a container that RGrid itself made, so that they cannot drift apart."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.bench.rounds import ROUNDS, Measured, percentile
from tests.e2e.instance import Instance, containers_below, running_instance
from tests.e2e.manifests import shell
from tests.images import build
from tests.postgres import Postgres
from tests.s3 import S3Server

NOOP = ["/bin/true"]
SECCOMP = "seccomp.json"
RUNS = 12
"""Of each party in a round."""
Json = dict[str, Any]


async def measure(folder: Path, postgres: Postgres, s3: S3Server) -> list[Measured]:
    """Median and p99 of each, in milliseconds."""
    image = build.busybox()
    async with running_instance(folder, postgres, s3, slots=2) as instance:
        noop = shell("noop", image)
        noop["spec"]["job"]["command"] = NOOP
        await instance.apply(noop)
        await instance.apply(shell("sample", image))
        body = await container_body(instance, folder / "bare")
        engine, command = Engine(), docker_command(body, folder / "bare")
        parties: dict[str, Callable[[], Awaitable[None]]] = {
            "bare docker run": lambda: asyncio.to_thread(docker_run, command),
            "bare Engine API": lambda: asyncio.to_thread(engine.run, body),
            "RGrid's job": lambda: rgrid_run(instance),
        }
        p50 = Measured(f"a no-op job, invoke to outcome, one at a time, {RUNS} a round: median", "ms")
        p99 = Measured("the same: slowest", "ms")
        for run in parties.values():
            await run()
        for _ in range(ROUNDS):
            times: dict[str, list[float]] = {name: [] for name in parties}
            for _ in range(RUNS):
                for name, run in parties.items():
                    began_s = time.perf_counter()
                    await run()
                    times[name].append((time.perf_counter() - began_s) * 1e3)
            p50.rounds.append({name: percentile(each, 0.5) for name, each in times.items()})
            p99.rounds.append({name: max(each) for name, each in times.items()})
        engine.close()
    shutil.rmtree(folder / "bare")
    return [p50, p99]


async def rgrid_run(instance: Instance) -> None:
    job = await instance.invoke("noop", {"script": ""}, Prefer="wait=60")
    assert job["status"] == "succeeded", job


async def container_body(instance: Instance, folder: Path) -> Json:
    """What the Engine API needs to make a container as the node's agent does, with plain folders below ``folder`` in
    place of the job's file system."""
    job = await instance.invoke("sample", {"script": "exec sleep 30"})
    await instance.reaches(job["id"], "started")
    [container] = containers_below(instance.folder)
    shown = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True)
    await instance.api.post(f"/v1/jobs/{job['id']}/cancel")
    await instance.finished(job["id"])
    [found] = json.loads(shown.stdout)
    config, host = found["Config"], found["HostConfig"]
    for mount in host["Mounts"]:
        if mount["Type"] == "bind":
            mount["Source"] = str(plain_folder(folder, mount["Target"]))
    (folder / SECCOMP).write_text(seccomp_profile(host))
    # Without its labels: the node would take the container for one of its own.
    kept = ("User", "Env", "Hostname", "StopSignal", "Healthcheck")
    return {
        **{name: config[name] for name in kept if config.get(name)},
        "Image": found["Image"],
        "Entrypoint": NOOP,
        "Cmd": [],
        "HostConfig": host,
    }


def plain_folder(folder: Path, target: str) -> Path:
    made = folder / target.strip("/")
    made.mkdir(parents=True, exist_ok=True)
    made.chmod(0o777)
    return made


class Engine:
    """The Engine API without an SDK: one kept-alive connection to its socket."""

    def __init__(self) -> None:
        self._http = http.client.HTTPConnection("docker")
        self._http.sock = socket.socket(socket.AF_UNIX)
        self._http.sock.connect("/var/run/docker.sock")

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Json | None = None) -> bytes:
        content = None if body is None else json.dumps(body)
        self._http.request(method, path, content, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        data = answer.read()
        assert answer.status < 400, f"{method} {path}: {answer.status} {data.decode(errors='replace')}"
        return data

    def run(self, body: Json) -> None:
        """create, start, wait, remove."""
        container = json.loads(self.call("POST", "/containers/create", body))["Id"]
        self.call("POST", f"/containers/{container}/start")
        ended = json.loads(self.call("POST", f"/containers/{container}/wait"))
        assert ended["StatusCode"] == 0, ended
        self.call("DELETE", f"/containers/{container}?v=1")


def docker_run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)


def seccomp_profile(host: Json) -> str:
    return next(option.partition("=")[2] for option in host["SecurityOpt"] if option.startswith("seccomp="))


def docker_command(body: Json, folder: Path) -> list[str]:
    """The command line that makes the same container. A profile of seccomp must be a file there."""
    host = body["HostConfig"]
    flags = ["--rm", "--init", "--read-only", "--no-healthcheck"]
    flags += ["--user", body["User"], "--hostname", body["Hostname"]]
    flags += ["--network", host["NetworkMode"], "--ipc", host["IpcMode"], "--shm-size", str(host["ShmSize"])]
    flags += ["--memory", str(host["Memory"]), "--memory-swap", str(host["MemorySwap"])]
    flags += ["--cpu-period", str(host["CpuPeriod"]), "--cpu-quota", str(host["CpuQuota"])]
    flags += ["--cpu-shares", str(host["CpuShares"]), "--pids-limit", str(host["PidsLimit"])]
    flags += ["--log-driver", host["LogConfig"]["Type"], "--oom-score-adj", str(host["OomScoreAdj"])]
    flags += [f"--cap-drop={capability}" for capability in host["CapDrop"]]
    flags += ["--security-opt=no-new-privileges:true", f"--security-opt=seccomp={folder / SECCOMP}"]
    flags += [f"--tmpfs={place}:{options}" for place, options in host["Tmpfs"].items()]
    flags += [f"--ulimit={limit['Name']}={limit['Soft']}:{limit['Hard']}" for limit in host["Ulimits"]]
    for mount in host["Mounts"]:
        read_only = ",readonly" if mount.get("ReadOnly") else ""
        flags.append(f"--mount=type=bind,source={mount['Source']},target={mount['Target']}{read_only}")
    flags += [f"--env={each}" for each in body["Env"]]
    return ["docker", "run", *flags, "--entrypoint", NOOP[0], body["Image"]]
