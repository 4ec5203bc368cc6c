from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from svix.webhooks import Webhook

from gateway.cli.demo.jobs import believed, check_kind
from gateway.cli.demo.receiver import Received, receiver
from gateway.cli.failures import Failed
from tests.images.build import ffmpeg_binary

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
JPEG = b"\xff\xd8\xff\xe0" + b"picture" * 50 + b"\xff\xd9"


def signed(job_id: str, secret: str = SECRET) -> tuple[dict[str, str], bytes]:
    now = datetime.now(UTC)
    body = json.dumps({"type": "job.succeeded", "timestamp": now.isoformat(), "data": {"id": job_id}})
    signature = Webhook(secret).sign("msg_1", now, body)
    stamp = str(int(now.timestamp()))
    headers = {"webhook-id": "msg_1", "webhook-timestamp": stamp, "webhook-signature": signature}
    return headers, body.encode()


def test_the_receiver_offers_the_clip_and_hands_over_callbacks(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.write_bytes(b"moving pictures")
    headers, body = signed("job_a")
    with receiver(clip) as mine:
        with httpx.Client(trust_env=False) as http:
            assert (http.get(mine.clip_url)).content == b"moving pictures"
            assert (http.get(mine.callback_url)).status_code == 404
            assert (http.post(mine.callback_url, content=body, headers=headers)).status_code == 204
        bodies = believed(mine.callbacks, SECRET, {"job_a"})
    assert bodies["job_a"]["id"] == "msg_1"


def test_a_callback_that_someone_else_signed_is_not_believed() -> None:
    callbacks: queue.Queue[Received] = queue.Queue()
    callbacks.put(Received(*signed("job_a", OTHER_SECRET)))
    with pytest.raises(Failed, match="wrong signature"):
        believed(callbacks, SECRET, {"job_a"})


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (JPEG, "image/jpeg"),
        (JPEG[:-1], "application/octet-stream"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00", "video/mp4"),
        (b"<html>", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_what_a_file_is_shows_in_its_content(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    check_kind(path, kind)
    with pytest.raises(Failed, match=f"file is {kind}, not text/plain"):
        check_kind(path, "text/plain")


@pytest.mark.docker
def test_the_demo_makes_a_picture_shows_it_and_leaves_nothing_running(tmp_path: Path) -> None:
    clip, output, mark = tmp_path / "clip.mp4", tmp_path / "output", uuid4().hex
    drawing = ["-f", "lavfi", "-i", "testsrc=duration=1:size=160x120:rate=10", "-pix_fmt", "yuv420p", clip]
    subprocess.run([ffmpeg_binary(), *drawing], check=True, capture_output=True)
    script = "from gateway.cli.main import main; main()"
    command = [sys.executable, "-c", script, "demo", "--video", clip, "--output", output, "--keep"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RGRID_")}
    env["RGRID_TEST_MARK"] = mark
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "RGRID_URL=" in line:
            break
    found = re.search(r"RGRID_URL=(\S+) RGRID_API_KEY=(\S+)", said)
    assert found is not None, said
    answer = httpx.get(f"{found[1]}/v1/jobs", headers={"Authorization": f"Bearer {found[2]}"}, trust_env=False)
    assert {job["status"] for job in answer.json()["data"]} == {"succeeded"}
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert f"The picture: {output}/thumbnail.jpg" in rest and said.count("the signature is right") == 2
    check_kind(output / "thumbnail.jpg", "image/jpeg")
    check_kind(output / "video.mp4", "video/mp4")
    assert marked(mark) == []
    assert str(output) not in Path("/proc/self/mountinfo").read_text()


def marked(mark: str) -> list[str]:
    """Command lines of the processes that have the mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"RGRID_TEST_MARK={mark}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
