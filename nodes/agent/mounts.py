"""The kernel's calls for a file system in a file: loop device, mount, unmount.

Called directly rather than through mount(8), which takes twice as long, keeps its own notes under /run and, on
older systems, does not know ``nosymfollow``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from enum import IntFlag
from pathlib import Path

LOOP_CONTROL = Path("/dev/loop-control")
LOOP_MAJOR = 7
"""Of loop devices (devices.txt of the kernel's documentation)."""

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
_LOOP_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")
"""struct loop_config of linux/loop.h: fd, block size, loop_info64, reserved."""
_ATTEMPTS = 64
"""Others may take the free device that the kernel named, before we do."""

_DETACH, _NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Flag(IntFlag):
    """Mount flags of linux/mount.h."""

    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    NOSYMFOLLOW = 256
    NOATIME = 1024
    BIND = 4096


class LoopUnavailable(OSError):
    """This machine gives no loop devices. The message says what to do."""


def reserve(handle: int, size_bytes: int) -> None:
    """Make the file this long and its blocks its own, so that a disk that fills up later cannot lose what is
    written into it; raises ``OSError`` (ENOSPC) if there is no room. A file system that cannot reserve gets a
    sparse file."""
    try:
        _check(_libc.fallocate64(handle, 0, 0, size_bytes), "fallocate")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.ftruncate(handle, size_bytes)


def mount_image(image: Path, target: Path, flags: Flag, options: str = "") -> None:
    """Mount the ext4 file system in a file. Its loop device goes by itself with the last mount."""
    device, handle = _attach(image)
    try:
        # The device clears itself at its last close, also if this process is killed right here.
        _mount(str(device), target, "ext4", flags, options)
    finally:
        os.close(handle)


def bind(source: Path, target: Path, flags: Flag) -> None:
    """Show a mounted tree a second time, with other flags."""
    _mount(str(source), target, "", Flag.BIND)
    _mount("", target, "", Flag.BIND | Flag.REMOUNT | flags)


def unmount(target: Path) -> None:
    """Take away whatever is mounted there, once or several times; nothing is fine.

    If somebody still uses it, it disappears from here now and for good when they stop.
    """
    while True:
        try:
            _check(_libc.umount2(os.fsencode(target), _NOFOLLOW), "umount", target)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            _check(_libc.umount2(os.fsencode(target), _NOFOLLOW | _DETACH), "umount", target)


def _attach(image: Path) -> tuple[Path, int]:
    """A loop device on the file, opened: it exists as long as it is open or mounted."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        control = _open_device(LOOP_CONTROL)
        try:
            for _ in range(_ATTEMPTS):
                device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
                handle = _open_device(device)
                try:
                    fcntl.ioctl(handle, _LOOP_CONFIGURE, _loop_config(backing, image))
                    return device, handle
                except OSError as error:
                    os.close(handle)
                    if error.errno != errno.EBUSY:
                        raise
        finally:
            os.close(control)
    finally:
        os.close(backing)
    raise LoopUnavailable(errno.EBUSY, "no loop device is free")


def _open_device(device: Path) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LoopUnavailable(
            errno.ENOENT,
            f"{device} is missing: load the kernel's loop module (modprobe loop), "
            "or give the container that the agent runs in its /dev",
        ) from None


def _loop_config(backing: int, image: Path) -> bytes:
    name = os.fsencode(image)[:63]
    return _LOOP_CONFIG.pack(backing, 0, *[0] * 5, 0, 0, 0, _AUTOCLEAR, name, b"", b"", *[0] * 10)


def _mount(source: str, target: Path, kind: str, flags: Flag, options: str = "") -> None:
    result = _libc.mount(
        source.encode() or None, os.fsencode(target), kind.encode() or None, int(flags), options.encode() or None
    )
    _check(result, "mount", target)


def _check(result: int, call: str, path: Path | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", None if path is None else str(path))


def loop_device(path: Path) -> str | None:
    """The device that the file system at ``path`` is on, if there is one and it is an image that is mounted."""
    try:
        device = path.stat().st_dev
    except FileNotFoundError:
        return None
    if os.major(device) != LOOP_MAJOR:
        return None
    return f"/dev/{Path(f'/sys/dev/block/{LOOP_MAJOR}:{os.minor(device)}').resolve().name}"
