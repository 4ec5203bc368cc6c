"""What a dead container has written to /out, as far as the manifest asks for it (SECURITY §1.5).

Everything that is not a plain file, or has a name that could not be shown, is refused and listed. A file that
matches a path of the manifest exactly belongs to that output, else to the first glob that matches it. ``result.json``
is the job's result, and a file only if an output names it, or if it is too large to be anything else.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import threading
from dataclasses import dataclass, field
from typing import Any

from nodes.agent.endings import size as shown_size
from nodes.agent.failures import AttemptFailed
from nodes.agent.globs import Pattern
from nodes.agent.results import NotAResult, parse_result
from nodes.agent.tasks import to_the_end
from nodes.agent.tree import Odd, Tree, folded, open_file, walk
from nodes.agent.workspace import Workspace
from nodes.protocol import (
    OUTPUT_FILE_CAP_BYTES,
    OUTPUT_FILES_CAP,
    RESULT_CAP_BYTES,
    RESULT_OUTPUT,
    RESULT_PATH,
    CollectedFile,
    ErrorCode,
    JobLease,
    Output,
    RejectedOutput,
)

REJECTED_MOST = 100
CHUNK_BYTES = 1024 * 1024
RESULT = ("result.json",)
LARGE_RESULT = Output(path=RESULT_PATH, name=RESULT_OUTPUT, content_type="application/json")

_WORDS = {
    "symlink": "a symbolic link",
    "hardlink": "a hard link: it has another name too",
    "fifo": "a named pipe",
    "socket": "a socket",
    "device": "a device",
    "directory": "a folder: name its files, for example with /**",
    "name": "named with characters that cannot be shown, or too long",
    "collision": "named like another file but for upper and lower case",
    "depth": "nested too deep",
    "mount": "on another file system",
    "unknown": "of an unknown kind",
}
# Of the builtin table only: what a system's own list says differs from node to node.
_TYPES = mimetypes.MimeTypes(filenames=())
for _kind, _suffix in (
    ("image/webp", ".webp"), ("image/avif", ".avif"), ("video/x-matroska", ".mkv"), ("audio/flac", ".flac"),
    ("video/iso.segment", ".m4s"), ("application/vnd.apple.mpegurl", ".m3u8"), ("text/markdown", ".md"),
    ("application/x-ndjson", ".ndjson"), ("application/x-ndjson", ".jsonl"), ("application/yaml", ".yaml"),
    ("application/vnd.apache.parquet", ".parquet"), ("font/woff2", ".woff2"),
):  # fmt: skip
    _TYPES.add_type(_kind, _suffix)
_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


class Stopped(Exception):
    """The caller wants no result any more."""


@dataclass(frozen=True, slots=True)
class CollectedOutput:
    """A file that was hashed, to be uploaded from its workspace."""

    file: CollectedFile
    top: int
    names: tuple[str, ...]
    inode: int

    def open(self) -> int:
        """The same file again, for reading; ``AttemptFailed`` if it is another one."""
        try:
            handle, state = open_file(self.top, self.names)
        except Odd as odd:
            raise AttemptFailed(ErrorCode.INTERNAL, f"{self.file.path} is not readable any more: {odd.reason}") from odd
        if (state.st_ino, state.st_size) != (self.inode, self.file.size):
            os.close(handle)
            raise AttemptFailed(ErrorCode.INTERNAL, f"{self.file.path} changed after the job's end")
        return handle


@dataclass(frozen=True, slots=True)
class Collection:
    """``files`` in the manifest's order, those of a glob by path."""

    files: list[CollectedOutput] = field(default_factory=list)
    result: Any = None
    rejected: list[RejectedOutput] = field(default_factory=list)


async def collect(workspace: Workspace, lease: JobLease) -> Collection:
    """The container must be dead and removed. Raises ``AttemptFailed``. Cancelled, it stops within a moment."""
    stop = threading.Event()
    return await to_the_end(_Collector(workspace.out_fd, lease, stop).run, hurry=stop.set)


class _Collector:
    def __init__(self, top: int, lease: JobLease, stop: threading.Event) -> None:
        self._top = top
        self._lease = lease
        self._stop = stop
        self._left_bytes = lease.resources.disk_bytes
        self._refused: dict[tuple[str, ...], str] = {}
        """What was asked for and is no plain file."""
        self._large_result = False

    def run(self) -> Collection:
        tree = walk(self._top, self._stop.is_set)
        self._go_on()
        try:
            result = self._result(tree)
            files = self._files(tree)
            if self._large_result and all(file.names != RESULT for file in files):
                files += filter(None, [self._read(LARGE_RESULT, RESULT)])
        except AttemptFailed as failure:
            failure.rejected = self._rejected(tree)
            raise
        return Collection(files, result, self._rejected(tree))

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _result(self, tree: Tree) -> Any:
        if (reason := "directory" if RESULT in tree.folders else tree.odd.get(RESULT)) is not None:
            raise self._reject(RESULT, reason)
        if RESULT not in tree.files:
            return None
        try:
            handle, state = open_file(self._top, RESULT)
        except Odd as odd:
            raise self._reject(RESULT, odd.reason) from None
        try:
            if state.st_size > RESULT_CAP_BYTES:
                self._large_result = True
                return None
            data = os.pread(handle, RESULT_CAP_BYTES, 0)
        finally:
            os.close(handle)
        try:
            return parse_result(data)
        except NotAResult as fault:
            message = f"/out/result.json is {fault}"
            raise AttemptFailed(ErrorCode.OUTPUT_REJECTED, message, retryable=False) from None

    def _files(self, tree: Tree) -> list[CollectedOutput]:
        patterns = [(output, Pattern.parse(output.path)) for output in self._lease.outputs]
        if tree.cut and not all(pattern.literal for _, pattern in patterns):
            raise _too_large("/out holds too many entries to look at all of them")
        chosen = self._choose(tree, patterns)
        if sum(map(len, chosen)) > OUTPUT_FILES_CAP:
            raise _too_large(f"the outputs match more than {OUTPUT_FILES_CAP} files")
        found = [
            file
            for (output, _), paths in zip(patterns, chosen, strict=True)
            for path in paths
            if (file := self._read(output, path)) is not None
        ]
        for output, pattern in patterns:
            if output.required and not any(pattern.matches(("out", *each.names)) for each in found):
                raise self._missing(tree, output, pattern)
        return found

    def _choose(self, tree: Tree, patterns: list[tuple[Output, Pattern]]) -> list[list[tuple[str, ...]]]:
        """The plain files of each output, by path; refuses what matches and is none."""
        chosen: list[list[tuple[str, ...]]] = [[] for _ in patterns]
        # A path without wildcards means its file more than any glob does.
        order = sorted(range(len(patterns)), key=lambda index: not patterns[index][1].literal)
        for path in tree.files:
            self._go_on()
            for index in order:
                pattern = patterns[index][1]
                if pattern.matches(("out", *path)) and (pattern.literal or path != RESULT):
                    chosen[index].append(path)
                    break
        for path, reason in tree.odd.items():
            if any(pattern.matches(("out", *path)) for _, pattern in patterns):
                self._refused[path] = reason
        for _, pattern in patterns:
            if pattern.literal and pattern.names[1:] in tree.folders:
                self._refused[pattern.names[1:]] = "directory"
        first: dict[str, tuple[str, ...]] = {}
        return [[path for path in sorted(paths) if self._is_first(path, first)] for paths in chosen]

    def _is_first(self, path: tuple[str, ...], first: dict[str, tuple[str, ...]]) -> bool:
        """Of several files that one folder cannot hold on some users' machines, only one is taken."""
        if first.setdefault(folded(path), path) == path:
            return True
        self._refused[path] = "collision"
        return False

    def _read(self, output: Output, path: tuple[str, ...]) -> CollectedOutput | None:
        """Hash one file; None if it turns out to be none."""
        shown, whole = _shown(path), "/out/" + "/".join(path)
        try:
            handle, state = open_file(self._top, path)
        except Odd as odd:
            self._refused[path] = odd.reason
            return None
        try:
            if state.st_size > OUTPUT_FILE_CAP_BYTES:
                limit = shown_size(OUTPUT_FILE_CAP_BYTES)
                raise _too_large(f"{shown} has {shown_size(state.st_size)}: a file has {limit} at most")
            # Holes take no room on disk, but they take time and room everywhere else.
            self._left_bytes -= state.st_size
            if self._left_bytes < 0:
                limit = shown_size(self._lease.resources.disk_bytes)
                raise _too_large(f"the outputs are larger than the job's disk of {limit}: {shown} is too much")
            sha256, md5 = self._digests(handle, state.st_size, shown)
        finally:
            os.close(handle)
        file = CollectedFile(
            output=output.name,
            path=whole,
            content_type=output.content_type or content_type_of(path[-1]),
            size=state.st_size,
            sha256=sha256,
            md5=md5,
        )
        return CollectedOutput(file, self._top, path, state.st_ino)

    def _digests(self, handle: int, size: int, shown: str) -> tuple[str, str]:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        offset = 0
        while offset < size:
            self._go_on()
            try:
                chunk = os.pread(handle, min(CHUNK_BYTES, size - offset), offset)
            except OSError as error:
                raise AttemptFailed(ErrorCode.INTERNAL, f"{shown} cannot be read: {error.strerror}") from error
            if not chunk:
                raise AttemptFailed(ErrorCode.INTERNAL, f"{shown} ended early while it was read")
            sha256.update(chunk)
            md5.update(chunk)
            offset += len(chunk)
        return sha256.hexdigest(), md5.hexdigest()

    def _missing(self, tree: Tree, output: Output, pattern: Pattern) -> AttemptFailed:
        if tree.cut:
            return _too_large("/out holds too many entries to look at all of them")
        for path, reason in self._refused.items():
            if pattern.matches(("out", *path)):
                return self._reject(path, reason)
        if pattern.literal:
            # Perhaps a folder on the way is something else.
            names = pattern.names[1:]
            for end in range(1, len(names)):
                if names[:end] in tree.odd:
                    return self._reject(names[:end], tree.odd[names[:end]])
        return AttemptFailed(
            ErrorCode.OUTPUT_MISSING, f"the job wrote no {output.path}, which its output {output.name!r} requires"
        )

    def _reject(self, path: tuple[str, ...], reason: str) -> AttemptFailed:
        self._refused[path] = reason
        message = f"{_shown(path)} is {_WORDS.get(reason, reason)}"
        return AttemptFailed(ErrorCode.OUTPUT_REJECTED, message[:2000], retryable=False)

    def _rejected(self, tree: Tree) -> list[RejectedOutput]:
        """What was asked for first, then whatever else lies about."""
        every = list((self._refused | tree.odd).items())
        return [RejectedOutput(path=_shown(path), reason=reason) for path, reason in every[:REJECTED_MOST]]


def content_type_of(name: str) -> str:
    """By the name's ending."""
    kind, encoding = _TYPES.guess_type(name.lower())
    if encoding is not None:
        return _COMPRESSED.get(encoding, "application/octet-stream")
    return kind or "application/octet-stream"


def _too_large(message: str) -> AttemptFailed:
    return AttemptFailed(ErrorCode.OUTPUT_TOO_LARGE, message, retryable=False)


def _shown(path: tuple[str, ...]) -> str:
    """As an absolute path in the container; for names that are no text, with escapes."""
    text = "/out/" + "/".join(path)
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return plain[:1024]
