"""A file of this disk into the gateway's store, by presigned links: in parts if it is large, and going on where an
earlier try was cut off. The bytes never pass through the gateway.

The gateway knows a file again by its content, so that the same command may simply be run again.
"""

from __future__ import annotations

import hashlib
import mimetypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from gateway.cli.client import BUSY, CONNECT_S, READ_S, Api, loopback, pause, user_agent
from gateway.cli.failures import Failed, in_one_line
from gateway.cli.output import stderr_console

TRIES = 5
CHUNK = 256 * 1024
LONGEST_NAME = 255
STORING_S = 300.0
"""How long the store may take to answer once it has all of a part."""

Advance = Callable[[int], None]
"""Called with how many bytes of the file have been dealt with."""


@dataclass(frozen=True, slots=True)
class Upload:
    """``uri`` is what a param or an input's url takes."""

    id: str
    uri: str
    size: int
    sha256: str


class _Broken(Exception):
    """This try has failed; another may not."""


class _Expired(Exception):
    """The links no longer work."""


def upload(api: Api, path: Path, *, content_type: str | None = None, name: str | None = None) -> Upload:
    """Upload the file, or find that the store has it. Raises ``Failed``."""
    kind = content_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    shown = _plain(name or path.name)
    try:
        with path.open("rb") as opened, _bar(shown, path.stat().st_size) as bar:
            size, sha256 = _measured(opened, bar)
            wanted = {"size": size, "sha256": sha256, "content_type": kind, "name": shown}
            known = api.post("/v1/artifacts", wanted, repeatable=True)
            if not known["complete"]:
                _send_all(api, known, opened, bar)
                api.post(f"/v1/artifacts/{known['id']}/complete", repeatable=True)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise Failed(f"{str(path)!r} is not a file's name") from None
    return Upload(known["id"], known["uri"], size, sha256)


def _measured(opened: IO[bytes], bar: Bar) -> tuple[int, str]:
    """Size and SHA-256, read once."""
    digest, size = hashlib.sha256(), 0
    bar.step("reading")
    while chunk := opened.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        bar.advance(size)
    return size, digest.hexdigest()


def _send_all(api: Api, known: Mapping[str, Any], opened: IO[bytes], bar: Bar) -> None:
    bar.step("uploading")
    for number in range(1, TRIES + 1):
        try:
            _send_missing(known, opened, bar)
            return
        except _Expired:
            problem = "the store refuses its links"
        except _Broken as broken:
            problem = str(broken)
            time.sleep(pause(number))
        # What has arrived stays; the rest gets fresh links.
        known = api.get(f"/v1/artifacts/{known['id']}/parts")
        if known["complete"]:
            return
    raise Failed(f"{known['name']}: {problem}: run it again, what has arrived is not sent twice")


def _send_missing(known: Mapping[str, Any], opened: IO[bytes], bar: Bar) -> None:
    if known["parts"] is None:
        _put(known["upload"], opened, 0, known["size"], bar.advance)
        return
    start = 0
    for part in known["parts"]:
        if not part["uploaded"]:
            _put(part, opened, start, part["size"], bar.advance)
        start += part["size"]
        bar.advance(start)


def _put(link: Mapping[str, Any], opened: IO[bytes], start: int, size: int, advance: Advance) -> None:
    """Send ``size`` bytes from ``start`` on."""
    url, headers = str(link["url"]), {**link["headers"], "User-Agent": user_agent()}
    timeout = httpx.Timeout(READ_S, connect=CONNECT_S, read=STORING_S)
    try:
        # The link is its own permission: the API key is for the gateway only.
        with httpx.Client(timeout=timeout, trust_env=not loopback(url)) as http:
            answer = http.put(url, content=_slice(opened, start, size, advance), headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Broken(f"the connection to the store broke ({type(error).__name__})") from None
    # rclone answers an expired link with 400, others with 403.
    expired = answer.status_code == 400 and b"<Code>AccessDenied<" in answer.content
    if answer.status_code in (401, 403, 404) or expired:
        raise _Expired
    if answer.status_code in BUSY or answer.status_code >= 500:
        raise _Broken(f"the store answers {answer.status_code}")
    if not answer.is_success:
        raise Failed(f"the store answers {answer.status_code} {answer.reason_phrase}: has the file changed meanwhile?")


def _slice(opened: IO[bytes], start: int, size: int, advance: Advance) -> Iterator[bytes]:
    opened.seek(start)
    left = size
    while left:
        chunk = opened.read(min(CHUNK, left))
        if not chunk:
            raise Failed("the file became shorter while it was read: run it again")
        left -= len(chunk)
        yield chunk
        advance(start + size - left)


def _plain(name: str) -> str:
    return in_one_line(name)[:LONGEST_NAME] or "file"


class Bar:
    """How far it is, for a terminal."""

    def step(self, doing: str) -> None:
        """Begin something that goes over the whole file."""

    def advance(self, count: int) -> None:
        """So many bytes of it are done."""


@contextmanager
def _bar(name: str, size: int) -> Iterator[Bar]:
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn()
    )  # fmt: skip
    with Progress(*columns, console=stderr_console(), transient=True) as bars:
        task = bars.add_task(name, total=size)

        class Drawn(Bar):
            def step(self, doing: str) -> None:
                bars.reset(task, description=f"{doing} {name}")

            def advance(self, count: int) -> None:
                bars.update(task, completed=count)

        yield Drawn()
