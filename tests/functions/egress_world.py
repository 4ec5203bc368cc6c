"""A small internet in network and mount namespaces of its own: name servers on UDP and TCP that lie, and servers at public
and private addresses. Prints what came of calling each name, as JSON: ``unshare -rmn python -m tests.functions.egress_world DIR``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from functions.egress import EgressFailed, EgressPolicy, EgressRefused, check_url, exchange, open_download
from tests.receivers import Authority, read_request

PUBLIC, ADDRESSES = "8.8.8.8", ("8.8.8.8", "10.0.0.1", "169.254.169.254")
A, CNAME, AAAA = 1, 5, 28
TRUNCATED, NO_SUCH_NAME = 0x0200, 3

MANY = [f"8.8.{n // 250}.{n % 250 + 1}" for n in range(500)]
CHAIN = {f"c{n}.chain.test": [(CNAME, f"c{n + 1}.chain.test")] for n in range(50)}
RECORDS: dict[str, list[tuple[int, str]]] = {
    "public.test": [(A, PUBLIC)],
    "redirects.test": [(A, PUBLIC)],
    "private.test": [(A, "127.0.0.1")],
    "metadata.test": [(A, "169.254.169.254")],
    "mixed.test": [(A, PUBLIC), (A, "10.0.0.1")],
    "mixed-families.test": [(A, PUBLIC), (AAAA, "fd00::1")],
    "mapped.test": [(AAAA, "::ffff:8.8.8.8")],
    "translated.test": [(AAAA, "64:ff9b::808:808")],
    "alias.test": [(CNAME, "db.inside.test"), (A, "10.0.0.1")],
    "many.test": [(A, address) for address in MANY],
    "empty.test": [],
}
HANGS, NOBODY = "hangs.test", "nobody.test"
LATER = {"moves.test": (PUBLIC, "10.0.0.1"), "flips.test": (PUBLIC, "169.254.169.254")}
"""Names whose answer is another one from the second look-up on, with a time to live of 0."""

asked: Counter[str] = Counter()
connected: Counter[str] = Counter()


def answer(query: bytes, *, udp: bool) -> bytes | None:
    """What the name server says; None: nothing."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, (kind,), question = ".".join(labels).lower(), struct.unpack_from("!H", query, at + 1), query[12 : at + 5]
    asked[f"{name} {'udp' if udp else 'tcp'} {kind}"] += 1
    if name == HANGS:
        return None
    if name in LATER:
        found = [(A, LATER[name][0 if asked[f"{name} udp {A}"] <= 1 else 1])]
    elif name.endswith(".chain.test"):
        found = [*chain_from(name), (A, "10.0.0.1")]
    elif name in RECORDS:
        found = RECORDS[name]
    else:
        return query[:2] + struct.pack("!HHHHH", 0x8180 | NO_SUCH_NAME, 1, 0, 0, 0) + question
    records, owner = b"", name
    count = 0
    for record, value in found:
        if record in (CNAME, kind):
            data = encoded(value) if record == CNAME else packed(value)
            records += encoded(owner) + struct.pack("!HHIH", record, 1, 0, len(data)) + data
            count += 1
        owner = value if record == CNAME else owner
    if udp and len(records) > 400:
        return query[:2] + struct.pack("!HHHHH", 0x8180 | TRUNCATED, 1, 0, 0, 0) + question
    return query[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0) + question + records


def chain_from(name: str) -> list[tuple[int, str]]:
    found = []
    while name in CHAIN:
        found += CHAIN[name]
        name = CHAIN[name][0][1]
    return found


def encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def packed(address: str) -> bytes:
    return IPv6Address(address).packed if ":" in address else IPv4Address(address).packed


def serve_names_on_udp(server: socket.socket) -> None:
    while True:
        query, client = server.recvfrom(4096)
        if (said := answer(query, udp=True)) is not None:
            server.sendto(said, client)


def serve_names_on_tcp(server: socket.socket) -> None:
    while True:
        client, _ = server.accept()
        with client, suppress(OSError):
            while len(size := client.recv(2)) == 2:
                if (said := answer(client.recv(int.from_bytes(size)), udp=False)) is not None:
                    client.sendall(struct.pack("!H", len(said)) + said)


def prepare(folder: Path) -> None:
    """Addresses, and files that tell the C library whom to ask; nobody outside of these namespaces sees any of it."""
    for command in ("ip link set lo up", *(f"ip addr add {address}/32 dev lo" for address in ADDRESSES)):
        subprocess.run(command.split(), check=True)
    for path, text in (
        ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n"),
        ("/etc/nsswitch.conf", "hosts: files dns\n"),
    ):
        (folder / Path(path).name).write_text(text)
        subprocess.run(["mount", "--bind", str(folder / Path(path).name), os.path.realpath(path)], check=True)
    for kind, serve in ((socket.SOCK_DGRAM, serve_names_on_udp), (socket.SOCK_STREAM, serve_names_on_tcp)):
        server = socket.socket(socket.AF_INET, kind)
        server.bind(("127.0.0.1", 53))
        if kind == socket.SOCK_STREAM:
            server.listen()
        threading.Thread(target=serve, args=(server,), daemon=True).start()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connected[writer.get_extra_info("sockname")[0]] += 1
    with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
        _, headers, _ = await read_request(reader)
        if headers["host"] == "redirects.test":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: https://metadata.test/\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
    writer.close()


async def call(policy: EgressPolicy, name: str, *, download: bool = False) -> dict[str, object]:
    began_s, before = time.monotonic(), dict(connected)
    try:
        if download:
            async with open_download(policy, f"https://{name}/") as opened:
                said = f"read {opened.url}"
        else:
            found = await exchange(policy, "POST", f"https://{name}/", {}, b"{}")
            said = f"{found.status} from {found.address}"
    except EgressRefused as error:
        said = f"refused: {error.message}"
    except EgressFailed as error:
        said = f"failed: {error.kind}"
    reached = sorted(address for address, times in connected.items() if times > before.get(address, 0))
    return {"said": said, "reached": reached, "seconds": time.monotonic() - began_s}


async def main(folder: Path) -> dict[str, object]:
    authority = Authority(folder)
    policy = EgressPolicy(ca_file=authority.ca_file)
    names = [*RECORDS, *LATER, "c0.chain.test", HANGS, NOBODY]
    contexts = {name: authority.server(name) for name in names}
    listening = authority.server("nobody-in-particular.test")

    def by_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = contexts.get(name or "", listening)

    listening.sni_callback = by_name
    server = await asyncio.start_server(handle, "0.0.0.0", 443, ssl=listening)
    found: dict[str, object] = {}
    for name in names:
        check_url(f"https://{name}/", policy)  # what registration sees of it
        found[name] = await call(policy, name)
        if name in LATER:
            found[f"{name} later"] = await call(policy, name)
    found["download redirects.test"] = await call(policy, "redirects.test", download=True)
    server.close()
    return found | {"asked": asked, "connected": connected}


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
