"""The node agent's process: start checks, joining, signals, and one session after the other.

Everything that this program is told comes with its ``AgentConfig``; what it finds on the machine it looks up
here. It ends with one line on standard error when it cannot work.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Network

import httpx
import structlog

from functions.egress import EgressPolicy
from nodes.agent.adoption import Plan, plan
from nodes.agent.attempt import Tools
from nodes.agent.config import AgentConfig
from nodes.agent.containers import Engine, EngineUnavailable
from nodes.agent.facts import Fact, agent_version, below_floors, machine_facts
from nodes.agent.failures import AttemptFailed
from nodes.agent.gateway_client import CredentialRevoked, GatewayClient, Refused
from nodes.agent.holds import Holds
from nodes.agent.identity import FolderTaken, Identity, NodeFolder, sha256_hex
from nodes.agent.state import Records, boot_id
from nodes.agent.worker import Worker
from nodes.agent.workspace import check_workspaces, mkfs, remove_leftovers
from nodes.protocol import JoinRequest

log = structlog.get_logger()

JOIN_S = 120.0
"""How long a gateway that does not answer is waited for at the first start."""
STORE_CONNECT_S, STORE_SILENCE_S = 5.0, 60.0
THREADS_FIXED, THREADS_PER_SLOT, THREADS_MOST = 8, 4, 128
"""For what blocks: file systems being made, outputs being hashed, files read and written."""


class StartError(Exception):
    """The agent cannot work here. The message is one line that says what to do."""


async def run(config: AgentConfig, *, ready: Callable[[], None] = lambda: None) -> int:
    """Be a node until told to stop; returns the process's exit status. ``ready`` is called once it has joined.

    The first SIGTERM or SIGINT drains: nothing more is claimed, what runs may end within ``drain_s``. The second
    one hands back at once what runs.
    """
    threads = min(THREADS_MOST, THREADS_FIXED + THREADS_PER_SLOT * config.slots)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, "agent"))
    agent = _Agent(config, ready)
    work = asyncio.create_task(agent.run())
    with _signals(lambda: agent.stop() or work.cancel()):
        try:
            await work
        except asyncio.CancelledError:
            if (here := asyncio.current_task()) is not None and here.cancelling():
                raise
            log.info("stopped before it began")
        except StartError as error:
            sys.stderr.write(" ".join(str(error).split()) + "\n")
            return 1
        except Exception:
            log.exception("the agent broke")
            return 1
    return 0


async def clear(config: AgentConfig) -> None:
    """Leave nothing of an agent that was killed and is not to come back now: containers, networks, mounts.

    What it held stays on record, for the next start to hand back. Raises ``StartError``.
    """
    with _folder(config) as folder:
        try:
            async with _engine(config, folder) as engine:
                for found in await engine.find():
                    await engine.remove(found.container_id)
                await engine.prune_networks()
        except AttemptFailed as failure:
            raise StartError(f"what an agent left cannot be cleared: {failure.message}") from failure
        await asyncio.to_thread(remove_leftovers, folder.work, ())


class _Agent:
    def __init__(self, config: AgentConfig, ready: Callable[[], None]) -> None:
        self._config = config
        self._ready = ready
        self._worker: Worker | None = None
        self._stopping = False

    def stop(self) -> bool:
        """Wind down; sooner when said twice. False if nothing has begun that needs winding down."""
        if self._worker is None:
            return False
        if self._stopping:
            self._worker.hurry()
        self._stopping = True
        self._worker.drain()
        return True

    async def run(self) -> None:
        """Raises ``StartError``."""
        config = self._config
        _check_machine()
        if config.in_clear:
            log.warning("the node's credential crosses the network unencrypted: use https://", url=config.gateway_url)
        with _folder(config) as folder:
            async with _engine(config, folder) as engine:
                facts = await _facts(config, engine, folder)
                while True:
                    identity = await self._join(folder, facts)
                    try:
                        await self._session(folder, engine, identity)
                    except CredentialRevoked:
                        self._worker = None
                        if config.join_token is None:
                            raise StartError(
                                "the gateway does not know this node any more: start it with a new join token "
                                "(RGRID_JOIN_TOKEN)"
                            ) from None
                        log.warning("the gateway does not know this node any more: joining again")
                        folder.forget()
                        continue
                    if config.leave_on_exit:
                        folder.forget()
                    return

    async def _join(self, folder: NodeFolder, facts: dict[str, Fact]) -> Identity:
        config, identity = self._config, folder.identity()
        if identity is not None and (identity.gateway_url == config.gateway_url or config.join_token is None):
            return identity
        if config.join_token is None:
            raise StartError(
                f"{folder.path} belongs to no node yet: give a join token for its first start (RGRID_JOIN_TOKEN)"
            )
        if identity is not None:
            folder.forget()  # another gateway's: it must not see this one's credential
        credential = folder.credential()
        request = JoinRequest(
            token=config.join_token,
            credential_sha256=sha256_hex(credential),
            slots=config.slots,
            version=agent_version()[:64],
            facts=facts,
        )
        client = GatewayClient(config.gateway_url, credential)
        try:
            async with asyncio.timeout(JOIN_S):
                answer = await client.join(request)
        except TimeoutError:
            raise StartError(f"the gateway at {config.gateway_url} does not answer: is it the right URL?") from None
        except Refused as error:
            raise StartError(f"the gateway did not let this node join: {error.detail or error.code}") from None
        finally:
            await client.aclose()
        log.info("joined", node=answer.node_id, slots=config.slots)
        return folder.joined(config.gateway_url, answer)

    async def _session(self, folder: NodeFolder, engine: Engine, identity: Identity) -> None:
        """Work under one identity until drained. Raises ``CredentialRevoked``."""
        config, records = self._config, Records(folder.leases)
        found = await _take_stock(records, engine, folder)
        client = GatewayClient(config.gateway_url, folder.credential())
        async with _storage() as storage:
            try:
                tools = Tools(
                    engine=engine,
                    client=client,
                    holds=Holds(),
                    records=records,
                    work=folder.work,
                    policy=EgressPolicy(allow=config.input_allow),
                    storage=storage,
                )
                self._worker = Worker(
                    tools,
                    slots=config.slots,
                    heartbeat_s=identity.heartbeat_s,
                    lease_s=identity.lease_s,
                    drain_s=config.drain_s,
                    leave_on_exit=config.leave_on_exit,
                )
                log.info("ready", node=identity.node_id, slots=config.slots, adopted=len(found.adopt))
                self._ready()
                await self._worker.run(found.adopt, found.hand_back)
            finally:
                await client.aclose()
        log.info("stopped", node=identity.node_id)


async def _take_stock(records: Records, engine: Engine, folder: NodeFolder) -> Plan:
    """What an earlier agent left, sorted; what nobody can use any more is gone when this returns."""
    try:
        found = plan(records.load(), await engine.find(), boot_id())
        for container_id in found.remove:
            await engine.remove(container_id)
        await engine.prune_networks()
    except AttemptFailed as failure:
        raise StartError(f"what an earlier agent left cannot be cleared: {failure.message}") from failure
    # An attempt that only has to be reported needs no files any more.
    keep = [each.record.key for each in found.adopt if each.record.report is None]
    removed = await asyncio.to_thread(remove_leftovers, folder.work, keep)
    if found.adopt or found.hand_back or found.remove or removed:
        log.info(
            "found an earlier agent's work",
            goes_on=len(found.adopt),
            handed_back=len(found.hand_back),
            containers_removed=len(found.remove),
            folders_removed=removed,
        )
    return found


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise StartError("a node must run as root: it mounts a file system for each job (sudo, or rgrid up as root)")
    if mkfs() is None:
        raise StartError("mkfs.ext4 is missing: install e2fsprogs (sudo apt-get install e2fsprogs)")


@contextmanager
def _folder(config: AgentConfig) -> Iterator[NodeFolder]:
    try:
        folder = NodeFolder(config.node_dir)
    except FolderTaken:
        raise StartError(
            f"another agent runs with {config.node_dir}: stop it, or give this one a folder of its own (RGRID_NODE_DIR)"
        ) from None
    except OSError as error:
        raise StartError(f"the folder {config.node_dir} cannot be used: {error.strerror or error}") from None
    try:
        yield folder
    finally:
        folder.close()


@asynccontextmanager
async def _engine(config: AgentConfig, folder: NodeFolder) -> AsyncIterator[Engine]:
    # By the folder, not by the identity: a node that had to join anew still finds its containers.
    mark = hashlib.sha256(os.fsencode(folder.path.resolve())).hexdigest()[:16]
    deny = [IPv4Network(each) for each in config.job_deny]
    allow = [IPv4Network(each) for each in config.job_allow]
    if allow:
        log.warning("jobs with a network reach private addresses: for development only", allow=config.job_allow)
    try:
        engine = await Engine.open(
            mark,
            host=config.docker_host,
            dns=config.job_dns,
            deny=deny,
            allow=allow,
            spool=folder.path / "images",
            ledger=folder.path / "images.json",
            images_bytes=None if config.images_gib is None else int(config.images_gib * 1024**3),
        )
    except EngineUnavailable as error:
        raise StartError(str(error)) from error
    try:
        yield engine
    finally:
        await engine.aclose()


@asynccontextmanager
async def _storage() -> AsyncIterator[httpx.AsyncClient]:
    """For presigned URLs of our own store: no credential, no proxy, no cookie kept."""
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(STORE_SILENCE_S, connect=STORE_CONNECT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=10),
        headers={"user-agent": "rgrid-node"},
        trust_env=False,
    ) as client:
        yield client


async def _facts(config: AgentConfig, engine: Engine, folder: NodeFolder) -> dict[str, Fact]:
    """What this machine is; raises ``StartError`` if it cannot run jobs, or must not."""
    try:
        await check_workspaces(folder.work)
    except AttemptFailed as failure:
        raise StartError(f"this machine cannot make file systems for jobs: {failure.message}") from failure
    facts = machine_facts(config.name) | engine.facts()
    warnings = below_floors(facts)
    if warnings and config.enforce_floors:
        raise StartError(
            f"this machine is not fit to run jobs: {'; '.join(warnings)} (RGRID_ENFORCE_FLOORS=0 starts it anyway)"
        )
    if warnings:
        log.warning("this machine is below what is advised for jobs of strangers", found=warnings)
    return facts | {"warnings": "; ".join(warnings) or None}


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
