"""What the command line says to arguments that make no sense: one line, exit 2 (or 1), nothing sent anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Rgrid

USAGE = [
    (("nonsense",), "No such command 'nonsense'"),
    (("jobs", "--nonsense"), "No such option: --nonsense"),
    (("jobs", "--status", "done"), "'done' is not one of 'scheduled', 'queued', 'running'"),
    (("jobs", "--limit", "0"), "greater than or equal to 1"),
    (("jobs", "--limit", "many"), "should be a valid integer"),
    (("jobs", "--since", "yesterday"), "'yesterday' is no time"),
    (("jobs", "--since", "99999999999d"), "is no time"),
    (("jobs", "--until", "2026-13-01"), "'2026-13-01' is no time"),
    (("jobs", "extra"), "unexpected extra argument"),
    (("job",), "Missing argument 'ID'"),
    (("job", "../functions"), "'../functions' is no name and no id"),
    (("job", "job_a?wait=30"), "is no name and no id"),
    (("job", ""), "'' is no name and no id"),
    (("job", "x" * 200), "is no name and no id"),
    (("cancel",), "name jobs, or filters such as --function"),
    (("cancel", "job_a", "--function", "f"), "name jobs, or filters such as --function"),
    (("cancel", "job_a", "--dry-run"), "only with filters"),
    (("cancel", "--status", "done"), "'done' is not one of"),
    (("cancel", "--batch", "a b"), "is no name and no id"),
    (("retry",), "name jobs, or filters such as --function"),
    (("retry", "job_a", "--version", "0"), "'0' is no version: a number, or current"),
    (("retry", "job_a", "-p", "width"), "'width' does not read name=value"),
    (("jobs", "--trigger", "cron"), "'cron' is not one of"),
    (("apply", "a.yaml", "--prune"), "only with --set"),
    (("apply", "a.yaml", "--set", "a b"), "letters, digits, dots"),
    (("functions", "--label", "team"), "'team' does not read name=value"),
    (("invoke", "f", "--file", "video"), "'video' does not read name=path"),
    (("invoke", "f", "--file", "video=/nonexistent"), "No such file or directory"),
    (("batch", "f"), "Missing argument 'FILE'"),
    (("batches", "get", "/"), "is no name and no id"),
    (("quote", "f", "-p", "width"), "'width' does not read name=value"),
    (("run",), "Missing argument 'IMAGE'"),
    (("run", "busybox", "-x"), "No such option: -x"),
    (("run", "busybox", "--env", "A"), "does not read NAME=value"),
    (("secrets", "set"), "Missing argument 'NAME'"),
    (("secrets", "rm", "a b"), "is no name and no id"),
    (("repro",), "Missing argument 'ID'"),
    (("pause",), "Missing argument 'name'"),
    (("schema", "extra"), "unexpected extra argument"),
    (("cancel", "job_a", "job b"), "'job b' is no name and no id"),
    (("logs", "job_a", "--tail", "-1"), "greater than or equal to 0"),
    (("logs", "job_a", "--attempt", "0"), "greater than or equal to 1"),
    (("invoke",), "Missing argument 'name'"),
    (("invoke", "f", "-p", "width"), "'width' does not read name=value"),
    (("invoke", "f", "-p", "=3"), "does not read name=value"),
    (("invoke", "f", "-p", "a..b=3"), "does not read name=value"),
    (("invoke", "f", "-p", "a=1", "-p", "a=2"), "a is set twice"),
    (("invoke", "f", "-p", "a=1", "-p", "a.b=2"), "exclude each other"),
    (("invoke", "f", "--data", "{"), "--data"),
    (("invoke", "f", "--data", "[1]"), "params are a JSON object"),
    (("invoke", "f", "--data", '{"a": 1, "a": 2}'), "--data"),
    (("invoke", "f", "--data", '{"a": NaN}'), "--data"),
    (("invoke", "f", "--data", "@/nonexistent"), "No such file or directory"),
    (("invoke", "f", "--data", "@/"), "Is a directory"),
    (("invoke", "f", "--data", "@a\0b"), "is not a file's name"),
    (("invoke", "f", "--timeout", "10m"), "only with --wait"),
    (("invoke", "f", "--wait", "--timeout", "soon"), "'soon' is not a duration"),
    (("invoke", "f", "--wait", "--timeout", "-5s"), "is not a duration"),
    (("invoke", "f", "--idempotency-key", "a\nb"), "only visible ASCII characters"),
    (("invoke", "f", "--callback-url", "http://ä"), "only visible ASCII characters"),
    (("invoke", "f", "--delay", ""), "only visible ASCII characters"),
    (("invoke", "f", "--cancel-after", ""), "only visible ASCII characters"),
    (("invoke", "f", "--version", "0"), "greater than or equal to 1"),
    (("invoke", "f", "--version", "99999999999"), "less than or equal to 2147483647"),
    (("invoke", "f/../g"), "is no name and no id"),
    (("apply", "-f", "a\0b"), "embedded null byte"),
    (("apply",), "name a manifest or a folder of them"),
    (("functions", "nonsense"), "No such command 'nonsense'"),
    (("functions", "get", "a b"), "is no name and no id"),
    (("functions", "rollback", "f"), "Missing argument 'version'"),
    (("functions", "rollback", "f", "one"), "should be a valid integer"),
    (("deliveries", "--state", "lost"), "'lost' is not one of"),
    (("deliveries", "redeliver", "/"), "is no name and no id"),
    (("nodes", "add", "--slots", "0"), "greater than or equal to 1"),
    (("nodes", "drain", "node a"), "is no name and no id"),
    (("context", "use"), "Missing argument 'name'"),
    (("login", "--name", "a/b"), "letters, digits, dots"),
    (("up", "--port", "0"), "greater than or equal to 1"),
    (("up", "--port", "65536"), "less than or equal to 65535"),
    (("up", "--slots", "0"), "greater than or equal to 1"),
    (("node", "--slots", "5000"), "less than or equal to 1024"),
    (("demo", "--video", "/nonexistent.mp4"), "does not exist"),
    (("demo", "--video", "/"), "is a directory"),
    (("doctor", "--port", "x"), "should be a valid integer"),
    (("--url",), "requires an argument"),
]

WRONG = [
    (("--url", "ftp://host", "jobs"), "'ftp://host' is not a gateway's URL"),
    (("jobs", "--url", "http://"), "is not a gateway's URL"),
    (("jobs", "--url", "http://user:password@host"), "is not a gateway's URL"),
    (("jobs", "--url", "http://host:99999"), "is not a gateway's URL"),
    (("jobs", "--url", "http://host/a b"), "is not a gateway's URL"),
    (("jobs", "--key", "a b"), "this is not an API key"),
    (("jobs", "--key", "ü"), "this is not an API key"),
    (("jobs", "--project", "a b"), "a project is named by visible ASCII characters"),
    (("jobs", "--url", "http://127.0.0.1:1"), "no RGrid gateway answers at http://127.0.0.1:1"),
    (("apply", "-f", "/nonexistent.yaml"), "/nonexistent.yaml: No such file or directory"),
    (("apply", "-f", "/dev/null"), "/dev/null: it is empty"),
    (("new", "nothing"), "no template 'nothing': there are "),
    (("batch", "f", "/nonexistent"), "/nonexistent: No such file or directory"),
    (("context", "use", "nowhere"), "no context 'nowhere'"),
    (("context", "rm", "nowhere"), "no context 'nowhere'"),
    (("login", "--url", "http://127.0.0.1:1"), "no key given"),
    (("login", "--url", "http://127.0.0.1:1", "--key", "k" * 30), "no RGrid gateway answers"),
]


COMMANDS = [
    "up", "demo", "doctor", "gateway", "scheduler", "node", "migrate", "new", "deploy", "apply", "schema",
    "functions", "secrets", "invoke", "run", "batch", "batches", "quote", "pause", "resume", "repro", "jobs", "job",
    "events", "cancel", "retry", "logs", "download", "callbacks", "deliveries", "nodes", "login", "context",
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), USAGE, ids=lambda value: str(value)[:60])
def test_a_usage_error_is_one_line_that_names_the_help(rgrid: Rgrid, arguments: tuple[str, ...], said: str) -> None:
    line = rgrid(*arguments).refused(2)
    assert said in line
    assert line.endswith("--help'")


def test_a_group_without_a_command_says_so(rgrid: Rgrid) -> None:
    done = rgrid("webhook")
    assert (done.status, done.err.splitlines()) == (2, ["error: a command is missing: see 'rgrid webhook --help'"])


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda value: str(value)[:60])
def test_what_cannot_be_done_is_one_line(rgrid: Rgrid, arguments: tuple[str, ...], said: str) -> None:
    assert said in rgrid(*arguments).refused(1)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(rgrid: Rgrid, command: str) -> None:
    done = rgrid(command, "--help")
    assert (done.status, done.err) == (0, "")
    assert f"Usage: rgrid {command}" in done.out


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RGRID_BOOTSTRAP_KEY", "short-secret", "RGRID_BOOTSTRAP_KEY: needs at least 24 visible ASCII characters"),
        ("RGRID_METRICS_TOKEN", "short-secret", "RGRID_METRICS_TOKEN: needs at least 24 visible ASCII characters"),
        ("RGRID_SPARE_HOURS", "mo 8:00-9:00", "RGRID_SPARE_HOURS: “mo” is no day (mon, tue, wed, thu, fri, sat, sun)"),
        ("RGRID_SPARE_HOURS", "8:00-9:00 Mars", "RGRID_SPARE_HOURS: there is no time zone “Mars”"),
        ("RGRID_LEASE_S", "soon", "RGRID_LEASE_S: input should be a valid number"),
        ("RGRID_LEASE_S", "5", "RGRID_LEASE_S must be at least three times RGRID_HEARTBEAT_S"),
    ],
)
def test_up_names_a_wrong_setting_before_anything_starts(
    rgrid: Rgrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    line = rgrid("up", "--data-dir", tmp_path / "data").refused(2)
    assert line.startswith(said) and "short-secret" not in line
    assert not (tmp_path / "data").exists()


def test_rgrid_alone_shows_what_there_is(rgrid: Rgrid) -> None:
    done = rgrid()
    assert done.status == 0
    assert "rgrid" in done.out and "invoke" in done.out


def test_the_version_costs_no_heavy_import(home: Path) -> None:
    heavy = ("httpx", "asyncpg", "pydantic", "docker", "starlette", "svix", "rich.progress", "yaml", "botocore")
    script = (
        "import sys; from gateway.cli.main import run; status = run(['--version']); "
        f"print(status, [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["rgrid 0.1.0", "0 []"]


def test_an_unexpected_error_is_one_line_too(rgrid: Rgrid, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("gateway.cli.config.target", broken)
    assert rgrid("jobs").refused() == "internal: RuntimeError: a bug of two lines (RGRID_DEBUG=1 shows where)"
    monkeypatch.setenv("RGRID_DEBUG", "1")
    with pytest.raises(RuntimeError):
        rgrid("jobs")


def test_ctrl_c_is_status_130(rgrid: Rgrid, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.cli.config.target", interrupted)
    assert rgrid("jobs").status == 130


def test_a_reader_that_has_gone_ends_the_command_quietly(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "from gateway.cli.main import main; main()"
    command = [sys.executable, "-c", script, "context", "list", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
