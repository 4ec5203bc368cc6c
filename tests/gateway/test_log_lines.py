"""Cutting a log into lines: the same lines however the bytes come, and from wherever one goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import log_lines
from gateway.log_lines import LineSplitter

TABLE = {
    b"": [],
    b"a": ["a"],
    b"a\n": ["a"],
    b"a\nb": ["a", "b"],
    b"\n\n": ["", ""],
    b"a\r\nb\r\n": ["a", "b"],
    b"10%\r20%\r30%\n": ["10%", "20%", "30%"],
    b"\r10%\r20%": ["10%", "20%"],
    b"a\n\r\nb": ["a", "", "b"],
    b"a\r\r\nb": ["a", "", "b"],
    b"a\r": ["a"],
    b"\r": [],
    "für\n€".encode(): ["für", "€"],
    b"\xff\xfe\n": ["\ufffd\ufffd"],
    b"a\0b\x1b[0m\n": ["a\0b\x1b[0m"],
}
LOG = st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", "ü€".encode(), b"\xe2", b"\0"]), max_size=30).map(
    b"".join
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def lines_of(pieces: list[bytes], position: int = 0, before: bytes = b"") -> list[tuple[int, str]]:
    splitter = LineSplitter(position, before)
    found = [line for piece in pieces for line in splitter.feed(piece)]
    return found + list(splitter.feed(b"", last=True))


@pytest.mark.parametrize("data", TABLE)
def test_lines_end_in_lf_crlf_or_cr(data: bytes) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        found = lines_of(pieces)
        assert [line for _, line in found] == TABLE[data]
        assert all(0 < position <= len(data) for position, _ in found)


def test_a_line_of_progress_is_there_as_soon_as_its_cr_has_come() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"10%\r")) == [(4, "10%")]
    assert list(splitter.feed(b"20%")) == []
    assert list(splitter.feed(b"\r")) == [(8, "20%")]
    assert list(splitter.feed(b"\nnext\n")) == [(14, "next")]


@given(LOG, st.lists(st.integers(0, 5), max_size=20))
def test_the_lines_do_not_depend_on_how_the_bytes_come(data: bytes, sizes: list[int]) -> None:
    assert [line for _, line in lines_of(cut(data, sizes))] == [line for _, line in lines_of([data])]


@given(LOG, st.lists(st.integers(0, 5), max_size=20), st.integers(4, 9))
def test_going_on_behind_any_line_gives_the_lines_that_are_missing(data: bytes, sizes: list[int], cap: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_lines, "LINE_CAP", cap)
        whole = lines_of(cut(data, sizes))
        for index, (position, _) in enumerate(whole):
            rest = lines_of([data[position:]], position, data[position - 1 : position])
            assert [line for _, line in rest] == [line for _, line in whole[index + 1 :]]


def test_a_line_without_end_comes_in_pieces_that_cut_no_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "LINE_CAP", 4)
    assert lines_of(["aa€€b\n".encode()]) == [(2, "aa"), (5, "€"), (10, "€b")]
    assert lines_of([b"\x80" * 9]) == [(4, "\ufffd" * 4), (8, "\ufffd" * 4), (9, "\ufffd")]
    assert lines_of([b"abcd\r\nabcd\n"]) == [(6, "abcd"), (11, "abcd")]
    splitter = LineSplitter()
    assert list(splitter.feed(b"abcdefgh")) == [(4, "abcd")]
