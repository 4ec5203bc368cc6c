"""``rgrid repro``: a job again in the Docker of this machine: the same image, inputs and limits, under your eyes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import JobId, connected
from gateway.cli.output import note, out

if TYPE_CHECKING:
    from gateway.cli.client import Api
    from nodes.protocol import Input, JobLease

TIMED_OUT = 124
NO_TOKEN = "0" * 32
CHUNK = 256 * 1024


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Jobs")(repro)


@connected
def repro(
    api: Api,
    *,
    job_id: JobId,
    directory: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="A new folder for /in and /out. Default: repro-ID."),
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Fetch the inputs and print the command, but do not run it.")
    ] = False,
) -> None:
    """Run a job again in this machine's Docker: same image digest, command, inputs and limits as on its node.

    Secrets are taken from the variables of your shell. It ends with the exit status of the command.
    """
    from nodes.protocol import JobLease

    spec = api.get(f"/v1/jobs/{job_id}/spec")
    folder = Path(f"repro-{job_id}") if directory is None else directory
    if folder.exists():
        raise Failed(f"{folder} is there already: name another with -o")
    given = {name: spec[name] for name in ("function", "version", "image", "command", "env", "resources", "network")}
    lease = JobLease.model_validate(
        {**given, "job_id": job_id, "token": NO_TOKEN, "attempt": 1, "slots": 1, "inputs": spec["inputs"]}
        | {"params": json.dumps(spec["params"], ensure_ascii=False)}
        | {name: spec[name] for name in ("timeout_s", "grace_s", "user")}
    )
    _prepare(lease, folder)
    command = _command(lease, folder.resolve(), spec["secrets"])
    if only_print:
        out(shlex.join(command))
        return
    for name in spec["secrets"]:
        if name not in os.environ:
            note(f"the job was given the secret {name}, and there is no variable {name} here")
    note(shlex.join(command))
    status = _run(command, lease)
    note(f"exit status {status}; what it left is in {folder / 'out'}")
    raise typer.Exit(status)


def _prepare(lease: JobLease, folder: Path) -> None:
    """``in`` with the inputs and params.json, ``out`` for whoever the job runs as, and the system calls it may make."""
    from nodes.agent.seccomp import profile

    try:
        folder.mkdir(mode=0o700, parents=True)
        inside, left = folder / "in", folder / "out"
        inside.mkdir()
        left.mkdir()
        left.chmod(0o777)  # the folder around it is its owner's alone
        for one in lease.inputs:
            target = inside / one.path.removeprefix("/in/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if one.content is not None:
                target.write_text(one.content)
            else:
                note(f"fetching {one.path}")
                _fetch(one, target)
        (inside / "params.json").write_text(lease.params)
        (folder / "seccomp.json").write_text(profile())
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}") from None


def _fetch(one: Input, target: Path) -> None:
    import httpx

    from gateway.cli.client import CONNECT_S, READ_S, loopback, user_agent

    url, digest = str(one.url), hashlib.sha256()
    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    try:
        # The link is its own permission: the API key is for the gateway only.
        with (
            httpx.Client(timeout=timeout, trust_env=not loopback(url), follow_redirects=True) as http,
            http.stream("GET", url, headers={"User-Agent": user_agent()}) as answer,
            target.open("wb") as opened,
        ):
            if not answer.is_success:
                raise Failed(f"{one.path}: its address answers {answer.status_code} {answer.reason_phrase}")
            for chunk in answer.iter_bytes(CHUNK):
                opened.write(chunk)
                digest.update(chunk)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Failed(f"{one.path}: the connection broke ({type(error).__name__}): try again") from None
    if one.sha256 not in (None, digest.hexdigest()):
        raise Failed(f"{one.path}: what came is not what the job got (SHA-256 differs): try again")


def _command(lease: JobLease, folder: Path, secrets: list[str]) -> list[str]:
    """``docker run`` with what a node asks of the engine, flag for flag."""
    from nodes.agent.failures import AttemptFailed
    from nodes.agent.sandbox import JobNetwork, LocalImage, container_settings

    image = lease.image.pinned or lease.image.reference
    try:
        settings = container_settings(
            lease,
            LocalImage(image, image),
            node="repro",
            in_dir=folder / "in",
            out_dir=folder / "out",
            network=JobNetwork("bridge", (), ipv6=False) if lease.network else None,
        )
    except AttemptFailed as failed:
        raise Failed(str(failed)) from None
    host = settings["HostConfig"]
    words = ["docker", "run", "--rm", "--name", _name(lease), "--user", settings["User"], "--hostname", "job"]
    for pair in settings["Env"]:
        words += ["--env", pair]
    for name in secrets:
        words += ["--env", name]
    words += ["--no-healthcheck", "--stop-signal", "SIGTERM", "--init", "--read-only", "--cap-drop", "ALL"]
    words += ["--security-opt", "no-new-privileges:true", "--security-opt", f"seccomp={folder / 'seccomp.json'}"]
    for path, options in host["Tmpfs"].items():
        words += ["--tmpfs", f"{path}:{options}"]
    for mount in host["Mounts"]:
        words += ["--mount", _mount(mount)]
    words += ["--ipc", "private", "--cgroupns", "private", "--network", host["NetworkMode"]]
    numbers = {
        "--shm-size": "ShmSize", "--memory": "Memory", "--memory-swap": "MemorySwap", "--cpu-period": "CpuPeriod",
        "--cpu-quota": "CpuQuota", "--cpu-shares": "CpuShares", "--pids-limit": "PidsLimit",
    }  # fmt: skip
    for flag, key in numbers.items():
        words += [flag, str(host[key])]
    for limit in host["Ulimits"]:
        words += ["--ulimit", f"{limit['Name']}={limit['Soft']}:{limit['Hard']}"]
    if lease.command is None:
        return [*words, image]
    return [*words, "--entrypoint", lease.command[0], image, *lease.command[1:]]


def _mount(mount: Mapping[str, Any]) -> str:
    """Docker reads it as a line of CSV, so that a folder may have a comma in its name."""
    line = io.StringIO()
    fields = ["type=bind", f"source={mount['Source']}", f"target={mount['Target']}"]
    csv.writer(line, lineterminator="").writerow([*fields, "readonly"] if mount.get("ReadOnly") else fields)
    return line.getvalue()


def _name(lease: JobLease) -> str:
    return f"rgrid-repro-{lease.job_id}"


def _run(command: list[str], lease: JobLease) -> int:
    if shutil.which(command[0]) is None:
        raise Failed("no docker command here: --print shows what would run")
    archive, image = lease.image.archive, lease.image.pinned
    if archive is not None and image is not None and not _has(image):
        raise Failed(
            f"Docker does not have {image}: curl -o image.zst '{archive.url}' && zstd -dc image.zst | docker load"
        )
    try:
        return subprocess.run(command, check=False, timeout=lease.timeout_s).returncode
    except subprocess.TimeoutExpired:
        note(f"it ran longer than the job's timeout of {lease.timeout_s:g} s")
        _stop(lease)
        return TIMED_OUT
    except KeyboardInterrupt:
        _stop(lease)
        raise


def _has(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], check=False, capture_output=True).returncode == 0


def _stop(lease: JobLease) -> None:
    with suppress(OSError):
        grace: Any = max(1, round(lease.grace_s))
        subprocess.run(["docker", "stop", "-t", str(grace), _name(lease)], check=False, capture_output=True)
