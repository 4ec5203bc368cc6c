from __future__ import annotations

import io
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.agent import archives
from nodes.agent.archives import BadArchive, TooLarge, read_archive
from nodes.agent.tars import BLOCK, BadTar, Entry, entries
from tests.nodes.agent.saved import Saved


def header(kind: bytes, content: bytes = b"", *, claims: int | None = None, name: str = "x") -> bytes:
    """One header with what follows it; ``claims`` is the size that it says it has."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[156:157] = kind
    block[124:136] = b"%011o\0" % (len(content) if claims is None else claims)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % BLOCK)


def attribute(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 4
    while len(record := b"%d %s=%s\n" % (length, key, value)) != length:
        length = len(record)
    return record


class Steps:
    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self) -> None:
        self.left -= 1
        assert self.left >= 0, "more steps than bytes allow"


def read(data: bytes) -> list[Entry]:
    return list(entries(io.BytesIO(data), 0, len(data)))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x"])
def test_a_file_has_one_extended_header_of_a_kind(kind: bytes) -> None:
    content = attribute(b"path", b"long") if kind == b"x" else b"long\0"
    extended = header(kind, content)
    assert len(read(extended + header(b"0") + extended + header(b"0"))) == 2
    with pytest.raises(BadTar, match="two headers"):
        read(extended * 2 + header(b"0"))


@pytest.mark.parametrize("longer", [b"", header(b"L", b"d/\0") + header(b"x", attribute(b"path", b"d")),
                                    header(b"x", attribute(b"path", b"d/"))])  # fmt: skip
def test_nothing_hides_in_what_docker_takes_for_a_folder(longer: bytes) -> None:
    hidden = header(b"0", name="hidden")
    found = read(longer + header(b"\0", hidden, name="d" if longer else "d/"))
    assert [(each.name, each.kind) for each in found] == [("d/", b"5"), ("hidden", b"0")]


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_an_extended_header_is_of_a_bounded_size(kind: bytes) -> None:
    with pytest.raises(BadTar, match="too large"):
        read(header(kind, b"a" * 1024 * 1025) + header(b"0"))


def test_a_files_size_in_its_attributes_is_not_that_of_a_header_for_all_files() -> None:
    size = header(b"x", attribute(b"size", b"1024"))
    shared = header(b"g", attribute(b"comment", b"from git"))
    found = read(size + shared + header(b"0", b"content", name="after"))
    assert [(each.kind, each.name) for each in found] == [(b"g", "x"), (b"0", "after")]


def endless(count: int) -> bytes:
    """Headers that belong to no file, of which a reader that only counts files sees none."""
    return header(b"K", b"a\0") + header(b"L", b"a\0") + header(b"x", attribute(b"a", b"b") * count)


def test_headers_and_attributes_without_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_STEPS", 1000)
    path = Saved(endless(2000) + header(b"0")).write(tmp_path)
    with pytest.raises(TooLarge, match="more headers"):
        read_archive(path, tmp_path / "spool", 2**30)
    path.write_bytes(endless(2000))  # and in the archive around the layers
    with pytest.raises(TooLarge, match="more headers"):
        read_archive(path, tmp_path / "spool", 2**30)


def test_an_archive_that_is_given_up_is_left_between_two_headers(tmp_path: Path) -> None:
    path, stop = tmp_path / "image.tar", threading.Event()
    path.write_bytes(header(b"L", b"manifest.json\0") * 2)
    stop.set()
    with pytest.raises(BadArchive, match="given up"):
        read_archive(path, tmp_path / "spool", 2**30, stop.is_set)


PIECES = st.one_of(
    st.builds(header, st.sampled_from([b"0", b"\0", b"1", b"2", b"5", b"7"]), st.binary(max_size=700)),
    st.builds(header, st.sampled_from([b"L", b"K", b"g", b"x", b"S", b"V"]), st.binary(max_size=700)),
    st.builds(header, st.just(b"x"), st.lists(st.builds(attribute, st.sampled_from([b"path", b"size", b"a"]),
                                                        st.binary(max_size=12))).map(b"".join)),
    st.builds(header, st.sampled_from([b"0", b"x", b"L", b"g"]), st.just(b""), claims=st.integers(0, 8**11 - 1)),
    st.binary(max_size=BLOCK),
    st.just(bytes(BLOCK)),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=12), st.integers(0, 3))
def test_whatever_a_tar_holds_it_is_read_in_steps_that_its_bytes_bound(pieces: list[bytes], cut: int) -> None:
    data = b"".join(pieces)
    data = data[: len(data) - cut * 100] if cut else data
    # A header takes a block, an attribute four bytes ("4 =\n").
    steps = Steps(1 + len(data) // BLOCK + len(data) // 4)
    found: list[Entry] = []
    try:
        for entry in entries(io.BytesIO(data), 0, len(data), steps):
            assert entry.offset + entry.size <= len(data)
            assert not found or entry.offset > found[-1].offset
            found.append(entry)
    except BadTar:
        pass
    assert len(found) <= len(data) // BLOCK


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("abcé/", min_size=1, max_size=300), st.binary(max_size=600)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_what_others_write_is_read_as_they_mean_it(files: list[tuple[str, bytes]], form: int) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        meant = []
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            try:
                archive.addfile(entry, io.BytesIO(content))
            except ValueError:  # too long a name for this form
                continue
            meant.append((name, content))
    data = packed.getvalue()
    assert [(each.name, data[each.offset :][: each.size]) for each in read(data)] == meant
