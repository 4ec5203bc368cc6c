"""An internet for tests: a network namespace behind this machine that answers at every address that matters,
public ones and those that no job may reach. All of it answers; what does not come through was stopped."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

PUBLIC, GATEWAY = "11.22.33.44", "11.22.33.1"
FORBIDDEN = {
    "metadata": "169.254.169.254",
    "ten": "10.77.0.1",
    "carrier": "100.64.7.7",
    "home": "192.168.77.1",
    "private": "172.16.77.1",
    "benchmark": "198.19.255.254",
    "azure": "168.63.129.16",
    "multicast": "224.0.0.251",
}
PORT, SMTP = 8080, 25
"""Listened at on every address."""

_SERVER = """
import selectors, socket, sys
waiting = selectors.DefaultSelector()
for port in (8080, 25):
    listener = socket.create_server(("0.0.0.0", port), backlog=64)
    waiting.register(listener, selectors.EVENT_READ)
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("0.0.0.0", 53))
waiting.register(names, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in waiting.select():
        if key.fileobj is names:  # whatever is asked: an address that must not be reached
            query, peer = names.recvfrom(512)
            is_v4 = query[-4:-2] == b"\\0\\1"
            header = query[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if is_v4 else b"\\0\\0") + b"\\0\\0\\0\\0"
            answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton("10.77.0.1") if is_v4 else b""
            names.sendto(header + query[12:] + answer, peer)
        else:
            connection, _ = key.fileobj.accept()
            connection.sendall(b"hello\\n")
            connection.close()
"""


class Internet:
    def __init__(self) -> None:
        self._name = f"rgt{secrets.token_hex(4)}"
        _ip("netns", "add", self._name)
        inside = ("-n", self._name)
        _ip("link", "add", self._name, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        _ip("address", "add", f"{GATEWAY}/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        _ip(*inside, "address", "add", f"{PUBLIC}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "route", "add", "default", "via", GATEWAY)
        for name, address in FORBIDDEN.items():
            if name != "multicast":
                _ip(*inside, "address", "add", f"{address}/32", "dev", "lo")
                _ip("route", "replace", f"{address}/32", "via", PUBLIC)
        self._server = subprocess.Popen(
            ["ip", "netns", "exec", self._name, sys.executable, "-I", "-c", _SERVER], stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def received_bytes(self) -> int:
        """How much this machine has sent there."""
        return int(Path(f"/sys/class/net/{self._name}/statistics/tx_bytes").read_text())

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()
        _ip("link", "delete", self._name)  # its routes go with it
        _ip("netns", "delete", self._name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
