from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodes.agent.results import NotAResult
from nodes.agent.wishes import NotAWish, _read, parse_wish


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ('"30s"', 30), ('"1h30m"', 5400), ('"250ms"', 0.25), ('"0s"', 0), ("45", 45), ("0.5", 0.5), ("0", 0),
        ('"1d"', 86_400), ('"30d"', 86_400), ("1e300", 86_400), ("9" * 200, 86_400), ('"999999999d"', 86_400),
    ],
)  # fmt: skip
def test_a_wait_is_read_and_bounded_by_a_day(after: str, seconds: float) -> None:
    assert parse_wish(f'{{"after": {after}}}'.encode()).after_s == seconds


def test_the_reason_goes_with_the_error() -> None:
    wish = parse_wish(b'{"after": "1m", "reason": "rate\\nlimited\\u0007"}')
    assert wish.remark == " (asks to be tried again after 60 s: rate limited)"
    assert len(parse_wish(b'{"after": 1, "reason": "%s"}' % (b"x" * 3000)).remark) < 600


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"30", b'"30s"', b"null", b"{}", b'{"reason": "x"}', b'{"after": null}', b'{"after": true}',
        b'{"after": -1}', b'{"after": "-1s"}', b'{"after": "soon"}', b'{"after": ""}', b'{"after": "30"}',
        b'{"after": [30]}', b'{"after": "30s", "reason": 7}', b'{"after": "30s", "retry": true}',
        b'{"after": "30s", "after": "40s"}', b'{"after": NaN}', b'{"after": 1e999}', b"\xff", b'{"after": "1s1h"}',
    ],
)  # fmt: skip
def test_what_is_no_wish_is_told(data: bytes) -> None:
    with pytest.raises((NotAWish, NotAResult)):
        parse_wish(data)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.symlink_to("/etc/hostname"), "no plain file"),
        (os.mkfifo, "no plain file (fifo)"),
        (lambda path: path.mkdir(), "no plain file (directory)"),
        (lambda path: path.write_bytes(b" " * 5000), "larger than 4096 bytes"),
        (lambda path: path.write_bytes(b"{"), "not JSON"),
        (lambda path: (path.write_bytes(b'{"after": 1}'), os.link(path, path.with_name("two"))), "hardlink"),
    ],
)
def test_a_file_that_is_a_trick_changes_nothing_and_is_mentioned(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    make(tmp_path / "retry.json")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        wish = _read(folder)
    finally:
        os.close(folder)
    assert wish.after_s is None
    assert wish.remark.startswith(" (/out/retry.json was ignored: it is ") and why in wish.remark


def test_no_file_is_no_wish(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert _read(folder).remark == ""
    finally:
        os.close(folder)
