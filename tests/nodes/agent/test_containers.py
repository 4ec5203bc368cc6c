from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from nodes.agent import containers, docker_api
from nodes.agent.adoption import plan
from nodes.agent.containers import Engine, EngineUnavailable, Exited
from nodes.agent.failures import AttemptFailed
from nodes.agent.sandbox import container_settings
from nodes.protocol import ErrorCode, Image
from tests.conftest import docker_works
from tests.images.build import busybox, image
from tests.nodes.agent.jobs import MIB, PlainFolders, lease, run, shell

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]

SOCKET = "/var/run/docker.sock"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    opened = await Engine.open("node-containers")
    try:
        yield opened
        assert await opened.find() == [], "a container was left"
    finally:
        for left in await opened.find():
            await opened.remove(left.container_id)
        await opened.aclose()


@pytest.fixture
def folders(tmp_path: Path) -> PlainFolders:
    return PlainFolders.below(tmp_path)


async def image_id(engine: Engine, reference: str) -> str:
    return (await engine.ensure_image(Image(reference=reference))).id


async def test_a_job_reads_its_inputs_writes_its_outputs_and_ends(engine: Engine, folders: PlainFolders) -> None:
    (folders.in_dir / "params.json").write_text('{"width": 320}')
    script = "cat /in/params.json; echo thumb >/out/thumb.jpg; echo $RGRID_FUNCTION-$RGRID_VERSION $A"
    job = shell(script, env={"A": "b c"})
    ran = await run(engine, await image_id(engine, busybox()), job, folders)
    assert (ran.exited, ran.output) == (Exited(0, oom_killed=False), '{"width": 320}probe-3 b c\n')
    assert (folders.out_dir / "thumb.jpg").read_text() == "thumb\n"


async def test_exit_codes_and_deaths_by_signal_are_reported_exactly(engine: Engine, folders: PlainFolders) -> None:
    busy = await image_id(engine, busybox())
    wanted = [1, 2, 42, 125, 126, 127, 128, 255]
    signals = {"HUP": 1, "ABRT": 6, "KILL": 9, "SEGV": 11, "TERM": 15, "XFSZ": 25, "SYS": 31}
    ran = await asyncio.gather(*[run(engine, busy, shell(f"exit {code}"), folders) for code in wanted])
    assert [each.code for each in ran] == wanted
    # exec: the shell itself would turn the signal into an exit code.
    died = await asyncio.gather(*[run(engine, busy, shell(f"kill -{name} $$"), folders) for name in signals])
    assert [each.code for each in died] == [128 + number for number in signals.values()]


@pytest.mark.parametrize(("command", "code"), [(["/no/such/program"], 127), (["/etc"], 126), (["no-such"], 127)])
async def test_a_command_that_cannot_run_has_the_shells_exit_code(
    engine: Engine, folders: PlainFolders, command: list[str], code: int
) -> None:
    ran = await run(engine, await image_id(engine, image("RUN mkdir /etc || true\n")), lease(command), folders)
    assert ran.code == code


async def test_without_a_command_the_images_entrypoint_and_arguments_run(
    engine: Engine, folders: PlainFolders
) -> None:
    built = await image_id(engine, image('ENTRYPOINT ["echo", "from"]\nCMD ["the", "image"]\n'))
    own = await run(engine, built, lease(None), folders)
    given = await run(engine, built, lease(["echo", "whole argv"]), folders)
    assert (own.output, given.output) == ("from the image\n", "whole argv\n")


async def test_arguments_reach_the_process_as_they_are(engine: Engine, folders: PlainFolders) -> None:
    odd = ["", " ", "a b", "$(id)", "`id`", "; id", "--", "-x", "new\nline", '"', "'", "\\", "ü", "*"]
    ran = await run(
        engine, await image_id(engine, busybox()), lease(["/bin/printf", "%s\\0", *odd]), folders
    )
    assert ran.output.split("\0")[:-1] == odd


async def test_output_waits_in_the_container_while_nobody_reads(engine: Engine, folders: PlainFolders) -> None:
    container = await engine.create(
        shell("head -c 50000000 /dev/zero; echo done >/out/end"), await image_id(engine, busybox()), folders
    )
    source = await engine.attach(container)
    await engine.start(container)
    first = await anext(source)
    waiting = asyncio.create_task(engine.wait(container))
    # Everything between here and the container fills up and then stands still.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 1.5)
    assert not (folders.out_dir / "end").exists()
    read = len(first)
    async for chunk in source:
        read += len(chunk)
    assert read == 50_000_000
    assert (await waiting).code == 0
    await engine.remove(container)


@pytest.mark.parametrize("how", ["stop", "kill", "remove"])
async def test_a_container_whose_output_nobody_takes_ends_all_the_same(
    engine: Engine, folders: PlainFolders, how: str
) -> None:
    script = "trap 'exit 3' TERM; while :; do yes | head -c 65536; done"
    container = await engine.create(shell(script), await image_id(engine, busybox()), folders)
    source = await engine.attach(container)
    await engine.start(container)
    await anext(source)
    async with asyncio.timeout(10):
        if how == "stop":
            await engine.stop(container, 1)
        elif how == "kill":
            await engine.kill(container)
        if how != "remove":
            assert (await engine.wait(container)).code in (3, 137)
        await engine.remove(container)
    async for _ in source:
        pass


async def test_a_reader_that_waits_hears_of_the_end(engine: Engine, folders: PlainFolders) -> None:
    container = await engine.create(shell("echo one; sleep 20"), await image_id(engine, busybox()), folders)
    source = await engine.attach(container)
    await engine.start(container)
    chunks: list[bytes] = []

    async def read() -> None:
        async for chunk in source:
            chunks.append(chunk)

    reading = asyncio.create_task(read())
    async with asyncio.timeout(10):
        while not chunks:
            await asyncio.sleep(0.01)
        await engine.kill(container)
        await reading
    assert chunks == [b"one\n"]
    await engine.remove(container)


async def test_a_second_agent_finds_the_container_and_reads_on(folders: PlainFolders) -> None:
    engine = await Engine.open("node-containers")
    job = shell("echo early; while [ ! -e /out/go ]; do sleep 0.05; done; echo late", attempt=2)
    container = await engine.create(job, await image_id(engine, busybox()), folders)
    source = await engine.attach(container)
    await engine.start(container)
    assert await anext(source) == b"early\n"
    await engine.aclose()

    again = await Engine.open("node-containers")
    try:
        (found,) = await again.find()
        assert (found.container_id, found.job_id, found.attempt, found.running) == (container, job.job_id, 2, True)
        assert plan([], [found], "boot").remove == [container]
        rest = await again.attach(container)
        (folders.out_dir / "go").touch()
        assert [chunk async for chunk in rest] == [b"late\n"]
        assert (await again.wait(container)).code == 0
        assert [each.running for each in await again.find()] == [False]
        await again.remove(container)
        assert await again.find() == []
    finally:
        await again.aclose()
    other = await Engine.open("node-containers-2")
    assert await other.find() == []
    await other.aclose()


async def test_stop_asks_first_and_kills_when_the_grace_is_over(engine: Engine, folders: PlainFolders) -> None:
    busy = await image_id(engine, busybox())

    async def stopped(script: str, grace_s: float) -> tuple[int, float]:
        container = await engine.create(shell(script), busy, folders)
        source = await engine.attach(container)
        await engine.start(container)
        await anext(source)
        began_s = time.monotonic()
        await engine.stop(container, grace_s)
        took_s = time.monotonic() - began_s
        code = (await engine.wait(container)).code
        await engine.remove(container)
        return code, took_s

    wait = "echo ready; while :; do sleep 0.1; done"
    polite, deaf = await asyncio.gather(
        stopped(f"trap 'exit 7' TERM; {wait}", 10), stopped(f"trap '' TERM; {wait}", 1)
    )
    assert polite[0] == 7 and polite[1] < 4
    assert deaf[0] == 137 and 0.9 < deaf[1] < 4


async def test_kill_ends_a_container_with_everything_in_it_at_once(engine: Engine, folders: PlainFolders) -> None:
    script = "trap '' TERM; (setsid sh -c 'while :; do date >/out/alive; sleep 0.05; done' &); echo ready; sleep 60"
    container = await engine.create(shell(script), await image_id(engine, busybox()), folders)
    source = await engine.attach(container)
    await engine.start(container)
    await anext(source)
    await engine.kill(container)
    assert (await engine.wait(container)).code == 137
    await engine.remove(container)
    alive = folders.out_dir / "alive"
    alive.unlink(missing_ok=True)
    await asyncio.sleep(0.2)
    assert not alive.exists()


async def test_ending_and_removing_may_be_repeated_and_what_is_gone_is_fine(
    engine: Engine, folders: PlainFolders
) -> None:
    container = await engine.create(shell("true"), await image_id(engine, busybox()), folders)
    await engine.kill(container)
    await engine.stop(container, 1)
    await asyncio.gather(engine.remove(container), engine.remove(container))
    for call in (engine.kill, engine.remove, lambda gone: engine.stop(gone, 1)):
        await call(container)
    with pytest.raises(AttemptFailed, match="removed by somebody"):
        await engine.wait(container)


async def test_what_docker_refuses_is_the_nodes_trouble_and_leaves_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    gone = PlainFolders(tmp_path / "nowhere", tmp_path / "nowhere")
    with pytest.raises(AttemptFailed, match="could not make the container") as failed:
        await engine.create(shell("true"), await image_id(engine, busybox()), gone)
    assert failed.value.code is ErrorCode.INTERNAL
    assert failed.value.retryable


async def test_the_engine_says_what_it_is(engine: Engine) -> None:
    facts = engine.facts()
    assert str(facts["docker"])[0].isdigit() and str(facts["runc"])[0].isdigit()


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:2375", "unix:///nowhere/docker.sock"])
async def test_without_docker_the_agent_is_told_what_to_do(host: str) -> None:
    with pytest.raises(EngineUnavailable, match=r"Docker does not answer|DOCKER_HOST must"):
        await Engine.open("n", host=host)


class Between:
    """A way to Docker that can stand still (as an engine that hangs) or break (as one that is killed)."""

    def __init__(self, path: Path) -> None:
        self.host = f"unix://{path}"
        self._path = path
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    async def cut(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        docker_reader, docker_writer = await asyncio.open_unix_connection(SOCKET)
        try:
            await asyncio.gather(
                self._copy(reader, docker_writer, self.requests), self._copy(docker_reader, writer, None)
            )
        except asyncio.CancelledError:
            pass
        finally:
            for each in (writer, docker_writer):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[bytes] | None
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                if heard is not None:
                    heard.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def between(tmp_path: Path) -> AsyncIterator[tuple[Between, Engine]]:
    async with Between(tmp_path / "docker.sock") as way:
        opened = await Engine.open("node-between", host=way.host)
        yield way, opened
        await way.cut()
        way.thaw()
        await opened.aclose()
    cleaner = await Engine.open("node-between")
    for left in await cleaner.find():
        await cleaner.remove(left.container_id)
    await cleaner.aclose()


async def test_an_engine_that_hangs_does_not_hang_the_agent(
    between: tuple[Between, Engine], folders: PlainFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, engine = between
    busy = await image_id(engine, busybox())
    container = await engine.create(shell("sleep 20"), busy, folders)
    await engine.start(container)
    way.freeze()
    for name in ("CREATE_S", "START_S", "REMOVE_S", "KILL_S", "WAIT_CHECK_S", "ENGINE_BACK_S", "CLEANING_S"):
        monkeypatch.setattr(containers, name, 0.3)
    monkeypatch.setattr(docker_api, "HEADERS_S", 0.3)
    monkeypatch.setattr(docker_api, "CALL_S", 0.3)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: engine.create(shell("true"), busy, folders),
        lambda: engine.attach(container),
        lambda: engine.start(container),
        lambda: engine.wait(container),
        lambda: engine.stop(container, 0),
        lambda: engine.kill(container),
        lambda: engine.remove(container),
    ]
    for call in calls:
        with pytest.raises(AttemptFailed) as failed:
            async with asyncio.timeout(5):
                await call()
        assert failed.value.code is ErrorCode.INTERNAL
        assert failed.value.retryable


async def test_a_job_that_outlives_a_break_of_the_engine_is_waited_for(
    between: tuple[Between, Engine], folders: PlainFolders
) -> None:
    way, engine = between
    busy = await image_id(engine, busybox())
    container = await engine.create(shell("while [ ! -e /out/go ]; do sleep 0.05; done; exit 5"), busy, folders)
    await engine.start(container)
    waiting = asyncio.create_task(engine.wait(container))
    await until_waiting(way)
    await way.cut()
    way.requests.clear()
    await until_waiting(way)
    (folders.out_dir / "go").touch()
    assert (await waiting).code == 5


async def test_a_container_that_ended_with_its_engine_has_no_outcome(
    between: tuple[Between, Engine], folders: PlainFolders
) -> None:
    way, engine = between
    container = await engine.create(shell("exec sleep 20"), await image_id(engine, busybox()), folders)
    await engine.start(container)
    waiting = asyncio.create_task(engine.wait(container))
    await until_waiting(way)
    way.freeze()
    outside = await Engine.open("node-between")
    await outside.kill(container)
    await outside.aclose()
    await way.cut()
    way.thaw()
    with pytest.raises(AttemptFailed, match="restarted while the job ran") as failed:
        await waiting
    assert failed.value.retryable


async def until_waiting(way: Between) -> None:
    async with asyncio.timeout(5):
        while not any(b"/wait" in request for request in way.requests):
            await asyncio.sleep(0.01)


async def test_a_create_that_is_cut_short_leaves_no_container(
    between: tuple[Between, Engine], folders: PlainFolders
) -> None:
    way, engine = between
    busy = await image_id(engine, busybox())
    making = asyncio.create_task(engine.create(shell("true"), busy, folders))
    async with asyncio.timeout(5):
        while not any(b"/containers/create" in request for request in way.requests):
            await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    async with asyncio.timeout(10):
        while engine.cleaning:
            await asyncio.sleep(0.05)
    outside = await Engine.open("node-between")
    assert await outside.find() == []
    await outside.aclose()


async def test_nothing_is_copied_in_or_executed_by_the_engine(
    between: tuple[Between, Engine], folders: PlainFolders
) -> None:
    way, engine = between
    await run(engine, await image_id(engine, busybox()), shell("echo hello"), folders)
    said = b"".join(way.requests)
    assert b"/containers/create" in said
    assert b"/archive" not in said and b"/exec" not in said


async def test_a_container_costs_hardly_more_than_the_bare_calls(engine: Engine, folders: PlainFolders) -> None:
    busy = await image_id(engine, busybox())
    local = await engine.ensure_image(Image(reference=busy))
    bare = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET), base_url="http://d", timeout=30)

    async def bare_sequence() -> None:
        body = container_settings(
            lease(["true"]), local, node="bare", in_dir=folders.in_dir, out_dir=folders.out_dir
        )
        made = await bare.post("/containers/create", json=body)
        path = f"/containers/{made.json()['Id']}"
        await bare.post(f"{path}/start")
        await bare.post(f"{path}/wait")
        await bare.delete(path, params={"force": 1, "v": 1})

    async def ours() -> None:
        await run(engine, busy, lease(["true"]), folders)

    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(6):
        for name, call in (("bare", bare_sequence), ("ours", ours)):
            began_s = time.monotonic()
            await call()
            times[name].append(time.monotonic() - began_s)
    await bare.aclose()
    ratio = statistics.median(times["ours"]) / statistics.median(times["bare"])
    print(json.dumps({name: round(statistics.median(each) * 1000) for name, each in times.items()}), round(ratio, 2))
    # The target is 1.15 on a quiet machine; this holds against doing a call too many on a busy one.
    assert ratio < 1.5


async def test_memory_that_runs_out_is_marked_and_a_childs_end_is_not_the_jobs(
    engine: Engine, folders: PlainFolders
) -> None:
    busy = await image_id(engine, busybox())
    bomb = "tail /dev/zero"
    whole, child, failed = await asyncio.gather(
        run(engine, busy, shell(f"exec {bomb}", memory=32 * MIB), folders),
        run(engine, busy, shell(f"{bomb}; echo went on", memory=32 * MIB), folders),
        run(engine, busy, shell(f"{bomb}; exit 3", memory=32 * MIB), folders),
    )
    assert whole.exited == Exited(137, oom_killed=True)
    # Whether its mark is seen is luck: the engine forgets a cgroup that is gone before it has looked.
    assert child.exited.code == 0
    assert "went on\n" in child.output  # beside what the shell says of its child on stderr
    assert failed.exited == Exited(3, oom_killed=True)


async def test_volumes_of_an_image_leave_nothing_on_the_node(engine: Engine, folders: PlainFolders) -> None:
    dockerfile = "RUN mkdir /data && echo old >/data/planted\nVOLUME /data\nVOLUME /tmp\nVOLUME /out\n"
    built = await image_id(engine, image(dockerfile))
    container = await engine.create(shell("touch /data/x /tmp/y; echo ok >/out/x"), built, folders)
    await engine.start(container)
    assert (await engine.wait(container)).code == 0
    volumes = {each["Name"] for each in await inspect_mounts(container) if each["Type"] == "volume"}
    await engine.remove(container)
    assert (folders.out_dir / "x").read_text() == "ok\n"
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET), base_url="http://d") as client:
        left = {each["Name"] for each in (await client.get("/volumes")).json()["Volumes"] or []}
    assert not volumes & left


async def inspect_mounts(container: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET), base_url="http://d") as client:
        mounts: list[dict[str, Any]] = (await client.get(f"/containers/{container}/json")).json()["Mounts"]
        return mounts
