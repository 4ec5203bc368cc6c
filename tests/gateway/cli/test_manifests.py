"""Which manifests ``rgrid apply`` finds, and what it says about those that are none."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from gateway.cli import manifests
from gateway.cli.failures import Failed
from gateway.cli.manifests import read_manifests

MANIFEST = "apiVersion: rgrid/v1\nkind: Function\nmetadata: {name: NAME}\nspec: {}\n"


def write(path: Path, name: str) -> Path:
    path.write_text(MANIFEST.replace("NAME", name))
    return path


def test_a_folder_gives_its_manifests_and_passes_over_other_files(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", "bee")
    (tmp_path / "a.json").write_text('{"kind": "Function", "metadata": {"name": "ay"}}')
    (tmp_path / "params.json").write_text('{"width": 3}')
    (tmp_path / "README.md").write_text("not looked at")
    (tmp_path / "compose.yaml").write_text("services: {a: {image: b}}")
    (tmp_path / "k8s.yml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {}\n---\na: 1\n")
    (tmp_path / "tsconfig.json").write_text("{/* a comment */}")
    for name in ("inner", ".git"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "c.yml", "cee")
    write(tmp_path / ".hidden.yaml", "dee")
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)
    found, passed_over = read_manifests([tmp_path])
    assert [(one.name, one.content_type) for one in found] == [
        ("ay", "application/json"), ("bee", "application/yaml"), ("cee", "application/yaml"),
    ]  # fmt: skip
    names = ("compose.yaml", "k8s.yml", "params.json", "tsconfig.json")
    assert passed_over == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("apiVersion: rgrid/v1\nkind: Function\nmetadata: {name: f\n", "f.yaml: not YAML: "),
        ("apiVersion: rgrid/v1\n---\nkind: Function\n", "at line 2, column 1: each manifest is a file of its own"),
        ("kind: Function\nmetadata: {}\n", "f.yaml:2: /metadata/name: a manifest names its function here"),
        ("kind: Function\nmetadata:\n  name: A\n", "f.yaml:3: /metadata/name: 'A' is no function's name"),
        ("apiVersion: rgrid/v1\na:\n  - \"\\0\"\n", "f.yaml:3: /a/0: the text has a NUL"),
    ],
)
def test_a_folder_with_a_broken_manifest_is_refused(tmp_path: Path, content: str, said: str) -> None:
    write(tmp_path / "good.yaml", "good")
    (tmp_path / "f.yaml").write_text(content)
    with pytest.raises(Failed) as failed:
        read_manifests([tmp_path])
    assert said in str(failed.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(MANIFEST.encode(), "application/yaml"), (b' {"metadata": {"name": "NAME"}}', "application/json")],
)
def test_standard_input_is_json_if_it_begins_so(
    monkeypatch: pytest.MonkeyPatch, content: bytes, kind: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.replace(b"NAME", b"f"))))
    (found,), _ = read_manifests([Path("-")])
    assert (found.source, found.name, found.content_type) == ("-", "f", kind)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"[1]", "a manifest names its function here"),
        (b"metadata: {name: 3}", "a manifest names its function here"),
        (b"metadata: {name: Big One}", "is no function's name"),
        (b"metadata: {name: ../nodes}", "is no function's name"),
        (b"metadata: {name: a-}", "is no function's name"),
        (b"a: [", "function.yaml: "),
        (b"\xff", "function.yaml: "),
        (b"metadata: {name: f}\nmetadata: {name: g}", "function.yaml: "),
        (b"&a [*a]", "function.yaml: "),
    ],
)
def test_what_is_no_manifest_is_named_before_anything_is_sent(tmp_path: Path, content: bytes, said: str) -> None:
    good, file = write(tmp_path / "good.yaml", "good"), tmp_path / "function.yaml"
    file.write_bytes(content)
    with pytest.raises(Failed, match=r"function\.yaml") as failed:
        read_manifests([good, file])
    assert said in str(failed.value)


def test_two_manifests_of_one_function_are_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.yaml", "f"), write(tmp_path / "two.yaml", "f")
    with pytest.raises(Failed, match=f"{one}, {two}: all of them are the function f"):
        read_manifests([one, two])


def test_an_empty_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no manifest in this folder"):
        read_manifests([tmp_path])


def test_a_file_is_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "LARGEST", 10)
    with pytest.raises(Failed, match="larger than 10 bytes"):
        read_manifests([write(tmp_path / "f.yaml", "f")])
