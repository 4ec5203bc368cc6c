"""Each command against a real gateway; a node without containers ends the jobs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from gateway.cli.completion import functions as complete_functions
from gateway.cli.main import app
from tests.gateway.cli.conftest import Connected, manifest
from tests.gateway.cli.worker import Worker


async def test_apply_makes_versions_of_what_changed(call: Connected, tmp_path: Path) -> None:
    file = tmp_path / "function.json"
    file.write_bytes(manifest())
    assert (await call("apply", "-f", file)).out == "greet  version 1  created\n"
    assert (await call("apply", file)).out == "greet  version 1  unchanged\n"
    file.write_bytes(manifest(command="yes"))
    (answer,) = (await call("apply", "-f", file, "--json")).json["data"]
    assert (answer["version"], answer["changed"]) == (2, True)
    assert [one["version"] for one in (await call("functions", "versions", "greet", "--json")).json["data"]] == [2, 1]
    assert (await call("functions", "rollback", "greet", 1)).out == "greet  version 1\n"
    listed = (await call("functions")).out.splitlines()
    assert listed[1].split()[:2] == ["greet", "1"] and "busybox:1" in listed[1]
    assert (await call("functions", "rm", "greet")).out == "greet removed\n"
    assert "no functions yet" in (await call("functions")).err


async def test_what_get_prints_is_a_manifest_that_changes_nothing(call: Connected) -> None:
    await call.apply()
    printed = (await call("functions", "get", "greet")).out
    assert (await call("apply", "-f", "-", stdin=printed.encode())).out == "greet  version 1  unchanged\n"


async def test_a_job_is_seen_cancelled_and_run_again(call: Connected) -> None:
    await call.apply()
    job_id = (await call("invoke", "greet", "-p", "who=you")).out.strip()
    assert (await call("job", job_id, "--json")).json["params"] == {"who": "you"}
    assert "greet v1" in (await call("job", job_id)).out
    listed = (await call("jobs", "--function", "greet", "--status", "queued", "--since", "1h")).out.splitlines()
    assert listed[1].startswith(f"{job_id}  greet v1  queued")
    assert (await call("jobs", "--until", "1h", "--json")).json["data"] == []
    for _ in range(2):
        assert (await call("cancel", job_id)).out == f"{job_id}  cancelled\n"
    assert "cancelled" in (await call("events", job_id)).out
    done = await call("retry", job_id, "job_00000000000000000000000000")
    assert done.status == 1 and done.err.startswith("error: job_0000") and done.err.count("\n") == 1
    again = (await call("job", done.out.strip(), "--json")).json
    assert again["retried_from"] == job_id


async def test_the_same_idempotency_key_is_the_same_job(call: Connected) -> None:
    await call.apply()
    first = await call("invoke", "greet", "--idempotency-key", "k")
    assert (await call("invoke", "greet", "--idempotency-key", "k")).out == first.out
    other = await call("invoke", "greet", "--idempotency-key", "k", "-p", "who=x")
    assert other.refused().startswith("idempotency_key_reused: ")


async def test_a_paused_function_waits_until_it_is_resumed(call: Connected) -> None:
    await call.apply()
    assert (await call("pause", "greet")).out == "greet  paused\n"
    assert "paused" in (await call("functions")).out
    options = ("--priority", "60s", "--cancel-after", "1h", "--max-cost", "0.05")
    job_id = (await call("invoke", "greet", *options)).out.strip()
    assert (await call("job", job_id, "--json")).json["max_cost"] == "0.050000"
    assert (await call("job", job_id, "--json")).json["wait_reason"] == "paused"
    assert (await call("resume", "greet", "--json")).json["paused"] is False
    assert (await call("job", job_id, "--json")).json["wait_reason"] != "paused"
    line = (await call("invoke", "greet", "--lane", "fast")).refused()
    assert "RGrid-Lane" in line


async def test_a_quote_is_judged_by_what_has_run(call: Connected) -> None:
    await call.apply()
    assert "no finished jobs yet" in (await call("quote", "greet")).err
    assert (await call("quote", "greet", "-p", "who=3")).refused().startswith("params_invalid: /who")
    with await call.worker() as worker:
        await call("invoke", "greet")
        await working(worker, None)
    assert (await call("quote", "greet", "--json")).json["function"] == "greet"


async def test_the_gateways_faults_are_one_line(call: Connected) -> None:
    await call.apply()
    assert (await call("invoke", "greet", "-p", "who=3")).refused().startswith("params_invalid: /who: ")
    assert (await call("invoke", "nobody")).refused().startswith("function_not_found: ")
    assert (await call("job", "job_nonsense")).refused().startswith("job_not_found: ")
    assert (await call("functions", "rollback", "greet", 9)).refused().startswith("version_not_found: ")
    assert (await call("jobs", "--key", "wrong-key")).refused().startswith("unauthenticated: ")


async def working(worker: Worker, content: bytes | None = b"hello") -> str:
    """Run the next job to its success, off the event loop; its id."""

    def work() -> str:
        lease = worker.lease()
        worker.log(lease, "one\ntwo \x1b[31mred\n")
        worker.succeed(lease, content)
        return lease.job_id

    return await asyncio.to_thread(work)


async def test_a_success_is_followed_waited_for_and_saved(call: Connected, tmp_path: Path) -> None:
    await call.apply()
    with await call.worker() as worker:
        invoke = call("invoke", "greet", "--follow", "--timeout", "30s", "-o", tmp_path, "--json")
        done, job_id = await asyncio.gather(invoke, working(worker))
    assert done.status == 0 and done.json["id"] == job_id
    assert done.json["status"] == "succeeded"
    assert done.err == f"one\ntwo \x1b[31mred\nsaved {tmp_path}/file.txt\n"
    assert (tmp_path / "file.txt").read_bytes() == b"hello"
    assert (await call("logs", job_id)).out == "one\ntwo \x1b[31mred\n"
    assert (await call("logs", job_id, "--tail", 1, "-f")).out == "two \x1b[31mred\n"
    lines = [json.loads(line) for line in (await call("logs", job_id, "--json")).out.splitlines()]
    assert lines == [{"attempt": 1, "line": "one"}, {"attempt": 1, "line": "two \x1b[31mred"}]
    other = tmp_path / "other"
    assert (await call("download", job_id, "-o", other)).out == f"{other}/file.txt\n"
    (other / "file.txt").write_bytes(b"changed")
    assert "--force" in (await call("download", job_id, "-o", other)).refused()
    (saved,) = (await call("download", job_id, "-o", other, "--force", "--json")).json["data"]
    assert (saved["name"], saved["size"]) == ("file", 5)


async def test_a_failure_is_the_exit_status(call: Connected) -> None:
    await call.apply()
    with await call.worker() as worker:
        invoke = call("invoke", "greet", "--wait", "--timeout", "30s")
        done, _ = await asyncio.gather(invoke, asyncio.to_thread(lambda: worker.fail(worker.lease())))
    assert done.status == 1
    assert done.err.endswith("failed: exit_nonzero: it ended with status 3\n") and done.err.count("\n") == 1
    job_id = done.err.split()[1]
    assert "exit_nonzero" in (await call("jobs", "--status", "failed")).out
    assert "it has no outputs" in (await call("download", job_id)).refused()


async def test_waiting_that_is_given_up_leaves_the_job(call: Connected) -> None:
    await call.apply()
    line = (await call("invoke", "greet", "--wait", "--timeout", "0s")).refused()
    assert "has not ended in time and goes on" in line and "rgrid logs -f job_" in line
    assert (await call("job", line.split()[0], "--json")).json["status"] == "queued"
    assert "is queued: it has outputs once it succeeded" in (await call("download", line.split()[0])).refused()


async def test_ctrl_c_leaves_the_job_and_says_how_to_look_at_it(call: Connected) -> None:
    await call.apply()
    script = "from gateway.cli.main import main; main()"
    command = [sys.executable, "-c", script, "invoke", "greet", "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    with await call.worker() as worker:
        lease = await asyncio.to_thread(worker.lease)
        await asyncio.to_thread(worker.log, lease, "it runs\n")
        assert process.stderr is not None
        assert await asyncio.to_thread(process.stderr.readline) == "it runs\n"
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(process.communicate)
    assert (process.returncode, out) == (130, "")
    assert err == (
        f"{lease.job_id} goes on: 'rgrid logs -f {lease.job_id}' follows it, 'rgrid cancel {lease.job_id}' stops it\n"
    )
    assert (await call("job", lease.job_id, "--json")).json["status"] == "running"


async def test_nodes_are_added_listed_and_drained(call: Connected) -> None:
    assert "no nodes yet" in (await call("nodes")).err
    added = await call("nodes", "add", "--name", "left", "--slots", 3)
    assert f"RGRID_GATEWAY_URL={call.url} RGRID_JOIN_TOKEN=" in added.out
    token = added.out.split("RGRID_JOIN_TOKEN=")[1].split()[0]
    with await asyncio.to_thread(Worker, call.url, token) as worker:
        listed = (await call("nodes", "list")).out.splitlines()
        assert listed[1].startswith(f"{worker.node_id}  left  ready  0        4")
        shown = (await call("nodes", "show", worker.node_id)).out
        assert "0 of 4" in shown and "ready" in shown
        assert (await call("nodes", "events", worker.node_id, "--json")).json == {"data": []}
        assert (await call("nodes", "drain", worker.node_id)).out == "left draining\n"
    (node,) = (await call("nodes", "--json")).json["data"]
    assert node["state"] == "draining"


async def test_a_login_is_kept_for_the_next_command(call: Connected, monkeypatch: Any) -> None:
    key = os.environ["RGRID_API_KEY"]
    monkeypatch.delenv("RGRID_API_KEY")
    monkeypatch.delenv("RGRID_URL")
    assert "no RGrid gateway answers" in (await call("functions")).refused()
    assert (await call("login", "--url", call.url, stdin=b"wrong-key\n")).refused().startswith("unauthenticated: ")
    done = await call("login", "--url", call.url + "/", "--name", "mine", stdin=f"{key}\n".encode())
    assert done.status == 0 and f"logged in to {call.url}: context mine" in done.err and key not in done.err
    assert (await call("functions", "--json")).json["data"] == []
    assert "no API key" in (await call("--url", call.url.replace("127.0.0.1", "localhost"), "functions")).refused()


async def test_deliveries_are_listed_and_sent_again(call: Connected) -> None:
    await call.apply(callbacks=[{"url": "https://hooks.example.com/rgrid", "events": ["job.cancelled"]}])
    secret = (await call("callbacks", "secret")).out
    assert secret.startswith("whsec_")
    assert (await call("callbacks", "secret", "--json")).json == {"secret": secret.strip()}
    assert "no such deliveries" in (await call("deliveries")).err
    job_id = (await call("invoke", "greet")).out.strip()
    await call("cancel", job_id)
    listed = await call("deliveries", "--job", job_id, "--state", "pending")
    row = listed.out.splitlines()[1].split()
    assert row[0].startswith("msg_") and row[1:5] == [job_id, "job.cancelled", "pending", "0"]
    again = await call("deliveries", "redeliver", row[0])
    assert again.out == f"{row[0]}  pending\n"
    assert (await call("deliveries", "redeliver", "msg_nonsense")).refused().startswith("delivery_not_found: ")


async def test_names_are_completed_from_the_gateway(call: Connected) -> None:
    await call.apply()
    await call.apply(name="other")

    def complete() -> list[tuple[str, str]]:
        import click

        return complete_functions(click.Context(click.Command("invoke")), "gr")  # type: ignore[arg-type]

    assert await asyncio.to_thread(complete) == [("greet", "Says hello")]
    assert app.info.name == "rgrid"
