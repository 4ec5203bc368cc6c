"""A job's outputs on this disk: streamed from their presigned links, checked against size and SHA-256, then renamed.

The names come from a stranger's container: whatever they are, nothing is written outside the folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from gateway.cli.client import BUSY, CONNECT_S, READ_S, Api, loopback, pause, user_agent
from gateway.cli.failures import Failed
from gateway.cli.output import stderr_console

OUT = PurePosixPath("/out")
TRIES = 5
CHUNK = 256 * 1024

Advance = Callable[[int], None]
"""Called with the bytes that have come so far."""


class Existing(Enum):
    """What to do about a file that is there already and has other content."""

    KEEP = "keep"
    OVERWRITE = "overwrite"


@dataclass(frozen=True, slots=True)
class Saved:
    name: str
    path: Path
    size: int
    sha256: str


class _Broken(Exception):
    """This try has failed; another may not."""


class _Expired(Exception):
    """The link no longer works."""


def save_outputs(api: Api, job: dict[str, Any], directory: Path, existing: Existing) -> Iterator[Saved]:
    """Bring a succeeded job's outputs into ``directory``, one after the other; a file that is there already stays.

    Raises ``Failed`` for a file in the way (with ``KEEP``), before anything is downloaded.
    """
    outputs: list[dict[str, Any]] = job["outputs"]
    targets = [place(directory, output["path"]) for output in outputs]
    if len(set(targets)) != len(targets):
        raise Failed(f"{job['id']}: two of its outputs would be the same file here; nothing was saved")
    there = [_is_there(target, output) for target, output in zip(targets, outputs, strict=True)]
    for target, same in zip(targets, there, strict=True):
        if existing is Existing.KEEP and not same and (target.exists() or target.is_symlink()):
            raise Failed(f"{target} is there already, with other content: --force overwrites it")
    with _bars(outputs) as advances:
        for output, target, same, advance in zip(outputs, targets, there, advances, strict=True):
            if not same:
                _save(api, job["id"], output, target, advance)
            advance(output["size"])
            yield Saved(output["name"], target, output["size"], output["sha256"])


def place(directory: Path, path: str) -> Path:
    """Where an output goes: its path below /out, below ``directory``. Raises ``Failed`` if that leads out of it."""
    pure = PurePosixPath(path)
    inside = pure.relative_to(OUT) if pure.is_relative_to(OUT) else PurePosixPath(path.lstrip("/"))
    parts = [_safe(part) for part in inside.parts]
    unsafe = Failed(f"the output {path!r} would be saved outside {directory}: nothing was saved")
    if not parts or ".." in parts or "\0" in path:
        raise unsafe
    target = directory.joinpath(*parts)
    try:
        # A link in the folder may lead out of it, too.
        if not target.parent.resolve().is_relative_to(directory.resolve()):
            raise unsafe
    except (OSError, RuntimeError) as error:
        raise Failed(f"{target}: {getattr(error, 'strerror', None) or error}") from None
    return target


def _safe(part: str) -> str:
    return "".join(
        character if character.isprintable() and character not in "/\\" else "_" for character in part
    )


def _is_there(target: Path, output: dict[str, Any]) -> bool:
    """Whether the very file has been downloaded before."""
    try:
        if target.is_symlink() or not target.is_file() or target.stat().st_size != output["size"]:
            return False
        with target.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == str(output["sha256"])
    except OSError:
        return False


def _save(api: Api, job_id: str, output: dict[str, Any], target: Path, advance: Advance) -> None:
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".rgrid-", suffix=".part")
        partial = Path(name)
        with os.fdopen(handle, "w+b") as opened:
            _fetch(api, job_id, output, opened, advance)
            opened.flush()
            os.fsync(opened.fileno())
        partial.chmod(0o666 & ~_umask())  # as any new file; a temporary one is its owner's alone
        partial.replace(target)
        partial = None
    except OSError as error:
        raise Failed(f"cannot write {target}: {error.strerror}") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _fetch(api: Api, job_id: str, output: dict[str, Any], opened: Any, advance: Advance) -> None:
    """Fill the file, going on where a broken connection left it; a link that ran out is renewed."""
    if output["url"] is None:
        raise Failed(f"{output['name']}: the file is not kept any more: its retention is over")
    digest, url = hashlib.sha256(), str(output["url"])
    for number in range(1, TRIES + 1):
        try:
            _read_on(url, output, opened, digest, advance)
            break
        except _Expired:
            url = _fresh_url(api, job_id, output)
        except _Broken as broken:
            if number == TRIES:
                raise Failed(f"{output['name']}: {broken}: try again") from None
            time.sleep(pause(number))
    else:
        raise Failed(f"{output['name']}: the store refuses its link: try again")
    if opened.tell() != output["size"] or digest.hexdigest() != output["sha256"]:
        raise Failed(f"{output['name']}: what came is not what the job made (SHA-256 differs): try again")


def _read_on(url: str, output: dict[str, Any], opened: Any, digest: Any, advance: Advance) -> None:
    start = opened.tell()
    if start and start >= output["size"]:
        return
    headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    try:
        # The link is its own permission: the API key is for the gateway only.
        with (
            httpx.Client(timeout=timeout, trust_env=not loopback(url), follow_redirects=True) as http,
            http.stream("GET", url, headers=headers) as answer,
        ):
            if answer.status_code in (400, 401, 403):
                raise _Expired
            if answer.status_code in BUSY:
                raise _Broken(f"the store answers {answer.status_code}")
            if start and answer.status_code == 200:
                raise Failed(f"{output['name']}: the store does not go on where a connection broke: try again")
            if answer.status_code not in (200, 206):
                raise Failed(
                    f"{output['name']}: the store answers {answer.status_code} {answer.reason_phrase}"
                )
            for chunk in answer.iter_bytes(CHUNK):
                if opened.tell() + len(chunk) > output["size"]:
                    raise Failed(f"{output['name']}: the store sends more than the job made")
                opened.write(chunk)
                digest.update(chunk)
                advance(opened.tell())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Broken(f"the connection to the store broke ({type(error).__name__})") from None
    if opened.tell() < output["size"]:
        raise _Broken("the store sent too little")


def _fresh_url(api: Api, job_id: str, output: dict[str, Any]) -> str:
    for other in api.get(f"/v1/jobs/{job_id}")["outputs"]:
        if other["artifact"] == output["artifact"] and other["url"] is not None:
            return str(other["url"])
    raise Failed(f"{output['name']}: the job no longer has this file")


@contextmanager
def _bars(outputs: Sequence[dict[str, Any]]) -> Iterator[list[Advance]]:
    """A progress bar for each file, on a terminal."""
    if not sys.stderr.isatty():
        yield [lambda _: None for _ in outputs]
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn()
    )  # fmt: skip
    with Progress(*columns, console=stderr_console(), transient=True) as bars:

        def advance(number: int) -> Advance:
            task = bars.add_task(_safe(outputs[number]["name"]), total=outputs[number]["size"])
            return lambda count: bars.update(task, completed=count)

        yield [advance(number) for number in range(len(outputs))]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
