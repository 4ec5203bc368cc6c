from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from functions.errors import Invalid
from nodes.simulate import traces
from nodes.simulate.loads import in_paid_lane, parse

HOUR, DAY = 3600.0, 86400.0


def test_jobs_come_at_the_rate_and_run_as_long_as_the_spec_says() -> None:
    jobs = parse("poisson:60/h,4m").jobs(20 * DAY, 1)
    assert len(jobs) / 480 == pytest.approx(60, rel=0.03)
    assert fmean(job.runs for job in jobs) == pytest.approx(240, rel=0.05)
    assert [job.at for job in jobs] == sorted(job.at for job in jobs)


def test_bursts_days_and_heavy_tails_have_their_shape() -> None:
    burst = parse("burst:240/h,3m,10m/1h").jobs(10 * DAY, 1)
    assert all(job.at % HOUR < 600 for job in burst)
    assert len(burst) / 240 == pytest.approx(40, rel=0.05)
    day = parse("diurnal:5-200/h,6m").jobs(10 * DAY, 1)
    noon = sum(11 * HOUR <= job.at % DAY < 13 * HOUR for job in day) / 20
    night = sum(job.at % DAY < HOUR for job in day) / 10
    assert (noon, night) == (pytest.approx(197, rel=0.05), pytest.approx(6, rel=0.5))
    tail = sorted(job.runs for job in parse("tail:60/h,4m").jobs(20 * DAY, 1))
    assert sum(tail[-len(tail) // 100 :]) / sum(tail) > 0.12


def test_the_same_seed_draws_the_same_jobs() -> None:
    load = parse("poisson:60/h,4m")
    assert load.jobs(DAY, 7) == load.jobs(DAY, 7) != load.jobs(DAY, 8)
    jobs = load.jobs(DAY, 7)
    paid = in_paid_lane(jobs, 0.5, 600, 7)
    assert sum(job.paid for job in paid) / len(jobs) == pytest.approx(0.5, abs=0.06)
    assert all(job.deadline == job.at + 600 for job in paid if job.paid)


@pytest.mark.parametrize(
    "spec",
    ["", "poisson", "poisson:0/h,4m", "poisson:60/h", "poisson:1-2/h,4m", "burst:60/h,4m", "burst:60/h,4m,1m/0s", "diurnal:60/h,4m", "x:60/h,4m", "poisson:1.2.3/h,4m", "poisson:60/h,4x"],
)  # fmt: skip
def test_what_is_no_load_is_refused(spec: str) -> None:
    with pytest.raises(Invalid):
        parse(spec)


def test_more_jobs_than_can_be_played_are_refused() -> None:
    with pytest.raises(Invalid, match="fewer hours"):
        parse("poisson:100000/h,4m").jobs(20 * HOUR, 1)


def test_a_trace_is_read_from_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(
        "class,arrival,duration,lane,deadline,slots,memory,account\n"
        "clip,2026-01-01T00:01:00Z,4m,paid,1h,2,1Gi,acme\n"
        "mail,2026-01-01T00:00:00Z,90,,,,,other\n"
    )
    mail, clip = traces.read(path, deadline=60).jobs
    assert (mail.at, mail.runs, mail.kind, mail.slots, mail.paid, mail.deadline) == (0, 90, "mail", 1, False, None)
    assert (clip.at, clip.runs, clip.kind, clip.slots, clip.paid, clip.deadline) == (60, 240, "clip", 2, True, 3660)
    assert (clip.memory, clip.account != mail.account) == (1024**3, True)


def test_a_paid_job_of_a_trace_starts_within_a_while_also_if_its_line_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(" arrival, duration, lane, deadline, note\n 100, 60, paid, , a\n 110, 60, paid, 5s, b\n 120, 60, , , c\n")
    trace = traces.read(path, deadline=600)
    assert [job.deadline for job in trace.jobs] == [600, 15, None]
    assert trace.unused == ("note",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("at,for\n1,2\n", "arrival and duration"),
        ("arrival,duration\n", "no jobs"),
        ("arrival,duration\n1,2\nx,2\n", "line 3: arrival 'x'"),
        ("arrival,duration\n1,soon\n", "line 2: 'soon' is no duration"),
        ("arrival,duration\n1\n", "line 2: '' is no duration"),
        ("arrival,duration,lane\n1,2,fast\n", "line 2: lane 'fast'"),
        ("arrival,duration,slots\n1,2,0\n", "line 2: slots '0': a job takes one"),
        ("arrival,duration,slots\n1,2,1.5\n", "line 2: slots '1.5': .* whole"),
        ("arrival,duration\n1,-5\n", "line 2: duration '-5': "),
        ("arrival,duration\n1,8d\n", "line 2: duration '8d': a job runs for 7 days at most"),
        ("arrival,duration,arrival\n1,2,3\n", "has 'arrival' more than once"),
        ("x" * 200_000, "line 1: field larger"),
        ("arrival,duration,memory\n1,2,lots\n", "line 2"),
        ("arrival,duration\n1e999,2\n", "line 2"),
        ("arrival,duration\nnan,2\n", "line 2"),
    ],
)
def test_a_trace_that_cannot_be_read_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(text)
    with pytest.raises(Invalid, match=said):
        traces.read(path, deadline=60)


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00arrival")
    for path in (tmp_path / "binary", tmp_path, tmp_path / "none"):
        with pytest.raises(Invalid, match="cannot read"):
            traces.read(path, deadline=60)
