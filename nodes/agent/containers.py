"""The containers of this node's jobs: create, attach, start, wait, stop, remove, find again.

A container's inputs and outputs are mounts; nothing is ever copied into or out of one by the engine (`docker
cp`), nothing is executed in one (`docker exec`). An engine that hangs or goes away fails the attempt in
bounded time, in a way that another node can make good.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Protocol

import structlog

from nodes.agent import kernel_log
from nodes.agent.attached import Attached
from nodes.agent.config import DOCKER_HOST
from nodes.agent.docker_api import DockerApi, DockerError, DockerSilent, DockerSlow
from nodes.agent.facts import Fact
from nodes.agent.failures import AttemptFailed
from nodes.agent.firewall import FirewallUnusable
from nodes.agent.images import Images, PullLimits
from nodes.agent.mounts import loop_device
from nodes.agent.networks import JobNetworks
from nodes.agent.sandbox import (
    ATTEMPT_LABEL,
    JOB_LABEL,
    NODE_LABEL,
    JobNetwork,
    LocalImage,
    container_settings,
)
from nodes.protocol import ErrorCode, Image, JobLease

log = structlog.get_logger()

CREATE_S, START_S, REMOVE_S = 60.0, 120.0, 60.0
KILL_S = 15.0
DRAIN_S = 2.0
"""For reading what a container wrote before it was killed."""
CLEANING_S = 5.0
WAIT_CHECK_S = 60.0
"""A wait that has heard nothing for so long looks for itself."""
ENGINE_BACK_S = 60.0
"""How long an engine may be away while a container runs."""
OOM_MARK_S = 0.1
"""The engine may note an exit before it notes that the kernel ended it for its memory."""
SIGKILLED = 137


class EngineUnavailable(Exception):
    """There is no usable Docker here. The message is one line that says what to do."""


class Folders(Protocol):
    """What a container gets of an attempt's workspace, as paths on this machine."""

    @property
    def in_dir(self) -> Path: ...
    @property
    def out_dir(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class Exited:
    """``code`` is 128 + the signal's number for a process that a signal ended."""

    code: int
    oom_killed: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A container of this node, as its labels tell."""

    container_id: str
    job_id: str
    attempt: int
    running: bool


class Engine:
    """Docker on this machine. ``open`` it, ``aclose`` it. Calls raise ``AttemptFailed``."""

    def __init__(
        self, api: DockerApi, node: str, *, about: dict[str, Any], info: dict[str, Any], images: Images,
        networks: JobNetworks,
    ) -> None:  # fmt: skip
        self._api = api
        self._node = node
        self._about = about
        self._info = info
        self._images = images
        self._networks = networks
        self._network_of: dict[str, str] = {}
        self._attached: dict[str, Attached] = {}
        self._cleaning: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        node: str,
        *,
        host: str = DOCKER_HOST,
        dns: Sequence[str] = (),
        deny: Sequence[IPv4Network] = (),
        allow: Sequence[IPv4Network] = (),
        limits: PullLimits | None = None,
        spool: Path | None = None,
        ledger: Path | None = None,
        images_bytes: int | None = None,
    ) -> Engine:
        """``node`` marks this node's containers and must be the same after a restart. ``dns``: name servers
        for jobs with a network; ``deny``: further addresses that they must not reach; ``allow``: private ones that
        they may, for development; ``spool``: a folder of its own for saved images; ``ledger``: the file that lists
        what images were brought here, at most ``images_bytes`` of them. Raises ``EngineUnavailable``."""
        if not host.startswith("unix://"):
            # Jobs get directories of this machine mounted: the engine has to be on it.
            raise EngineUnavailable(f"DOCKER_HOST must name a socket of this machine (unix://…), not {host}")
        api = DockerApi(host.removeprefix("unix://"))
        try:
            about = await api.connect()
            info = await api.call("GET", "/info")
        except BaseException as error:
            await api.aclose()
            if isinstance(error, DockerSilent):
                message = f"Docker does not answer at {api.socket}: start it (sudo systemctl start docker) ({error})"
                raise EngineUnavailable(message) from error
            if isinstance(error, DockerError):
                raise EngineUnavailable(f"Docker at {api.socket} refuses: {error}") from error
            raise
        root = str(info.get("DockerRootDir", "/var/lib/docker"))
        images = Images(api, root, limits, spool, ledger=ledger, most_bytes=images_bytes)
        networks = JobNetworks(api, node, dns=dns, deny=deny, allow=allow)
        return cls(api, node, about=about, info=info, images=images, networks=networks)

    async def aclose(self) -> None:
        """Containers stay as they are."""
        if self._cleaning:
            _, late = await asyncio.wait(set(self._cleaning), timeout=CLEANING_S)
            for task in late:
                task.cancel()
        for attached in list(self._attached.values()):
            await attached.aclose()
        await self._images.aclose()
        try:
            await self._networks.aclose()
        except (DockerError, DockerSilent, FirewallUnusable) as error:
            log.warning("firewall rules not removed", error=str(error)[:300])
        await self._api.aclose()

    @property
    def cleaning(self) -> int:
        """How many removals are under way that nobody waits for."""
        return len(self._cleaning)

    def facts(self) -> dict[str, Fact]:
        """What the engine is; beside what ``machine_facts`` tells."""
        components = {each["Name"]: each["Version"] for each in self._about.get("Components") or []}
        security = [str(option) for option in self._info.get("SecurityOptions") or []]
        return {
            "docker": str(self._about.get("Version")),
            "runc": components.get("runc"),
            "containerd": components.get("containerd"),
            "storage_driver": self._info.get("Driver"),
            "runtimes": ",".join(sorted(self._info.get("Runtimes") or {})),
            "apparmor": any("name=apparmor" in option for option in security),
            "userns": any("name=userns" in option for option in security),
        }

    async def ensure_image(self, image: Image, holder: Hashable | None = None) -> LocalImage:
        """Find or pull it; several who ask for one share the pull. It stays at least until its ``holder`` lets go."""
        return await self._images.ensure(image, holder)

    def let_go(self, holder: Hashable) -> None:
        self._images.let_go(holder)

    async def create(self, lease: JobLease, image_id: str, workspace: Folders) -> str:
        """The id of a container that has all it needs and has not started. ``image_id`` is of
        ``ensure_image``."""
        with _engine_trouble("make the container"):
            image = await self._images.by_id(image_id)
            network = await self._network(lease) if lease.network else None
            name = f"rgrid-{lease.job_id}-{lease.attempt}-{secrets.token_hex(3)}"
            try:
                settings = container_settings(
                    lease,
                    image,
                    node=self._node,
                    in_dir=workspace.in_dir,
                    out_dir=workspace.out_dir,
                    device=loop_device(workspace.out_dir),
                    network=network,
                )
                answer = await self._api.call(
                    "POST", "/containers/create", query={"name": name}, body=settings, timeout_s=CREATE_S
                )
            except BaseException as error:
                refused = isinstance(error, DockerError | AttemptFailed)
                self._clean_up(None if refused else name, None if network is None else network.id)
                raise
        container_id = str(answer["Id"])
        if network is not None:
            self._network_of[container_id] = network.id
        return container_id

    async def attach(self, container_id: str) -> AsyncIterator[bytes]:
        """What it writes from now on; call it before ``start`` to have all. See ``Attached``."""
        with _engine_trouble("read the container's output"):
            query = {"stream": 1, "stdout": 1, "stderr": 1}
            answer = await self._api.open("POST", f"/containers/{container_id}/attach", query=query)
        attached = self._attached[container_id] = Attached(answer)
        return attached

    async def variables(self, container_id: str) -> dict[str, str]:
        """The environment that the container was made with."""
        with _engine_trouble("look at the container"):
            answer = await self._api.call("GET", f"/containers/{container_id}/json")
        return dict(pair.partition("=")[::2] for pair in answer["Config"]["Env"] or ())

    async def start(self, container_id: str) -> None:
        with _engine_trouble("start the container"):
            await self._api.call("POST", f"/containers/{container_id}/start", timeout_s=START_S)

    async def wait(self, container_id: str) -> Exited:
        """Return when it has ended, however long that takes."""
        away = False
        while True:
            try:
                await self._api.call("POST", f"/containers/{container_id}/wait", timeout_s=WAIT_CHECK_S)
            except DockerSlow:
                pass
            except DockerSilent:
                away = True
            except DockerError as error:
                if error.status != 404:
                    log.warning("wait refused", error=str(error)[:300])
                    await asyncio.sleep(1)
            state = await self._state(container_id)
            if state["Running"]:
                away = False
                continue
            if away:
                # It was the engine's end, or may have been: what the process made of that is not its outcome.
                raise AttemptFailed(ErrorCode.INTERNAL, "the node's Docker restarted while the job ran")
            if state["ExitCode"] == SIGKILLED and not state["OOMKilled"]:
                await asyncio.sleep(OOM_MARK_S)
                state = await self._state(container_id)
            return Exited(code=int(state["ExitCode"]), oom_killed=await self._was_oom_killed(container_id, state))

    async def _was_oom_killed(self, container_id: str, state: Mapping[str, Any]) -> bool:
        if state["OOMKilled"] or state["ExitCode"] == 0:  # which has ended well, whatever befell a child
            return bool(state["OOMKilled"])
        return await asyncio.to_thread(kernel_log.oom_killed, container_id)

    async def stop(self, container_id: str, grace_s: float) -> None:
        """SIGTERM, and SIGKILL to all of it when the grace is over; returns when it has ended."""
        grace = max(0, math.ceil(grace_s))
        with _engine_trouble("stop the container"):
            stopping = asyncio.create_task(self._end("stop", container_id, {"t": grace}, grace + KILL_S))
            try:
                await asyncio.wait({stopping}, timeout=grace + DRAIN_S)
                if not stopping.done():
                    await self._detach(container_id)
                await stopping
            finally:
                stopping.cancel()

    async def kill(self, container_id: str) -> None:
        """End all of its processes now; what it has written and nobody has read is lost. A container that has
        ended, or is gone, is fine."""
        await self._detach(container_id)
        with _engine_trouble("kill the container"):
            await self._end("kill", container_id, {"signal": "KILL"}, KILL_S)

    async def _detach(self, container_id: str) -> None:
        """Stop reading its output. Docker does not note a container's end, nor answer about it, before its
        reader has taken all that was written; one who waits for a slow gateway would hold it up."""
        if (attached := self._attached.pop(container_id, None)) is not None:
            await attached.aclose()

    async def remove(self, container_id: str) -> None:
        """Leave nothing of it: container, volumes, network, attached stream. May be repeated."""
        await self._detach(container_id)
        with _engine_trouble("remove the container"):
            await self._delete(container_id)
        # Docker takes longer for the network than for the container: the outcome does not wait for it.
        self._clean_up(None, self._network_of.pop(container_id, None))

    async def find(self) -> list[Found]:
        """All containers of this node, running or not."""
        with _engine_trouble("list the containers"):
            query = {"all": 1, "filters": {"label": [f"{NODE_LABEL}={self._node}"]}}
            listed = await self._api.call("GET", "/containers/json", query=query)
        found = []
        for each in listed:
            labels, container_id = each["Labels"], str(each["Id"])
            for network in each["NetworkSettings"]["Networks"].values():
                if each["HostConfig"]["NetworkMode"] != "none":
                    self._network_of[container_id] = str(network["NetworkID"])
            attempt = labels.get(ATTEMPT_LABEL, "")
            found.append(
                Found(
                    container_id=container_id,
                    job_id=labels.get(JOB_LABEL, ""),
                    attempt=int(attempt) if attempt.isdecimal() else 0,
                    running=each["State"] in ("running", "paused"),
                )
            )
        return found

    async def prune_networks(self) -> None:
        """Remove what an agent that was killed left beside its containers. For the start."""
        with _engine_trouble("remove old networks"):
            await self._networks.prune()

    async def _network(self, lease: JobLease) -> JobNetwork:
        try:
            return await self._networks.create(lease.job_id)
        except FirewallUnusable as error:
            log.error("network refused", error=str(error)[:500])
            raise AttemptFailed(
                ErrorCode.INTERNAL, f"this node cannot run jobs with a network safely: {error}"[:1000]
            ) from error

    async def _state(self, container_id: str) -> dict[str, Any]:
        """The container's State; an engine that is away is waited for."""
        try:
            async with asyncio.timeout(ENGINE_BACK_S):
                while True:
                    try:
                        answer = await self._api.call("GET", f"/containers/{container_id}/json")
                        state: dict[str, Any] = answer["State"]
                        return state
                    except DockerSilent:
                        await asyncio.sleep(0.5)
        except TimeoutError:
            raise AttemptFailed(ErrorCode.INTERNAL, "the node's Docker does not answer") from None
        except DockerError as error:
            if error.status == 404:
                raise AttemptFailed(ErrorCode.INTERNAL, "the job's container was removed by somebody") from error
            raise AttemptFailed(ErrorCode.INTERNAL, f"the node's Docker failed: {error}"[:1000]) from error

    async def _end(self, how: str, container_id: str, query: dict[str, Any], timeout_s: float) -> None:
        try:
            await self._api.call("POST", f"/containers/{container_id}/{how}", query=query, timeout_s=timeout_s)
        except DockerError as error:
            if error.status not in (404, 409):  # gone; not running
                raise

    async def _delete(self, container: str) -> None:
        """By id or name."""
        async with asyncio.timeout(REMOVE_S):
            while True:
                try:
                    await self._api.call(
                        "DELETE", f"/containers/{container}", query={"force": 1, "v": 1}, timeout_s=REMOVE_S
                    )
                    return
                except DockerError as error:
                    if error.status == 404:
                        return
                    if error.status not in (409, 500):
                        raise
                    # Somebody removes it already, or a mount of it is still busy.
                    log.warning("container not removed yet", error=error.message[:300])
                    await asyncio.sleep(0.2)

    def _clean_up(self, name: str | None, network_id: str | None) -> None:
        """Remove a network, and a container that a failed ``create`` may have made or be about to make."""
        if name is None and network_id is None:
            return
        task = asyncio.get_running_loop().create_task(self._remove_later(name, network_id))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _remove_later(self, name: str | None, network_id: str | None) -> None:
        try:
            if name is not None:
                await asyncio.sleep(1)
                await self._delete(name)
            if network_id is not None:
                await self._networks.remove(network_id)
        except (DockerError, DockerSilent, TimeoutError) as error:
            log.warning("left for the next start", container=name, error=str(error)[:300])


@contextmanager
def _engine_trouble(what: str) -> Iterator[None]:
    """Trouble with the engine is the node's, not the job's: another attempt may well succeed."""
    try:
        yield
    except DockerError as error:
        raise AttemptFailed(
            ErrorCode.INTERNAL, f"the node's Docker could not {what}: {error.message}"[:1000]
        ) from error
    except (DockerSilent, FirewallUnusable, TimeoutError) as error:
        why = str(error) or "it takes too long"
        raise AttemptFailed(ErrorCode.INTERNAL, f"the node's Docker could not {what}: {why}"[:1000]) from error
