"""Reads a tree that a stranger wrote: by descriptor, without following a link, within limits (SECURITY §1.5).

Call it in a thread, when nothing can write there any more.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

ENTRIES_MOST = 100_000
DEPTH_MOST = 64
NAME_BYTES_MOST = 255
PATH_BYTES_MOST = 1024

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_KINDS = {
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
    stat.S_IFDIR: "directory",
}
# What turns the direction of text: a name must look like what it is.
_TURNS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Odd(Exception):
    """Not a plain file of the tree; ``reason`` is one word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Tree:
    """What was found, as names from the top on. ``odd`` maps everything that is neither a plain file nor a folder
    to its reason. ``cut``: there is more, which was not looked at."""

    files: list[tuple[str, ...]] = field(default_factory=list)
    folders: set[tuple[str, ...]] = field(default_factory=set)
    odd: dict[tuple[str, ...], str] = field(default_factory=dict)
    cut: bool = False


class _Level:
    """An open folder, half read. ``path`` is its own."""

    def __init__(self, parent: int, name: str, path: tuple[str, ...]) -> None:
        self.handle = os.open(name, _FOLDER, dir_fd=parent)
        self.path = path
        self.entries = os.scandir(self.handle)

    def close(self) -> None:
        self.entries.close()
        os.close(self.handle)


def walk(top: int, stopped: Callable[[], bool]) -> Tree:
    """All entries below the directory ``top``, in no set order; ends early when ``stopped`` says so.

    One folder of each level is open, so depth is limited; the rest of a deeper tree is one odd entry.
    """
    found = Tree()
    device = os.fstat(top).st_dev
    left = ENTRIES_MOST
    levels = [_Level(top, ".", ())]
    try:
        while levels and not stopped():
            level = levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                levels.pop().close()
                continue
            if left == 0:
                found.cut = True
                break
            left -= 1
            path = (*level.path, entry.name)
            if (reason := fault_of(path)) is not None:
                found.odd[path] = reason
            elif entry.is_dir(follow_symlinks=False):
                found.folders.add(path)
                deeper = _Level(level.handle, entry.name, path)
                levels.append(deeper)
                if os.fstat(deeper.handle).st_dev != device:
                    found.odd[path] = "mount"
                    levels.pop().close()
            elif entry.is_file(follow_symlinks=False):
                found.files.append(path)
            else:
                found.odd[path] = _kind(entry.stat(follow_symlinks=False).st_mode)
    finally:
        for level in levels:
            level.close()
    return found


def open_file(top: int, path: tuple[str, ...]) -> tuple[int, os.stat_result]:
    """A plain file below ``top``, opened for reading, and what it is. Raises ``Odd`` for anything else."""
    folder = os.dup(top)
    try:
        for name in path[:-1]:
            deeper = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = deeper
        handle = os.open(path[-1], _FILE, dir_fd=folder)
    except OSError as error:
        raise Odd("unreadable") from error
    finally:
        os.close(folder)
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise Odd(_kind(state.st_mode))
        if state.st_nlink != 1:
            raise Odd("hardlink")
        if state.st_dev != os.fstat(top).st_dev:
            raise Odd("mount")
    except BaseException:
        os.close(handle)
        raise
    return handle, state


def fault_of(path: tuple[str, ...]) -> str | None:
    """What is wrong with an entry's name or place; None for nothing."""
    if len(path) > DEPTH_MOST:
        return "depth"
    name = path[-1]
    try:
        length = len(name.encode())
        if length > NAME_BYTES_MOST or sum(len(part.encode()) + 1 for part in path) > PATH_BYTES_MOST - len("/out"):
            return "name"
    except UnicodeEncodeError:
        return "name"
    if any(c in _TURNS or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        return "name"
    return None


def folded(path: tuple[str, ...]) -> str:
    """Equal for paths that are the same file on a system which ignores case or composes letters."""
    return unicodedata.normalize("NFC", "/".join(path)).casefold()


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "unknown")
