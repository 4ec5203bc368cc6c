from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest
from starlette.responses import JSONResponse, Response

from nodes.agent.gateway_client import GatewayClient
from nodes.agent.logs import BUFFER_BYTES, GAP, MARKER, LogShipper
from nodes.protocol import LOG_CAP_BYTES, LOG_CHUNK_BYTES
from tests.nodes.agent.gateway import Job, TestGateway
from tests.nodes.agent.waiting import until


class Shipping:
    """A shipper for a claimed job of the test gateway, and what it told."""

    def __init__(self, gateway: TestGateway, client: GatewayClient) -> None:
        self.gateway, self.client = gateway, client
        self.progress: list[float] = []
        self.lost = 0

    async def begin(
        self, source: AsyncIterator[bytes], *, job: Job | None = None, resume: bool = False
    ) -> LogShipper:
        if job is None:
            job = self.gateway.add("image")
            await self.client.claim(1, 0)
        self.job = job

        async def send(position: int, chunk: bytes) -> int:
            return await self.client.ship_log(job.lease.job_id, job.token, job.attempt, position, chunk)

        def lost() -> None:
            self.lost += 1

        self.shipper = LogShipper(source, send, on_progress=self.progress.append, on_lost=lost, resume=resume)
        self.shipper.start()
        return self.shipper


@pytest.fixture
async def shipping(gateway: TestGateway, client: GatewayClient) -> AsyncIterator[Shipping]:
    made = Shipping(gateway, client)
    yield made
    await made.shipper.close()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


class Tap:
    """A source that a test opens by hand; ``taken`` counts what was read."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.taken = 0

    def __aiter__(self) -> Tap:
        return self

    async def __anext__(self) -> bytes:
        data = await self.queue.get()
        if data is None:
            raise StopAsyncIteration
        self.taken += len(data)
        return data


async def test_output_arrives_whole_and_in_order(shipping: Shipping) -> None:
    rng = random.Random(7)
    data = [rng.randbytes(rng.choice([1, 10, 1000, 70_000])) for _ in range(60)]
    shipper = await shipping.begin(pieces(*data))
    await shipper.read_to_end(10)
    assert await shipper.flush(10)
    assert shipping.job.log == b"".join(data)
    assert max(size for _, size in shipping.job.chunks) <= LOG_CHUNK_BYTES


async def test_output_is_shipped_while_the_container_runs(shipping: Shipping) -> None:
    tap = Tap()
    await shipping.begin(tap)
    tap.queue.put_nowait(b"first line\n")
    began = time.monotonic()
    await until(lambda: shipping.job.log == b"first line\n")
    assert time.monotonic() - began < 2
    tap.queue.put_nowait(None)


async def test_small_writes_travel_together(shipping: Shipping) -> None:
    tap = Tap()
    await shipping.begin(tap)
    for number in range(200):
        tap.queue.put_nowait(b"line %d\n" % number)
        await asyncio.sleep(0.001)
    tap.queue.put_nowait(None)
    assert await shipping.shipper.flush(10)
    assert len(shipping.job.chunks) <= 5
    assert shipping.job.log == b"".join(b"line %d\n" % number for number in range(200))


async def test_the_end_does_not_wait_for_company(shipping: Shipping) -> None:
    began = time.monotonic()
    shipper = await shipping.begin(pieces(b"bye\n"))
    assert await shipper.flush(10)
    assert time.monotonic() - began < 0.2
    assert shipping.job.log == b"bye\n"


async def test_no_output_is_no_call(shipping: Shipping) -> None:
    shipper = await shipping.begin(pieces())
    assert await shipper.flush(10)
    assert shipping.gateway.count("logs") == 0


async def test_a_chunk_whose_answer_got_lost_is_there_once(shipping: Shipping) -> None:
    lost = iter([False, False, True])
    shipping.gateway.after = lambda path: not path.endswith("logs") or next(lost, True)
    data = [bytes([number]) * 100_000 for number in range(8)]
    shipper = await shipping.begin(pieces(*data))
    assert await shipper.flush(10)
    assert shipping.job.log == b"".join(data)
    assert len(shipping.job.chunks) > len({position for position, _ in shipping.job.chunks})


async def test_a_log_longer_than_the_cap_ends_with_one_marker_and_is_read_to_its_end(
    shipping: Shipping,
) -> None:
    tap = Tap()
    await shipping.begin(tap)
    line = b"x" * 1023 + b"\n"
    for _ in range(12 * 16):
        tap.queue.put_nowait(line * 64)
    tap.queue.put_nowait(None)
    assert await shipping.shipper.flush(30)
    log = shipping.job.log
    assert tap.taken == 12 * 2**20
    assert len(log) <= LOG_CAP_BYTES
    assert len(log) > LOG_CAP_BYTES - 200
    assert log.endswith(b"\n" + MARKER)
    assert log.count(b"[rgrid:") == 1


async def test_a_log_of_exactly_the_cap_s_room_has_no_marker(shipping: Shipping) -> None:
    data = b"y" * (LOG_CAP_BYTES - len(MARKER) - 1)
    shipper = await shipping.begin(pieces(data))
    assert await shipper.flush(30)
    assert shipping.job.log == data


async def test_a_gateway_that_does_not_take_logs_makes_the_container_wait(shipping: Shipping) -> None:
    shipping.gateway.before = lambda path: Response(status_code=503) if path.endswith("logs") else None
    tap = Tap()
    shipper = await shipping.begin(tap)
    for _ in range(100):
        tap.queue.put_nowait(b"z" * 65536)
    tap.queue.put_nowait(None)
    await until(lambda: tap.taken >= BUFFER_BYTES)
    await asyncio.sleep(0.3)
    assert tap.taken <= BUFFER_BYTES + 2 * 65536
    assert not await shipper.flush(0.2)
    shipping.gateway.before = lambda path: None
    assert await shipper.flush(20)
    assert shipping.job.log == b"z" * 65536 * 100


async def test_a_lost_lease_ends_shipping_and_is_told(shipping: Shipping) -> None:
    tap = Tap()
    await shipping.begin(tap)
    shipping.job.enter("queued")
    for _ in range(40):
        tap.queue.put_nowait(b"z" * 65536)
    tap.queue.put_nowait(None)
    assert await shipping.shipper.flush(10)
    await shipping.shipper.read_to_end(10)
    assert (shipping.lost, shipping.job.log, tap.taken) == (1, b"", 40 * 65536)


@pytest.mark.parametrize(
    "answer",
    [JSONResponse({"code": "invalid"}, 422), JSONResponse({"next_position": 0})],
    ids=["refused", "not taken"],
)
async def test_logs_that_nobody_takes_are_dropped_and_the_container_goes_on(
    shipping: Shipping, answer: Response
) -> None:
    shipping.gateway.before = lambda path: answer if path.endswith("logs") else None
    tap = Tap()
    await shipping.begin(tap)
    for _ in range(40):
        tap.queue.put_nowait(b"z" * 65536)
    tap.queue.put_nowait(None)
    await shipping.shipper.read_to_end(10)
    assert await shipping.shipper.flush(10)
    assert (shipping.lost, tap.taken, shipping.gateway.count("logs")) == (0, 40 * 65536, 1)


async def test_after_a_restart_the_log_goes_on_where_it_was(shipping: Shipping) -> None:
    shipper = await shipping.begin(pieces(b"before\n"))
    assert await shipper.flush(10)
    shipper = await shipping.begin(pieces(b"after\n"), job=shipping.job, resume=True)
    assert await shipper.flush(10)
    assert shipping.job.log == b"before\n" + GAP + b"after\n"


async def test_after_a_restart_a_log_that_was_cut_stays_cut(shipping: Shipping) -> None:
    shipper = await shipping.begin(pieces(b"x" * (LOG_CAP_BYTES + 1)))
    assert await shipper.flush(30)
    before = shipping.job.log
    shipper = await shipping.begin(pieces(b"after\n"), job=shipping.job, resume=True)
    assert await shipper.flush(10)
    assert shipping.job.log == before


async def test_a_stream_that_breaks_ends_the_log_not_the_agent(shipping: Shipping) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"so far\n"
        raise OSError("connection reset")

    shipper = await shipping.begin(breaks())
    assert await shipper.flush(10)
    assert shipping.job.log == b"so far\n"


async def test_progress_is_heard_before_and_after_the_cap(shipping: Shipping) -> None:
    tap = Tap()
    await shipping.begin(tap)
    tap.queue.put_nowait(b"10%\n")
    await until(lambda: shipping.progress == [0.1])
    for _ in range(11 * 16):
        tap.queue.put_nowait(b"x" * 65535 + b"\n")
    await until(lambda: shipping.job.log.endswith(MARKER), 30)
    deadline = time.monotonic() + 10
    while shipping.progress[-1] != 0.9:
        assert time.monotonic() < deadline
        tap.queue.put_nowait(b"90%\n")
        await asyncio.sleep(0.05)
    tap.queue.put_nowait(None)
