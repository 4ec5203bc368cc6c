"""What a service tells systemd, where that is what started it (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def ready() -> None:
    """This node has joined and takes work. Nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.settimeout(5)
        notifier.sendto(b"READY=1", address)
