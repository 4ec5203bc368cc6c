"""The main job of RGrid on real input: a video in, a picture out, from the invoke to the callback and the link."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from svix.webhooks import Webhook, WebhookVerificationError

from functions.documents import load_yaml
from tests.e2e.instance import Instance
from tests.e2e.receiver import Receiver
from tests.images import build
from tests.nodes.agent.waiting import until

pytestmark = pytest.mark.docker
TEMPLATE = Path(__file__).parent.parent.parent / "templates/functions/ffmpeg-thumbnail/function.yaml"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds of a test picture, 320 × 240."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    command = [build.ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", "testsrc=duration=2:size=320x240:rate=25"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", path], check=True)
    return path.read_bytes()


def thumbnail(callback_url: str) -> dict[str, Any]:
    manifest: dict[str, Any] = load_yaml(TEMPLATE.read_bytes())
    manifest["spec"]["job"]["image"] = build.ffmpeg()
    manifest["spec"]["callbacks"] = [{"url": callback_url, "events": ["job.succeeded"]}]
    return manifest


async def test_a_video_becomes_a_picture_with_callback_presigned_link_and_stable_link(
    instance: Instance, receiver: Receiver, clip: bytes
) -> None:
    receiver.files["clip.mp4"] = clip
    applied = await instance.apply(thumbnail(receiver.callback_url))
    answer = await instance.api.post(
        "/v1/functions/ffmpeg-thumbnail/invoke",
        json={"video": receiver.file_url("clip.mp4"), "width": 160},
        headers={"Prefer": "wait=60"},
    )

    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["status"], job["error"], job["exit_code"]) == ("succeeded", None, 0)
    assert (job["function"], job["version"]) == ("ffmpeg-thumbnail", applied["version"])
    [output] = job["outputs"]
    assert (output["name"], output["path"], output["content_type"]) == (
        "thumbnail", "/out/thumbnail.jpg", "image/jpeg",
    )  # fmt: skip

    async with httpx.AsyncClient(trust_env=False) as browser:  # no key: a link is enough
        picture = await browser.get(output["url"])
        stable = await browser.get(output["link"], follow_redirects=True)
    assert picture.status_code == 200
    assert picture.content.startswith(b"\xff\xd8") and picture.content.endswith(b"\xff\xd9")  # a whole JPEG
    assert picture.headers["content-type"] == "image/jpeg"
    assert (len(picture.content), hashlib.sha256(picture.content).hexdigest()) == (output["size"], output["sha256"])
    assert stable.content == picture.content

    await until(lambda: receiver.of(job["id"]))
    [callback] = receiver.of(job["id"])
    secret = (await instance.api.get("/v1/callbacks/secret")).json()["secret"]
    Webhook(secret).verify(callback.body, callback.headers)
    event = callback.event
    assert event["type"] == "job.succeeded"
    assert event["data"]["outputs"][0]["sha256"] == output["sha256"]
    async with httpx.AsyncClient(trust_env=False) as browser:
        assert (await browser.get(event["data"]["outputs"][0]["url"])).content == picture.content
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(callback.body + b" ", callback.headers)


async def test_an_output_goes_into_the_next_job_by_its_uri(
    instance: Instance, receiver: Receiver, clip: bytes
) -> None:
    receiver.files["clip.mp4"] = clip
    await instance.apply(thumbnail(receiver.callback_url))
    first = await instance.invoke(
        "ffmpeg-thumbnail", {"video": receiver.file_url("clip.mp4"), "width": 160}, Prefer="wait=60"
    )
    # ffmpeg takes a picture for a video of one frame.
    second = await instance.invoke(
        "ffmpeg-thumbnail", {"video": first["outputs"][0]["uri"], "width": 80}, Prefer="wait=60"
    )
    assert second["status"] == "succeeded", second
    assert 0 < second["outputs"][0]["size"] < first["outputs"][0]["size"]
