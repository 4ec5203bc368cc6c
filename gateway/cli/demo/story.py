"""What happens in the demo, in which order."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from docker.errors import DockerException

import gateway
from gateway.cli.client import Api
from gateway.cli.config import Context
from gateway.cli.demo.clip import clip_in, ffmpeg_for
from gateway.cli.demo.instance import instance
from gateway.cli.demo.jobs import believed, check_kind, follow
from gateway.cli.demo.receiver import Receiver, receiver
from gateway.cli.demo.show import Done, Show
from gateway.cli.downloads import Existing, save_outputs
from gateway.cli.failures import Failed
from gateway.cli.images import BuildFailed, build_image
from gateway.cli.manifests import read_manifests
from gateway.cli.show import why

IMAGE = "rgrid-ffmpeg:4.2.2"
FUNCTIONS = ("ffmpeg-thumbnail", "ffmpeg-transcode")


def tell(show: Show, video: Path | None, output: Path, *, keep: bool) -> list[Done]:
    """The whole demo. Raises ``Failed``, and ``KeyboardInterrupt`` when it was ended early."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as Ctrl-C does
    try:
        output.mkdir(parents=True, exist_ok=True)
        return _tell(show, video, output, keep)
    except DockerException:
        raise Failed("Docker does not answer: start it, or ask 'rgrid doctor'") from None
    except BuildFailed as error:
        raise Failed(f"the image {IMAGE} cannot be built: {error}") from None
    except OSError as error:
        raise Failed(str(error)) from None


def _tell(show: Show, video: Path | None, output: Path, keep: bool) -> list[Done]:
    show.step("clip", str(video) if video else "Big Buck Bunny, 5 seconds (© Blender Foundation, CC BY 3.0)")
    clip = clip_in(output) if video is None else video
    show.step("image", f"{IMAGE}, FROM scratch around a static ffmpeg")
    build_image({"Dockerfile": _template(FUNCTIONS[0]) / "Dockerfile", "ffmpeg": ffmpeg_for(output)}, IMAGE)
    show.step("instance", "rgrid up: PostgreSQL, S3, gateway, scheduler and a node")
    with instance(output / "rgrid", output / "rgrid.log", callback_allow="127.0.0.1/32") as up:
        show.step("ready", up.url)
        with receiver(clip) as mine, Api(Context(up.url, up.key)) as api:
            done = _jobs(show, api, mine, output)
        if keep:
            show.look_around(done, up)
            with suppress(KeyboardInterrupt):
                signal.pause()
        show.step("stopping", "everything that was started")
    show.end(done, output / "rgrid")
    return done


def _template(name: str) -> Path:
    # They are installed beside our packages, and are none: another folder of that name cannot get between.
    return Path(gateway.__file__).parent.parent / "templates" / "functions" / name


def _jobs(show: Show, api: Api, mine: Receiver, output: Path) -> list[Done]:
    secret = api.get("/v1/callbacks/secret")["secret"]
    for manifest in read_manifests([_template(name) / "function.yaml" for name in FUNCTIONS])[0]:
        applied = api.put(f"/v1/functions/{manifest.name}", manifest.content, manifest.content_type)
        show.step("applied", f"{applied['name']}, version {applied['version']}")
    jobs = []
    for name in FUNCTIONS:
        headers = {"X-Callback-Url": mine.callback_url}
        jobs.append(api.post(f"/v1/functions/{name}/invoke", {"video": mine.clip_url}, headers=headers))
        show.step("invoked", f"{name}: {jobs[-1]['id']}")
    with show.running() as watcher:
        jobs = [follow(api, job, watcher) for job in jobs]
    for job in jobs:
        if job["status"] != "succeeded":
            raise Failed(why(job))
        show.step(
            "succeeded", f"{job['function']} ran {job['run_ms']} ms after {job['queue_ms']} ms in the queue"
        )
    bodies = believed(mine.callbacks, secret, {job["id"] for job in jobs})
    return [_fetch(show, api, bodies[job["id"]], output) for job in jobs]


def _fetch(show: Show, api: Api, callback: dict[str, Any], output: Path) -> Done:
    """The files that the callback's own links lead to."""
    job = callback["data"]
    show.step(
        "callback", f"{callback['type']} of {job['function']}, {callback['id']}: the signature is right"
    )
    saved = []
    for file, made in zip(save_outputs(api, job, output, Existing.OVERWRITE), job["outputs"], strict=True):
        check_kind(file.path, made["content_type"])
        show.step("saved", f"{file.path}: {made['content_type']}, {made['size'] / 1000:.0f} kB")
        saved.append(str(file.path))
    return Done(job["function"], job["id"], callback["id"], saved)
