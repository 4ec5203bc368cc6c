"""One attempt of a job: image → workspace → inputs → container → outputs → report.

Whatever happens to it, it ends in one of four ways: a report, a lease handed back, silence because the lease
is lost, or a file in the node's folder that the next start goes on from. Nothing of it stays on the machine
but in the last case.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import structlog

from functions.egress import EgressPolicy
from nodes.agent.adoption import Adopted
from nodes.agent.containers import Engine
from nodes.agent.endings import error_of
from nodes.agent.failures import AttemptFailed
from nodes.agent.gateway_client import CredentialRevoked, GatewayClient, LeaseLost
from nodes.agent.holds import Hold, Holds, Interrupt
from nodes.agent.inputs import fetch_inputs
from nodes.agent.logs import LogShipper
from nodes.agent.masking import Mask
from nodes.agent.outputs import Collection, collect
from nodes.agent.reports import deliver, hand_back
from nodes.agent.state import Ended, Record, Records, boot_id, without_secrets
from nodes.agent.tasks import cancel_all
from nodes.agent.uploads import upload_all
from nodes.agent.wishes import read_wish
from nodes.agent.workspace import Workspace
from nodes.protocol import AttemptError, AttemptReport, ErrorCode, JobLease, Stage

log = structlog.get_logger()
T = TypeVar("T")

LOG_END_S = 5.0
"""For reading what a dead container's pipe still holds."""
LOG_FLUSH_S = 10.0
"""What a log that cannot be shipped may delay the outcome by."""
LOG_HURRY_S = 0.5


class Interrupted(Exception):
    """``hold.interrupt`` says why."""


class TimeUp(Exception):
    """The attempt's timeout is over."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every attempt of this node works with. ``storage`` is for presigned URLs; it carries no
    credential."""

    engine: Engine
    client: GatewayClient
    holds: Holds
    records: Records
    work: Path
    policy: EgressPolicy
    storage: httpx.AsyncClient


class Attempt:
    """Runs once. ``adopted`` is given for work that an earlier agent began."""

    def __init__(self, tools: Tools, lease: JobLease, hold: Hold, adopted: Adopted | None = None) -> None:
        self._tools = tools
        self._lease = lease
        self._hold = hold
        self._adopted = adopted
        self._record = (
            Record(lease=without_secrets(lease), boot_id=boot_id(), received_s=hold.received_s)
            if adopted is None
            else adopted.record
        )
        self._container = None if adopted is None else adopted.container_id
        self._workspace: Workspace | None = None
        self._logs: LogShipper | None = None
        self.node_failed = False
        """It ended because of this machine, not because of its job."""
        self._log = log.bind(job_id=lease.job_id, attempt=lease.attempt)

    async def run(self) -> None:
        """Never fails. Cancelling it leaves everything as it is, for the next start to find."""
        try:
            report = await self._work()
            settled = await self._settle(report)
        except CredentialRevoked:
            self._hold.interrupt_with(Interrupt.LOST)
            await self._kill()
            settled = True
        # From here on nothing is renewed: the job is over, elsewhere, or comes back by itself.
        self._tools.holds.remove(self._hold)
        await self._put_away()
        if settled:
            self._tools.records.forget(self._record.key)

    async def _work(self) -> AttemptReport | None:
        """What to report; None when there is nothing to say to the gateway or the job goes back to it."""
        try:
            return await self._stages()
        except Interrupted:
            pass
        except LeaseLost:
            self._hold.interrupt_with(Interrupt.LOST)
        except AttemptFailed as failure:
            self.node_failed = failure.code is ErrorCode.INTERNAL
            await self._kill()
            ended = self._record.ended
            return self._report(
                "failed",
                _error(failure),
                exit_code=failure.exit_code if ended is None else ended.code,
                rejected=failure.rejected,
            )
        except CredentialRevoked:
            raise
        except Exception as error:
            self._log.exception("attempt broke")
            self.node_failed = True
            await self._kill()
            broken = AttemptError(
                code=ErrorCode.INTERNAL, message=f"the node failed at it: {type(error).__name__}"
            )
            return self._report("failed", broken)
        if self._hold.interrupt is Interrupt.CANCEL:
            try:
                await self._stop()
            except Interrupted:
                return None
            return self._report("cancelled")
        await self._kill()
        return None

    async def _stages(self) -> AttemptReport:
        if self._record.report is not None:
            return self._record.report
        ended = self._record.ended
        if ended is None:
            await (self._start() if self._adopted is None else self._resume(self._adopted))
            ended = await self._watch()
        else:
            await self._reopen()
        await self._remove()
        error = error_of(ended, self._lease)
        if error is not None:
            # The log is shipped in any case; what a failed attempt has written to /out is nobody's result.
            error, retry_after_s = await self._wish(error)
            return self._report(
                "timed_out" if ended.timed_out else "failed",
                error,
                exit_code=ended.code,
                retry_after_s=retry_after_s,
            )
        return await self._collect()

    async def _start(self) -> None:
        """Everything up to a running container."""
        lease, engine, hold = self._lease, self._tools.engine, self._hold
        self._save()
        hold.stamp(Stage.PULLING)
        image = await self._unless_interrupted(engine.ensure_image(lease.image, self._record.key))
        hold.stamp(Stage.FETCHING)
        self._workspace = await Workspace.create(
            self._tools.work, lease.job_id, lease.attempt, lease.resources.disk_bytes, lease.user
        )
        await self._unless_interrupted(
            fetch_inputs(self._workspace, lease, self._tools.policy, self._tools.storage)
        )
        # These are short and leave something behind when they are cut: an interrupt waits for them.
        self._container = await engine.create(lease, image.id, self._workspace)
        await self._attach_log(resume=False)
        if hold.interrupt:
            raise Interrupted
        await engine.start(self._container)
        hold.stamp(Stage.STARTED)
        self._lease = self._record.lease
        self._save(image_digest=image.digest)
        self._log.info("job started", function=lease.function, version=lease.version, ms=hold.age_ms())

    async def _resume(self, adopted: Adopted) -> None:
        await self._reopen()
        self._hold.timeline.setdefault(Stage.STARTED, self._hold.age_ms())
        if adopted.running:
            await self._attach_log(resume=True)
        self._log.info("job adopted", running=adopted.running)

    async def _reopen(self) -> None:
        try:
            self._workspace = await Workspace.reopen(
                self._tools.work, self._lease.job_id, self._lease.attempt
            )
        except Exception as error:
            # The files are gone: nothing that the job did, so it is not its failure.
            self._log.warning("workspace gone", error=str(error)[:300])
            self._hold.interrupt_with(Interrupt.RELEASE)
            raise Interrupted from None

    async def _attach_log(self, *, resume: bool) -> None:
        assert self._container is not None
        job_id, attempt = self._lease.job_id, self._lease.attempt

        async def send(position: int, chunk: bytes) -> int:
            return await self._tools.client.ship_log(job_id, self._hold.token, attempt, position, chunk)

        self._logs = LogShipper(
            await self._tools.engine.attach(self._container),
            send,
            mask=Mask((await self._secrets()).values()),
            on_progress=self._hold.set_progress,
            on_lost=lambda: self._hold.interrupt_with(Interrupt.LOST),
            resume=resume,
        )
        self._logs.start()

    async def _secrets(self) -> dict[str, str]:
        """What must not stand in the log. An agent that was started since asks the container for it."""
        secrets = self._lease.secrets
        if not secrets or any(secrets.values()):
            return secrets
        assert self._container is not None
        try:
            variables = await self._tools.engine.variables(self._container)
        except AttemptFailed as failure:
            self._log.warning("secrets not masked in the log", error=failure.message)
            return {}
        return {name: variables.get(name, "") for name in secrets}

    async def _watch(self) -> Ended:
        """Wait for the container's end, or bring it about when the time is up."""
        assert self._container is not None
        engine = self._tools.engine
        started_s = self._hold.received_s + self._hold.timeline[Stage.STARTED] / 1000
        timed_out = False
        try:
            exited = await self._unless_interrupted(
                engine.wait(self._container), until_s=started_s + self._lease.timeout_s
            )
        except TimeUp:
            timed_out = True
            await self._stop()
            exited = await engine.wait(self._container)
        ended = Ended(code=exited.code, oom_killed=exited.oom_killed, timed_out=timed_out)
        self._hold.stamp(Stage.EXITED)
        self._save(ended=ended)
        if self._logs is not None:
            await self._unless_interrupted(self._logs.read_to_end(LOG_END_S))
        return ended

    async def _wish(self, error: AttemptError) -> tuple[AttemptError, float | None]:
        """What a job that ended itself says about its next attempt, in seconds; its reason goes with the error."""
        assert self._workspace is not None
        if error.code is not ErrorCode.EXIT_NONZERO:
            return error, None
        wish = await self._unless_interrupted(read_wish(self._workspace))
        message = f"{error.message}{wish.remark}"[:4096]
        return error.model_copy(update={"message": message}), wish.after_s

    async def _collect(self) -> AttemptReport:
        assert self._workspace is not None
        self._hold.stamp(Stage.COLLECTING)
        collection: Collection = await self._unless_interrupted(collect(self._workspace, self._lease))
        artifacts = await self._unless_interrupted(
            upload_all(self._tools.client, self._tools.storage, self._lease, collection.files)
        )
        self._hold.stamp(Stage.UPLOADED)
        return self._report(
            "succeeded",
            exit_code=0,
            result=collection.result,
            artifacts=artifacts,
            rejected=collection.rejected,
        )

    async def _settle(self, report: AttemptReport | None) -> bool:
        """Tell the gateway. False: it could not be told, the next start has to."""
        if self._hold.interrupt is Interrupt.LOST:
            self._log.warning("job stopped: its lease is lost")
            return True
        if report is None:
            await self._flush_log()
            return await hand_back(self._tools.client, self._hold, "the node stops")
        self._hold.ended = True
        try:
            self._save(report=report)
        except OSError as error:
            self._log.error("lease file not written", error=str(error))
        await self._flush_log()
        return await deliver(self._tools.client, self._hold, report)

    async def _flush_log(self) -> None:
        """Ship what the container has written; a gateway that does not take it delays the outcome by a
        bounded time."""
        if self._logs is None:
            return
        try:
            if Stage.STARTED in self._hold.timeline:
                await self._unless_interrupted(self._logs.read_to_end(LOG_END_S), at_least=Interrupt.RELEASE)
            await self._unless_interrupted(self._logs.flush(LOG_FLUSH_S), at_least=Interrupt.RELEASE)
        except Interrupted:
            if self._hold.interrupt is Interrupt.RELEASE:
                await self._logs.flush(LOG_HURRY_S)

    async def _stop(self) -> None:
        """End the container within its grace; at once when the node must go or the lease is lost
        meanwhile."""
        if self._container is None or self._record.ended is not None:
            return
        try:
            await self._unless_interrupted(
                self._tools.engine.stop(self._container, self._lease.grace_s), at_least=Interrupt.RELEASE
            )
        except Interrupted:
            await self._kill()
            raise

    async def _kill(self) -> None:
        if self._container is not None and self._record.ended is None:
            try:
                await self._tools.engine.kill(self._container)
            except Exception as error:
                self._log.error("container not killed", error=str(error)[:300])

    async def _remove(self) -> None:
        if self._container is not None:
            await self._tools.engine.remove(self._container)
            self._container = None

    async def _put_away(self) -> None:
        """Leave nothing behind. What cannot be removed now is found at the next start."""
        try:
            if self._logs is not None:
                await self._logs.close()
            await self._remove()
        except Exception as error:
            self._log.error("container not removed", error=str(error)[:300])
        self._tools.engine.let_go(self._record.key)
        try:
            if self._workspace is not None:
                await self._workspace.destroy()
        except Exception as error:
            self._log.error("workspace not removed", error=str(error)[:300])

    def _report(
        self,
        status: Literal["succeeded", "failed", "timed_out", "cancelled"],
        error: AttemptError | None = None,
        **fields: Any,
    ) -> AttemptReport:
        return AttemptReport(
            token=self._hold.token,
            status=status,
            error=error,
            timeline=dict(self._hold.timeline),
            image_digest=self._record.image_digest,
            **fields,
        )

    def _save(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update={"timeline": dict(self._hold.timeline), **changes})
        self._tools.records.save(self._record)

    async def _unless_interrupted(
        self,
        work: Coroutine[Any, Any, T],
        *,
        at_least: Interrupt = Interrupt.CANCEL,
        until_s: float | None = None,
    ) -> T:
        """The work's result; raises ``Interrupted`` or ``TimeUp`` (and stops the work) if that comes
        first."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._hold.interrupted(at_least))
        left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
        try:
            done, _ = await asyncio.wait({task, stop}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                raise Interrupted
            if task not in done:
                raise TimeUp
            return task.result()
        finally:
            await cancel_all(task, stop)


def _error(failure: AttemptFailed) -> AttemptError:
    return AttemptError(code=failure.code, message=failure.message[:4096], retryable=failure.retryable)
