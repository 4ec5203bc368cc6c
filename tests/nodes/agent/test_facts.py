from __future__ import annotations

from pathlib import Path

import pytest

from nodes.agent.facts import Fact, below_floors, machine_facts, numbers

FIT: dict[str, Fact] = {
    "docker": "29.5.1",
    "runc": "1.3.3",
    "kernel": "6.1.0-18-amd64",
    "cgroup": 2,
    "swap": False,
    "core_pipe": False,
    "protected_hardlinks": 1,
    "protected_symlinks": 1,
    "protected_fifos": 2,
    "protected_regular": 2,
}


@pytest.mark.parametrize(
    "runc", ["1.2.8", "1.2.12", "1.3.3", "1.3.10", "1.4.0", "1.4.0-rc.3", "1.5.0", "2.0.0"]
)
def test_a_fit_machine_has_no_warnings(runc: str) -> None:
    assert below_floors(FIT | {"runc": runc}) == []


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("docker", "20.10.24+dfsg1", "Docker"),
        ("docker", "29.5.0", "Docker"),
        ("docker", None, "Docker"),
        ("runc", "1.1.15", "runc"),
        ("runc", "1.2.7", "runc"),
        ("runc", "1.3.2", "runc"),
        ("runc", "", "runc"),
        ("runc", None, "runc"),
        ("kernel", "4.19.0", "kernel"),
        ("cgroup", 1, "cgroup"),
        ("swap", True, "swap"),
        ("core_pipe", True, "core"),
        ("protected_fifos", 1, "fifos"),
        ("protected_regular", None, "regular"),
    ],
)
def test_each_floor_is_named(name: str, value: Fact, word: str) -> None:
    (warning,) = below_floors(FIT | {name: value})
    assert word in warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20.10.24+dfsg1", (20, 10, 24)),
        ("v1.2", (1, 2)),
        ("", ()),
        (None, ()),
        ("dev", ()),
        ("1.1.5+ds1-1", (1, 1, 5)),
    ],
)
def test_versions_are_compared_by_their_numbers(text: Fact, expected: tuple[int, ...]) -> None:
    assert numbers(text) == expected


def test_the_kernel_is_asked_and_a_missing_file_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/fs").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel").mkdir()
    (tmp_path / "proc/swaps").write_text("Filename Type\n/dev/sda2 partition\n")
    (tmp_path / "proc/sys/kernel/core_pattern").write_text("|/usr/lib/systemd/systemd-coredump %P\n")
    (tmp_path / "proc/sys/fs/protected_fifos").write_text("2\n")
    facts = machine_facts("n1", tmp_path)
    assert (facts["swap"], facts["core_pipe"], facts["cgroup"]) == (True, True, 1)
    assert (facts["protected_fifos"], facts["protected_regular"]) == (2, None)
    assert facts["name"] == "n1"
