from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.quantities import format_bytes, format_cpu, format_duration, parse_bytes, parse_cpu, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("500ms", 0.5),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1d2h3m4s5ms", 93784.005),
        ("30d", 2_592_000),
        ("007s", 7),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "10",
        "m",
        "10 m",
        " 10m",
        "10m ",
        "1.5h",
        "-1s",
        "+1s",
        "1m1h",
        "1s1s",
        "10min",
        "1w",
        "1H",
        "١s",
        "1e3s",
        "1_0s",
        "∞s",
        "10m\n",
        "9" * 50 + "s",
        "s" * 1_000_000,
        "36501d",
        "9999999999999999d",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "cpus"),
    [(1, 1.0), (2.5, 2.5), (0.001, 0.001), ("500m", 0.5), ("0.5", 0.5), ("2", 2.0), ("1500m", 1.5), (1.0, 1.0)],
)
def test_an_amount_of_cpu_is_read(value: object, cpus: float) -> None:
    assert parse_cpu(value) == cpus


@pytest.mark.parametrize(
    "value",
    [
        "",
        "m",
        "1.5.5",
        "-1",
        -1,
        "1k",
        "1e3",
        " 1",
        "0.0001",
        "1.5m",
        1e-7,
        1e300,
        float("nan"),
        float("inf"),
        True,
        None,
        [],
        "9" * 100,
        "1M",
        "½",
        "٣",
    ],
)
def test_what_is_no_amount_of_cpu_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="CPU"):
        parse_cpu(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("1Ki", 1024),
        ("1k", 1000),
        ("512Mi", 512 * 1024**2),
        ("1.5Gi", 1536 * 1024**2),
        ("0.5G", 500_000_000),
        ("1Ti", 1024**4),
        ("1T", 1000**4),
        (1e9, 1_000_000_000),
        ("0", 0),
    ],
)
def test_a_number_of_bytes_is_read(value: object, size: int) -> None:
    assert parse_bytes(value) == size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Gi",
        "1K",
        "1KB",
        "1GB",
        "1gi",
        "1 Gi",
        "-1Gi",
        "1e9",
        "0x10",
        "1Pi",
        "0.1",
        "1.0001k",
        True,
        None,
        {},
        "1" * 100,
        1e300,
        float("nan"),
        "¹Gi",
    ],
)
def test_what_is_no_number_of_bytes_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="bytes"):
        parse_bytes(value)


@given(st.integers(0, 10**12).map(lambda n: timedelta(milliseconds=n)))
def test_a_duration_is_written_as_it_is_read(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


@given(st.integers(0, 1_000_000).map(lambda n: n / 1000))
def test_cpu_is_written_as_it_is_read(value: float) -> None:
    assert parse_cpu(format_cpu(value)) == value


@given(st.one_of(st.integers(0, 2**50), st.integers(0, 1024).map(lambda n: n * 1024**3)))
def test_bytes_are_written_as_they_are_read(value: int) -> None:
    assert parse_bytes(format_bytes(value)) == value


def test_quantities_are_written_as_people_write_them() -> None:
    assert format_duration(timedelta(hours=1, minutes=30)) == "1h30m"
    assert [format_cpu(0.5), format_cpu(2.0), format_cpu(2.5)] == ["500m", "2", "2500m"]
    assert [format_bytes(2**30), format_bytes(1_500_000_000), format_bytes(1001)] == ["1Gi", "1500M", "1001"]
