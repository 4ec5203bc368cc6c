"""What a node does before it has the agent, with nothing but Python: fetch | trouble FILE | forget.

Settings are the environment's: /etc/rgrid/node.env.
"""

import hashlib
import json
import os
import platform
import random
import sys
import time
import urllib.request
from pathlib import Path

AGENT = Path("/opt/rgrid/agent.pyz")
ENV = Path("/etc/rgrid/node.env")
COPIES = ("/var/lib/cloud", "/run/cloud-init")
LOGS = ("/var/log/cloud-init.log", "/var/log/cloud-init-output.log")
WITHIN_S = 240
"""Before the server is given up for not joining, so that its trouble is told."""
TAIL_BYTES = 3000


def fetch() -> None:
    """The agent for this Python and processor, by its hash, until it is here."""
    target = f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}"
    hashes = dict(each.split(":") for each in os.environ["RGRID_AGENT_HASHES"].split(","))
    if target not in hashes:
        sys.exit(f"there is no agent for {target}, only for {', '.join(sorted(hashes))}")
    url = f"{os.environ['RGRID_GATEWAY_URL']}/node/v1/agent/{hashes[target]}"
    deadline, failures = time.monotonic() + WITHIN_S, 0
    while True:
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                content = answer.read()
            if hashlib.sha256(content).hexdigest() != hashes[target]:
                raise ValueError("what came has another hash")
            break
        except (OSError, ValueError) as error:  # no network yet, a gateway that restarts or is of another release
            sys.stdout.write(f"{url}: {error}\n")
            if time.monotonic() > deadline:
                sys.exit("the agent cannot be had")
            time.sleep(random.uniform(0.2, 1) * min(15, 2**failures))
            failures = min(failures + 1, 10)
    fresh = AGENT.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.chmod(0o755)
    fresh.replace(AGENT)


def trouble(log: str) -> None:
    """Let the operator know, in the node's events, why this server will not be a node."""
    token = os.environ.get("RGRID_JOIN_TOKEN", "")
    text = Path(log).read_bytes()[-TAIL_BYTES:].decode(errors="replace").replace(token or "\0", "…")
    body = json.dumps({"token": token, "message": "".join(c for c in text if c == "\n" or c.isprintable())})
    request = urllib.request.Request(
        f"{os.environ['RGRID_GATEWAY_URL']}/node/v1/trouble",
        body.encode(),
        {"content-type": "application/json"},
    )
    for pause_s in (1, 3, 9, 0):
        try:
            urllib.request.urlopen(request, timeout=20).close()
            return
        except OSError as error:
            sys.stdout.write(f"not told to the gateway: {error}\n")
            time.sleep(pause_s)


def forget() -> None:
    """This node has joined: the token is used up, and no copy of it stays; cloud-init has no more to do, ever."""
    token = os.environ.get("RGRID_JOIN_TOKEN", "").encode()
    Path("/etc/cloud/cloud-init.disabled").touch()
    if not token:
        return
    found = [path for folder in COPIES for path in Path(folder).rglob("*")]
    for path in [*found, *map(Path, LOGS)]:
        if not path.is_file() or path.is_symlink():
            continue
        try:
            if token in path.read_bytes():
                path.unlink()
        except FileNotFoundError:
            continue
    for folder in COPIES:  # encoded ones
        for path in (*Path(folder).rglob("user-data.txt*"), *Path(folder).rglob("obj.pkl")):
            path.unlink(missing_ok=True)
    fresh = ENV.with_suffix(".new")
    fresh.touch(mode=0o600)
    lines = ENV.read_text().splitlines(keepends=True)
    fresh.write_text("".join(line for line in lines if not line.startswith("RGRID_JOIN_TOKEN=")))
    fresh.replace(ENV)


if __name__ == "__main__":
    {"fetch": fetch, "trouble": trouble, "forget": forget}[sys.argv[1]](*sys.argv[2:])
