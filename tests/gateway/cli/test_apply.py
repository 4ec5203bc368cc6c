"""``rgrid apply``: all manifests or none, diffs, dry runs, and what --prune may remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.cli.diffs import manifest_diff
from tests.gateway.cli.conftest import Connected, manifest

YAML = """\
apiVersion: rgrid/v1
kind: Function
metadata:
  name: NAME
  labels: {team: media}
spec:
  job:
    image: busybox:1
    command: [echo, hi]
"""


def write(folder: Path, name: str, text: str = YAML) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("NAME", name))
    return file


async def names(call: Connected, *options: str) -> list[str]:
    return sorted(one["name"] for one in (await call("functions", "--json", *options)).json["data"])


async def test_a_folder_with_faults_applies_nothing_and_names_files_and_lines(call: Connected, tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path / "inner", "one", YAML.replace("command:", "comand:"))
    write(tmp_path / "inner", "two", YAML.replace("[echo, hi]", "\n      - echo\n      - 3"))
    three = json.dumps(json.loads(manifest("three", nonsense=1)), indent=1)
    (tmp_path / "three.json").write_text(three)
    of_three = 1 + next(number for number, line in enumerate(three.splitlines()) if "nonsense" in line)
    done = await call("apply", "-f", tmp_path)
    assert (done.status, done.out) == (1, "")
    lines = done.err.replace(str(tmp_path), "").splitlines()
    assert [line.split(" ")[1] for line in lines] == [
        "/inner/one.yaml:9:", "/inner/two.yaml:11:", f"/three.json:{of_three}:",
    ]  # fmt: skip
    assert "manifest_invalid: /spec/job/comand: there is no such key: did you mean “command”?" in lines[0]
    assert lines[-1].endswith("/spec/nonsense: there is no such key (nothing was applied)")
    assert await names(call) == []


async def test_what_changes_is_shown_as_a_diff(call: Connected, tmp_path: Path) -> None:
    file = write(tmp_path, "f")
    assert (await call("apply", "-f", file)).out == "f  version 1  created\n"
    file.write_text(file.read_text().replace("busybox:1", "busybox:2"))
    planned = await call("apply", "-f", file, "--dry-run")
    assert planned.status == 0 and planned.err == ""
    *diff, last = planned.out.splitlines()
    assert diff[:2] == ["--- f (as it is)", "+++ f (as applied)"]
    assert [line for line in diff[2:] if line[0] in "+-"] == ["-    image: busybox:1", "+    image: busybox:2"]
    assert last == "f  version 2  would be changed"
    assert (await call("functions", "get", "f", "--json")).json["version"] == 1
    done = await call("apply", "-f", file)
    assert (done.out, done.err.splitlines()) == ("f  version 2  changed\n", diff)
    again = await call("apply", "-f", file)
    assert (again.out, again.err) == ("f  version 2  unchanged\n", "")


async def test_a_dry_run_finds_what_an_apply_would(call: Connected, tmp_path: Path) -> None:
    file = write(tmp_path, "f", YAML.replace("busybox:1", "A B"))
    line = (await call("apply", "-f", file, "--dry-run")).refused()
    assert line.startswith(f"{file}:8: manifest_invalid: /spec/job/image: ")


def test_a_diff_has_colours_on_a_terminal_only(monkeypatch: Any) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    change = {"name": "f", "before": {"a": 1, "b": 2}, "manifest": {"a": 1, "b": "\x1b[2J"}}
    lines = list(manifest_diff(change, Terminal()))  # type: ignore[arg-type]
    assert lines[3:] == [" a: 1", "\x1b[31m-b: 2\x1b[0m", '\x1b[32m+b: "\\e[2J"\x1b[0m']
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b" in line for line in manifest_diff(change, Terminal()))  # type: ignore[arg-type]


async def test_prune_removes_what_the_set_had_and_nothing_else(call: Connected, tmp_path: Path) -> None:
    for name in ("keep", "drop"):
        write(tmp_path / "mine", name)
    write(tmp_path / "other", "other")
    await call("apply", tmp_path / "mine", "--set", "mine")
    await call("apply", tmp_path / "other", "--set", "other")
    await call.apply(name="by-hand")
    (tmp_path / "mine" / "drop.yaml").unlink()
    wanted = ("apply", tmp_path / "mine", "--set", "mine", "--prune")
    planned = await call(*wanted, "--dry-run")
    assert planned.out == "keep  version 1  unchanged\ndrop  would be removed\n"
    assert "would remove drop: --yes does it" in (await call(*wanted)).refused()
    assert await names(call) == ["by-hand", "drop", "keep", "other"]
    done = await call(*wanted, "--yes", "--json")
    assert done.json["removed"] == ["drop"] and [one["changed"] for one in done.json["data"]] == [False]
    assert await names(call) == ["by-hand", "keep", "other"]
    assert await names(call, "-l", "rgrid.dev/apply-set=mine") == ["keep"]
    assert await names(call, "-l", "team=media", "-l", "rgrid.dev/apply-set=other") == ["other"]
    label = YAML.replace("{team: media}", "\n    rgrid.dev/apply-set: other")
    line = (await call("apply", write(tmp_path / "mine", "third", label), "--set", "mine")).refused()
    assert "third.yaml:6: the label rgrid.dev/apply-set names another set than --set mine" in line


async def test_functions_of_one_chain_are_applied_in_any_order(call: Connected, tmp_path: Path) -> None:
    write(tmp_path, "a", YAML + "  callbacks: [{function: b, params: {}}]\n")
    write(tmp_path, "b")
    assert (await call("apply", tmp_path)).out == "a  version 1  created\nb  version 1  created\n"
    circle = write(tmp_path, "b", YAML + "  callbacks:\n    - {function: a, params: {}}\n")
    line = (await call("apply", tmp_path)).refused()
    assert line.startswith((f"{circle}:11: ", f"{tmp_path}/a.yaml:10: "))
