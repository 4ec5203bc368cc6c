"""``rgrid up``: PostgreSQL, S3, gateway, scheduler and a node on one machine, under one supervisor.

Runs as ``python -P -m gateway.embedded <options as JSON>``, which the command turns into: so the process that
stays holds nothing of the command line, the web server or the drivers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway import embedded_settings, probes, spawning
from gateway.embedded_checks import check_docker, check_port, check_system
from gateway.embedded_folder import PASSABLE, Folder
from gateway.embedded_postgres import EmbeddedPostgres
from gateway.embedded_s3 import EmbeddedS3, free_port
from gateway.embedded_settings import Options
from gateway.embedded_welcome import welcome
from gateway.keys import make_key
from gateway.spawning import CannotStart, service_account
from gateway.supervisor import Part, Stopped, Supervisor

START_S = 120.0
NODE_STOP_S, SERVERS_STOP_S, STORES_STOP_S = 5.0, 1.5, 1.5
"""What each group of processes has to end in, one after the other: below 10 s together."""
CLEARING_S = 5.0
"""For removing what a killed node left, counted from when all else has ended."""


def python(module: str, *arguments: str) -> list[str]:
    # -P: the folder that the user stands in must not be searched for our modules.
    return [sys.executable, "-P", "-m", module, *arguments]


def become(options: Options) -> None:
    """Replace this process by ``rgrid up``."""
    sys.stdout.flush()
    os.execv(sys.executable, python("gateway.embedded", json.dumps(asdict(options))))  # noqa: S606


def main(options: Options) -> int:
    folder = Folder(Path(options.data_dir).resolve())
    try:
        check_system()
        if (holder := folder.holder()) is not None:
            raise CannotStart(
                f"rgrid up already runs on {folder.path} ({holder}): stop it or choose another --data-dir"
            )
        check_docker()
        check_port(options.host, options.port)
        with folder.claimed(f"pid {os.getpid()}, {options.url}"):
            run(options, folder)
    except (CannotStart, OSError) as error:
        say(f"rgrid up: {' '.join(str(error).split())}")
        return 1
    return 0


def run(options: Options, folder: Folder) -> None:
    """Start everything, say how to reach it, keep it running until asked to stop, and end everything."""
    for place in (folder.run, folder.logs):
        place.mkdir(exist_ok=True)
        place.chmod(PASSABLE)
    with Supervisor(folder.run, folder.logs, say, follow=options.verbose) as supervisor:
        instance = Instance(options, folder, supervisor)
        try:
            instance.start()
            instance.welcome()
            supervisor.run()
        except Stopped:
            say("Stopping …")
        finally:
            instance.stop()
    say("Stopped: nothing is left running.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class Instance:
    """What runs on one data directory, whose lock is held."""

    def __init__(self, options: Options, folder: Folder, supervisor: Supervisor) -> None:
        self._options = options
        self._folder = folder
        self._supervisor = supervisor
        self._began, self._began_s = datetime.now(UTC), time.monotonic()
        self._keys = folder.keys(
            free_port=lambda: free_port(options.host),
            make_api_key=lambda: make_key().text,
            own_key=os.environ.get("RGRID_BOOTSTRAP_KEY"),
        )
        self._join_token: str | None = None
        self._servers_env: dict[str, str] = {}
        self._postgres: EmbeddedPostgres | None = None

    def start(self) -> None:
        """In order of need; what does not need each other starts together. Raises ``CannotStart`` and
        ``Stopped``."""
        for name in embedded_settings.unused(os.environ):
            say(f"{name} is set and has no effect on rgrid up")
        say(f"Starting RGrid on {self._folder.path}")
        postgres, s3 = self._stores()
        for store in (s3.part, postgres.part):
            self._supervisor.start(store)
        self._await("postgresql", lambda: postgres.ready)
        self._await("s3", lambda: s3.ready)
        self._servers_env = embedded_settings.for_servers(
            os.environ, self._options, self._keys, database_url=postgres.url, s3_endpoint=s3.endpoint,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )  # fmt: skip
        self._join_token = self._prepare_database()
        for name in ("gateway", "scheduler"):
            self._supervisor.start(_our_part(name, lambda: self._servers_env))
        self._supervisor.start(_our_part("node", self._node_env))
        self._await("gateway", self._gateway_ready)
        self._await("node", self._node_joined)

    def _stores(self) -> tuple[EmbeddedPostgres, EmbeddedS3]:
        crashed = self._supervisor.crashed_before
        self._supervisor.end_strays()
        account, env = service_account(), embedded_settings.for_stores(os.environ)
        postgres = EmbeddedPostgres(self._folder.postgres, self._folder.socket_folder, account, env)
        self._postgres = postgres
        if not probes.is_free(self._options.host, self._keys.s3_port):
            self._keys = replace(self._keys, s3_port=free_port(self._options.host))
            self._folder.keep(self._keys)
        s3 = EmbeddedS3(
            self._folder.s3, account, env, host=self._options.host, port=self._keys.s3_port,
            key_id=self._keys.s3_key_id, secret=self._keys.s3_secret,
        )  # fmt: skip
        postgres.prepare()
        s3.prepare(crashed=crashed)
        return postgres, s3

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        self._supervisor.wait_for(ready, name, within_s=START_S)
        say(f"  {name:<10} ready after {time.monotonic() - self._began_s:.1f} s")

    def _prepare_database(self) -> str | None:
        """Make or update the schema. A token for the node, if it has none of its own yet."""
        joined = self._node_id() is not None
        arguments = [] if joined else [str(self._options.slots)]
        status, lines = spawning.run(python("gateway.embedded_prepare", *arguments), env=self._servers_env)
        if status != 0:
            raise CannotStart(
                f"the database cannot be prepared: {lines[-1] if lines else f'status {status}'}"
            )
        return None if joined else lines[-1]

    def _node_env(self) -> Mapping[str, str]:
        # A token works once and not for long, so a node that ended before it joined needs another.
        token, self._join_token = self._join_token or self._prepare_database(), None
        return embedded_settings.for_node(
            os.environ, self._options, node_dir=str(self._folder.node), join_token=token
        )

    def _node_id(self) -> str | None:
        try:
            return str(json.loads((self._folder.node / "node.json").read_text())["node_id"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _gateway_ready(self) -> bool:
        answer = probes.http_get(self._gateway, "/readyz")
        return answer is not None and answer[0] == 200

    def _node_joined(self) -> bool:
        # Its row may say "ready" from the last time: what counts is that it has been seen since.
        node_id = self._node_id()
        return node_id is not None and any(
            node["id"] == node_id
            and node["state"] == "ready"
            and datetime.fromisoformat(node["last_seen_at"]) >= self._began
            for node in self._listed("/v1/nodes?limit=100")
        )

    def _listed(self, path: str) -> list[dict[str, Any]]:
        """The newest entries of a list of the API; none while it does not answer."""
        key = embedded_settings.api_key(os.environ, self._keys)
        answer = probes.http_get(self._gateway, path, headers={"Authorization": f"Bearer {key}"})
        if answer is None or answer[0] != 200:
            return []
        try:
            found: list[dict[str, Any]] = json.loads(answer[1])["data"]
        except ValueError:  # longer than a probe reads
            return []
        return found

    @property
    def _gateway(self) -> tuple[str, int]:
        return probes.reached_at(self._options.host), self._options.port

    def welcome(self) -> None:
        key = embedded_settings.api_key(os.environ, self._keys)
        print(welcome(self._options, self._folder.path, key, self._listed("/v1/functions?limit=10")), flush=True)  # noqa: T201

    def stop(self) -> None:
        """The node first, so that it can hand back what it runs; the stores last."""
        node_ended = self._supervisor.stop("node", patience_s=NODE_STOP_S)
        # What one that was killed leaves, or one that had crashed, is removed while the others end.
        clearing = None if node_ended and not self._has_workspaces() else self._clear_node()
        self._supervisor.stop("gateway", "scheduler", patience_s=SERVERS_STOP_S)
        self._supervisor.stop("postgresql", "s3", patience_s=STORES_STOP_S)
        if self._postgres is not None:
            self._postgres.end_orphans()
        if clearing is not None:
            _await_end(clearing, CLEARING_S)
        self._supervisor.forget()
        shutil.rmtree(self._folder.socket_folder, ignore_errors=True)
        shutil.rmtree(self._folder.run, ignore_errors=True)

    def _has_workspaces(self) -> bool:
        """Each job has a file system mounted as long as there is anything of it."""
        place = str(self._folder.node).replace(" ", "\\040")  # as the kernel writes it
        return f" {place}/" in Path("/proc/self/mountinfo").read_text()

    def _clear_node(self) -> subprocess.Popen[bytes]:
        with self._supervisor.log_of("node").open("ab") as log:
            return spawning.spawn(
                python("gateway.cli.running", "clear-node"),
                env=embedded_settings.for_node(
                    os.environ, self._options, node_dir=str(self._folder.node), join_token=None
                ),
                output=log.fileno(),
            )


def _await_end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _our_part(name: str, env: Callable[[], Mapping[str, str]]) -> Part:
    return Part(name, lambda: python("gateway.cli.running", name), env)


if __name__ == "__main__":
    sys.exit(main(Options(**json.loads(sys.argv[1]))))
