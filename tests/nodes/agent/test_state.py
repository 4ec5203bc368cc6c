from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodes.agent.adoption import plan
from nodes.agent.identity import FolderTaken, NodeFolder, sha256_hex
from nodes.agent.state import Ended, Record, Records, without_secrets
from nodes.protocol import AttemptReport, Image, Input, JobLease, JoinAnswer, Resources, Stage


def lease(job_id: str = "job_1", attempt: int = 1) -> JobLease:
    return JobLease(
        job_id=job_id,
        token="0" * 32,
        attempt=attempt,
        slots=1,
        function=None,
        version=1,
        image=Image(reference="alpine", login="user:SECRET"),
        command=["echo", "SECRET"],
        env={"KEY": "SECRET"},
        secrets={"TOKEN": "SECRET"},
        inputs=[Input(path="/in/x", content="SECRET")],
        resources=Resources(cpu=1, memory_bytes=1, disk_bytes=1),
        params='{"x": "SECRET"}',
        timeout_s=600,
        grace_s=10,
        user=65532,
    )


def record(job_id: str = "job_1", attempt: int = 1, boot_id: str = "now", **fields: object) -> Record:
    return Record(lease=lease(job_id, attempt), boot_id=boot_id, received_s=1.5).model_copy(update=fields)


@dataclass(frozen=True)
class Found:
    container_id: str
    job_id: str
    attempt: int
    running: bool


def test_what_was_saved_is_loaded_again_and_forgotten_when_told(tmp_path: Path) -> None:
    records = Records(tmp_path / "leases")
    first = record(
        timeline={Stage.PULLING: 0, Stage.STARTED: 12},
        ended=Ended(code=1, oom_killed=True),
        report=AttemptReport(token="0" * 32, status="cancelled"),
    )
    second = record("job_2")
    records.save(first)
    records.save(second)
    assert Records(tmp_path / "leases").load() == [first, second]
    records.forget(first.key)
    records.forget(first.key)
    assert records.load() == [second]


def test_files_are_for_root_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "leases")
    records.save(record())
    records.save(record())
    (file,) = (tmp_path / "leases").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_nothing_of_the_job_s_own_values_is_written_down() -> None:
    text = Record(lease=without_secrets(lease()), boot_id="b", received_s=0).model_dump_json()
    assert "SECRET" not in text
    assert "TOKEN" in text, "an agent that goes on with the job masks it in the log"


def test_secrets_stand_in_no_text_that_is_made_of_a_lease() -> None:
    held = lease().model_copy(update={"command": [], "env": {}, "inputs": [], "params": "{}"})
    assert "SECRET" not in repr(held) + str(held)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"lease": 1}', b"\xff\xfe", b"null"])
def test_a_file_that_cannot_be_read_is_dropped(tmp_path: Path, content: bytes) -> None:
    records = Records(tmp_path)
    records.save(record())
    (tmp_path / "job_2.1.json").write_bytes(content)
    (tmp_path / "job_3.1.new").write_bytes(content)
    assert [each.key for each in records.load()] == [("job_1", 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["job_1.1.json"]


@pytest.mark.parametrize("job_id", ["", "../x", "a/b", "a\0b", "job 1", "ü", "x" * 129, "."])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        Records(tmp_path).save(record(job_id))


STARTED = {Stage.STARTED: 5}
REPORT = AttemptReport(token="0" * 32, status="cancelled")


@pytest.mark.parametrize(
    ("known", "found", "adopted", "handed_back", "removed"),
    [
        pytest.param([], [], [], [], [], id="nothing"),
        pytest.param(
            [], [Found("c", "job_1", 1, True)], [], [], ["c"], id="a container that nobody waits for"
        ),
        pytest.param([record()], [], [], ["job_1"], [], id="claimed, nothing begun"),
        pytest.param(
            [record()], [Found("c", "job_1", 1, False)], [], ["job_1"], ["c"], id="created, never started"
        ),
        pytest.param(
            [record()],
            [Found("c", "job_1", 1, True)],
            [("job_1", "c", True)],
            [],
            [],
            id="started, not noted",
        ),
        pytest.param(
            [record(timeline=STARTED)],
            [Found("c", "job_1", 1, True)],
            [("job_1", "c", True)],
            [],
            [],
            id="running",
        ),
        pytest.param(
            [record(timeline=STARTED)],
            [Found("c", "job_1", 1, False)],
            [("job_1", "c", False)],
            [],
            [],
            id="exited",
        ),
        pytest.param([record(timeline=STARTED)], [], [], ["job_1"], [], id="started, container gone"),
        pytest.param(
            [record(timeline=STARTED, ended=Ended(code=0, oom_killed=False))],
            [],
            [("job_1", None, False)],
            [],
            [],
            id="collecting",
        ),
        pytest.param([record(report=REPORT)], [], [("job_1", None, False)], [], [], id="reporting"),
        pytest.param(
            [record(timeline=STARTED, boot_id="before")],
            [Found("c", "job_1", 1, False)],
            [],
            ["job_1"],
            ["c"],
            id="the machine was restarted",
        ),
        pytest.param(
            [record(timeline=STARTED, attempt=2)],
            [Found("old", "job_1", 1, True), Found("new", "job_1", 2, True)],
            [("job_1", "new", True)],
            [],
            ["old"],
            id="another attempt's container",
        ),
    ],
)
def test_a_starting_agent_goes_on_with_what_has_begun(
    known: list[Record],
    found: list[Found],
    adopted: list[tuple[str, str | None, bool]],
    handed_back: list[str],
    removed: list[str],
) -> None:
    made = plan(known, found, "now")
    assert [(each.record.lease.job_id, each.container_id, each.running) for each in made.adopt] == adopted
    assert [each.lease.job_id for each in made.hand_back] == handed_back
    assert made.remove == removed


def test_the_credential_is_made_once_and_for_root_alone(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path / "node")
    credential = folder.credential()
    assert len(credential) == 64 == len(sha256_hex(credential))
    assert folder.credential() == credential
    assert stat.S_IMODE((tmp_path / "node" / "credential").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700
    folder.forget()
    assert folder.credential() != credential
    folder.close()


def test_a_node_that_has_joined_knows_it_after_a_restart(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    assert folder.identity() is None
    folder.joined("https://gateway", JoinAnswer(node_id="node_1", heartbeat_s=3, lease_s=20))
    folder.close()
    folder = NodeFolder(tmp_path)
    identity = folder.identity()
    assert identity is not None
    assert (identity.node_id, identity.lease_s) == ("node_1", 20)
    folder.forget()
    assert folder.identity() is None
    folder.close()


def test_two_agents_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    with pytest.raises(FolderTaken):
        NodeFolder(tmp_path)
    folder.close()
    NodeFolder(tmp_path).close()
