"""Files from a stranger's container onto this disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.client import Api
from gateway.cli.config import Context
from gateway.cli.downloads import Existing, Saved, place, save_outputs
from gateway.cli.failures import Failed
from tests.gateway.cli.server import Answer, answering

CONTENT = b"0123456789" * 100_000
EXPIRED = Answer(403, b"<Error/>", "application/xml")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.downloads.pause", lambda *_: 0.0)


def output(url: str, path: str = "/out/sub/file.bin", content: bytes = CONTENT) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"name": "file", "path": path, "artifact": "art_a", "size": len(content), "sha256": digest, "url": url}


def save(
    directory: Path, url: str, *outputs: dict[str, Any], existing: Existing = Existing.KEEP
) -> list[Saved]:
    with Api(Context(url, "the-key")) as api:
        return list(save_outputs(api, {"id": "job_a", "outputs": list(outputs)}, directory, existing))


def serving(path: str, headers: dict[str, str]) -> Answer:
    """The content, from where a range begins; the first half only if it is asked from the start."""
    start = int(headers.get("range", "bytes=0-")[6:-1])
    cut = len(CONTENT) // 2 if start == 0 and path.endswith("?cut") else None
    return Answer(206 if start else 200, CONTENT[start:], "application/octet-stream", cut=cut)


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with answering(respond=serving) as server:
        (saved,) = save(tmp_path, server.url, output(f"{server.url}/file?cut"))
    assert saved.path == tmp_path / "sub/file.bin" and saved.path.read_bytes() == CONTENT
    assert len(server.asked) == 2 and "range" in server.asked[1][2]
    assert all("authorization" not in headers for _, _, headers in server.asked)
    assert [entry.name for entry in (tmp_path / "sub").iterdir()] == ["file.bin"]


def test_a_link_that_ran_out_is_renewed(tmp_path: Path) -> None:
    def respond(path: str, headers: dict[str, str]) -> Answer:
        if path.startswith("/v1/jobs/"):
            fresh = {"artifact": "art_a", "url": f"http://{headers['host']}/fresh"}
            return Answer(body=json.dumps({"outputs": [fresh]}).encode())
        return Answer(body=CONTENT) if path == "/fresh" else EXPIRED

    with answering(respond=respond) as server:
        (saved,) = save(tmp_path, server.url, output(f"{server.url}/old"))
    assert saved.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(body=CONTENT[:-1] + b"x"), "SHA-256 differs"),
        (Answer(body=CONTENT + b"x"), "sends more than the job made"),
        (Answer(body=CONTENT[:-1]), "does not go on where a connection broke"),
        (Answer(404, b""), "the store answers 404"),
        (Answer(503, b""), "the store answers 503"),
        (Answer(cut=-1), "the connection to the store broke"),
    ],
)
def test_nothing_is_kept_of_a_file_that_is_not_the_jobs(tmp_path: Path, answer: Answer, said: str) -> None:
    with answering(answer) as server, pytest.raises(Failed, match=said):
        save(tmp_path, server.url, output(f"{server.url}/file"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_that_is_there_is_not_fetched_and_another_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "sub/file.bin"
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    with answering(respond=serving) as server:
        wanted = output(f"{server.url}/file")
        assert len(save(tmp_path, server.url, wanted)) == 1
        assert server.asked == []
        target.write_bytes(b"mine")
        with pytest.raises(Failed, match="--force overwrites it"):
            save(tmp_path, server.url, output(f"{server.url}/file", "/out/first"), wanted)
        assert server.asked == [] and target.read_bytes() == b"mine"
        save(tmp_path, server.url, wanted, existing=Existing.OVERWRITE)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["/out/../x", "/out/a/../../x", "../x", "/out", "/", "", "/out/a\0b", "/out/.."])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Failed):
        place(tmp_path, path)


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/out/a/b", "a/b"), ("/out/a\nb", "a_b"), ("/out/a\\b", "a_b"), ("/etc/passwd", "etc/passwd"),
        ("/out/\u202egpj.exe", "_gpj.exe"), ("/out//a/./b", "a/b"),
    ],
)  # fmt: skip
def test_other_paths_lie_below_the_folder(tmp_path: Path, path: str, inside: str) -> None:
    assert place(tmp_path, path) == tmp_path / inside


def test_a_link_in_the_folder_does_not_lead_out_of_it(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir(), folder.mkdir()
    (folder / "sub").symlink_to(outside)
    with pytest.raises(Failed, match="would be saved outside"):
        place(folder, "/out/sub/file")


def test_two_outputs_at_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="two of its outputs would be the same file"):
        save(tmp_path, "http://127.0.0.1:1", output("", "/out/a\nb"), output("", "/out/a_b"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("a file")
    with answering(respond=serving) as server, pytest.raises(Failed, match=f"{tmp_path}/sub"):
        save(tmp_path, server.url, output(f"{server.url}/file"))


def test_a_saved_file_has_the_users_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with answering(respond=serving) as server:
            (saved,) = save(tmp_path, server.url, output(f"{server.url}/file"))
        assert saved.path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
