"""Deliveries: when they are tried again, who may send them, what is shown of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from functions import ids
from functions.db import Connection, Pool
from functions.errors import NotFound
from functions.ids import JobId, MessageId, ProjectId
from scheduler import deliveries, delivery_log, redelivering
from scheduler.attempts import next_state, retry_after
from scheduler.callbacks import body_of, endpoints_of, event_of
from scheduler.deliveries import Exchanged, Waiting
from scheduler.delivery_log import Filters
from scheduler.new_deliveries import DISABLED
from tests.scheduler.factories import make_project

HOURS = 3600.0
LEASE = timedelta(seconds=30)
FIRST = (ProjectId(0), "")


def after(tries: int, *, status: int | None = 500, retry_after_s: float | None = None, jitter: float = 0.5) -> object:
    state, pause = next_state(tries, Exchanged(1, status=status, retry_after_s=retry_after_s), jitter)
    return pause.total_seconds() if state == "pending" else state


@pytest.mark.parametrize(
    ("tries", "wait"),
    [
        (1, 5), (2, 300), (3, 1800), (4, 2 * HOURS), (5, 5 * HOURS), (6, 10 * HOURS), (7, 14 * HOURS),
        (8, 20 * HOURS), (9, 24 * HOURS), (10, "exhausted"), (11, "exhausted"),
    ],
)  # fmt: skip
def test_a_failed_attempt_is_followed_by_the_next_until_ten_were_made(tries: int, wait: object) -> None:
    assert after(tries) == wait
    assert after(tries, status=None) == wait


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_a_delivery(status: int) -> None:
    assert after(1, status=status) == "delivered"


@pytest.mark.parametrize("status", [199, 300, 301, 304, 400, 404, 500, 503])
def test_everything_else_is_tried_again(status: int) -> None:
    assert after(1, status=status) == 5


def test_410_ends_it_at_once() -> None:
    assert after(1, status=410) == "exhausted"


def test_steps_are_spread_by_a_fifth_each_way() -> None:
    assert (after(1, jitter=0), after(1, jitter=0.999999999)) == (4, pytest.approx(6))


@pytest.mark.parametrize(
    ("asked", "wait"), [(None, 300), (0, 300), (299, 300), (450, 450), (600, 600), (601, 600), (1e9, 600), (-5, 300)]
)
def test_retry_after_is_honoured_from_one_step_to_two(asked: float | None, wait: float) -> None:
    assert after(2, status=503, retry_after_s=asked) == wait


def test_who_is_too_slow_or_says_that_it_is_too_much_is_left_alone_for_a_minute() -> None:
    for exchanged in (Exchanged(1, status=429), Exchanged(15_000, timed_out=True)):
        for jitter in (0, 0.5, 0.99):
            assert next_state(1, exchanged, jitter) == ("pending", timedelta(seconds=60))
        assert next_state(2, exchanged, 0.5) == ("pending", timedelta(minutes=5))
    assert after(1, status=429, retry_after_s=7) == 60
    assert after(1, status=429, retry_after_s=1e9) == 120


def test_a_message_that_its_receiver_does_not_want_again_ends_unless_it_was_taken() -> None:
    assert next_state(1, Exchanged(1, status=400, unwanted=True), 0.5)[0] == "exhausted"
    assert next_state(1, Exchanged(1, status=204), 0.5)[0] == "delivered"


def test_the_whole_schedule_is_within_a_fifth_of_what_is_documented() -> None:
    steps = (5, 300, 1800, 2 * HOURS, 5 * HOURS, 10 * HOURS, 14 * HOURS, 20 * HOURS, 24 * HOURS)
    for jitter in (0.0, 0.25, 0.5, 0.75, 0.999999):
        waits = [after(tries, status=None, jitter=jitter) for tries in range(1, 10)]
        assert all(0.8 * step <= wait <= 1.2 * step for step, wait in zip(steps, waits, strict=True))  # type: ignore[operator]


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 60),
        ("Wed, 31 Dec 2025 23:00:00 GMT", -3600),
        ("9" * 400, 999999999),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1.5", None),
        ("²", None),
        ("Thu, 99 Jan 9999 00:00:00 GMT", None),
        ("Thu, 01 Jan 2026 00:01:00 +9999999999999999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nonsense_is_nothing(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


def test_a_url_hears_of_an_event_once_and_only_if_it_wants_to() -> None:
    assert event_of("timed_out") == "job.timed_out"
    assert endpoints_of((), None, None, "job.failed") == []
    (all_events,) = endpoints_of((), "https://a.example/x", None, "job.expired")
    assert (all_events.url, all_events.key) == ("https://a.example/x", "https://a.example:443")
    assert endpoints_of((), "https://a.example/x", ["job.failed"], "job.expired") == []


def test_a_body_survives_what_json_can_say_and_utf8_cannot() -> None:
    body = body_of("job.failed", NOW, {"result": "\ud800"})
    assert body.encode()
    assert '"timestamp":"2026-01-01T00:00:00.000Z"' in body


async def add(
    conn: Connection, project: ProjectId, endpoint: str, *, due_in_s: float = 0, job: JobId | None = None
) -> MessageId:
    message = MessageId(ids.new_uuid7())
    await conn.execute(
        """INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, due_at)
           VALUES ($1, $2, $3, 'job.failed', $4, $4, now() + $5::interval)""",
        message, project, job or uuid4(), endpoint, timedelta(seconds=due_in_s),
    )  # fmt: skip
    return message


async def test_a_walk_sees_each_endpoint_once_however_much_it_is_behind(conn: Connection) -> None:
    one, _ = await make_project(conn)
    two, _ = await make_project(conn)
    for _ in range(20):
        await add(conn, one, "https://a")
    await add(conn, one, "https://b", due_in_s=60)
    await add(conn, two, "https://a", due_in_s=60)
    await add(conn, two, "https://a")
    walked = [Waiting(one, "https://a", True), Waiting(one, "https://b", False), Waiting(two, "https://a", True)]
    assert await deliveries.endpoints_waiting(conn, FIRST, limit=10) == walked
    assert await deliveries.endpoints_waiting(conn, FIRST, limit=2) == walked[:2]
    assert await deliveries.endpoints_waiting(conn, (one, "https://a"), limit=10) == walked[1:]
    assert await deliveries.endpoints_waiting(conn, (two, "https://a"), limit=10) == []


async def test_a_walk_passes_by_a_project_that_has_no_room(conn: Connection) -> None:
    one, _ = await make_project(conn)
    two, _ = await make_project(conn)
    for project in (one, two):
        for name in "abc":
            await add(conn, project, f"https://{name}")
    walked = await deliveries.endpoints_waiting(conn, FIRST, limit=10, full=[one])
    assert [(each.project_id, each.endpoint) for each in walked] == [
        (one, "https://a"), *((two, f"https://{name}") for name in "abc"),
    ]  # fmt: skip


async def test_what_was_written_lately_is_found_without_a_walk(conn: Connection) -> None:
    one, _ = await make_project(conn)
    two, _ = await make_project(conn)
    since = datetime.now(UTC) - timedelta(seconds=5)
    await add(conn, one, "https://a")
    await add(conn, one, "https://a")
    await add(conn, one, "https://later", due_in_s=60)
    tried = await add(conn, one, "https://tried")
    await conn.execute("UPDATE deliveries SET tries = 1 WHERE id = $1", tried)
    await add(conn, two, "https://b")
    assert set(await deliveries.fresh_endpoints(conn, since, limit=9)) == {(one, "https://a"), (two, "https://b")}
    assert await deliveries.fresh_endpoints(conn, since, limit=9, full=[one]) == [(two, "https://b")]
    assert await deliveries.fresh_endpoints(conn, since, limit=1) == [(two, "https://b")]
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert await deliveries.fresh_endpoints(conn, later, limit=9) == []


async def test_an_attempt_that_was_under_way_when_its_delivery_was_given_up_is_recorded(conn: Connection) -> None:
    project, _ = await make_project(conn)
    for status, state, ends in ((200, "delivered", "delivered"), (500, "pending", "exhausted")):
        message = await add(conn, project, "https://a")
        (claimed,) = await deliveries.claim(conn, [(project, "https://a", 1)], lease=LEASE)
        await deliveries.give_up(conn, claimed, DISABLED)
        assert await deliveries.record(conn, claimed, Exchanged(5, status=status), state, timedelta(seconds=5))
        assert not await deliveries.record(conn, claimed, Exchanged(5, status=status), state, timedelta(seconds=5))
        shown = await delivery_log.read(conn, project, message)
        assert (shown.state, [each.status for each in shown.attempts]) == (ends, [status])
        assert shown.ended_reason == (None if ends == "delivered" else DISABLED)


async def test_a_claim_takes_the_oldest_of_each_endpoint_and_no_more_than_asked(conn: Connection) -> None:
    project, _ = await make_project(conn)
    old = [await add(conn, project, "https://a", due_in_s=-age) for age in range(10, 0, -1)]
    await add(conn, project, "https://b", due_in_s=5)
    claimed = await deliveries.claim(conn, [(project, "https://a", 3), (project, "https://b", 3)], lease=LEASE)
    assert {each.id for each in claimed} == set(old[:3])
    claimed = await deliveries.claim(conn, [(project, "https://a", 100)], lease=LEASE)
    assert {each.id for each in claimed} == set(old[3:])
    await conn.execute("UPDATE deliveries SET due_at = now() WHERE id = $1", old[5])
    (again,) = await deliveries.claim(conn, [(project, "https://a", 100)], lease=LEASE)
    assert again.id == old[5], "whose sender died comes back under its id"


async def test_two_senders_never_claim_the_same_delivery(pool: Pool) -> None:
    async with pool.acquire() as a, pool.acquire() as b:
        project, _ = await make_project(a)
        made = {await add(a, project, "https://a") for _ in range(4)}
        async with a.transaction():
            mine = await deliveries.claim(a, [(project, "https://a", 3)], lease=LEASE)
            theirs = await deliveries.claim(b, [(project, "https://a", 3)], lease=LEASE)
        assert (len(mine), len(theirs)) == (3, 1)
        assert {each.id for each in (*mine, *theirs)} == made


async def test_only_who_still_holds_a_delivery_records_what_came_of_it(conn: Connection) -> None:
    project, _ = await make_project(conn)
    message = await add(conn, project, "https://a")
    (slow,) = await deliveries.claim(conn, [(project, "https://a", 1)], lease=timedelta(seconds=-1))
    (quick,) = await deliveries.claim(conn, [(project, "https://a", 1)], lease=LEASE)
    assert slow.id == quick.id == message
    assert await deliveries.record(conn, quick, Exchanged(5, status=200), "delivered", timedelta(0))
    assert not await deliveries.record(conn, slow, Exchanged(5, status=500), "pending", timedelta(seconds=5))
    (shown,) = await delivery_log.list_deliveries(conn, project, limit=10)
    assert (shown.state, [each.status for each in shown.attempts]) == ("delivered", [200])


async def test_a_delivery_is_sent_again_on_demand_with_the_whole_schedule_before_it(conn: Connection) -> None:
    project, _ = await make_project(conn)
    message = await add(conn, project, "https://a")
    for state, status in (("exhausted", 410), ("delivered", 200)):
        (claimed,) = await deliveries.claim(conn, [(project, "https://a", 1)], lease=LEASE)
        assert (claimed.id, claimed.tries) == (message, 0)
        await deliveries.record(conn, claimed, Exchanged(5, status=status), state, timedelta(0))
        assert await deliveries.claim(conn, [(project, "https://a", 1)], lease=LEASE) == []
        await redelivering.redeliver(conn, project, message)
    (shown,) = await delivery_log.list_deliveries(conn, project, limit=10)
    assert [(each.attempt, each.status) for each in shown.attempts] == [(1, 410), (2, 200)]
    assert shown.state == "pending"
    other, _ = await make_project(conn)
    for stranger in ((other, message), (project, MessageId(uuid4()))):
        with pytest.raises(NotFound):
            await redelivering.redeliver(conn, *stranger)


async def test_the_list_is_newest_first_filtered_and_the_projects_own(conn: Connection) -> None:
    project, _ = await make_project(conn)
    job = JobId(uuid4())
    made = [await add(conn, project, f"https://{name}", job=job) for name in "abc"]
    other = await add(conn, project, "https://a", due_in_s=60)
    await conn.execute("UPDATE deliveries SET state = 'exhausted' WHERE id = $1", made[0])
    stranger, _ = await make_project(conn)
    await add(conn, stranger, "https://a")

    async def shown(limit: int = 10, before: MessageId | None = None, **filters: Any) -> list[MessageId]:
        rows = await delivery_log.list_deliveries(conn, project, Filters(**filters), limit=limit, before=before)
        return [each.id for each in rows]

    assert await shown() == [other, *reversed(made)]
    assert await shown(limit=2) == [other, made[2]]
    assert await shown(before=made[2]) == [made[1], made[0]]
    assert await shown(job=job, state="pending") == [made[2], made[1]]
    assert await shown(state="exhausted") == [made[0]]
    found = {each.id: each for each in await delivery_log.list_deliveries(conn, project, limit=10)}
    assert found[made[0]].next_at is None
    assert found[other].next_at is not None
