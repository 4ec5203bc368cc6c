from __future__ import annotations

import gzip
import json
import tarfile
import time
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes.agent.archives import BadArchive, SavedImage, TooLarge, read_archive, unzstd
from tests.nodes.agent.saved import Saved, file, hexed, layer, special, tar

MOST = 64 * 1024 * 1024


def read(folder: Path, saved: Saved | bytes, most_bytes: int = MOST) -> SavedImage:
    path = folder / "image.tar"
    path.write_bytes(saved if isinstance(saved, bytes) else saved.archive())
    return read_archive(path, folder / "spool", most_bytes)


def written(folder: Path, image: SavedImage) -> dict[str, bytes]:
    """What the engine gets, by name."""
    path = folder / "written.tar"
    path.write_bytes(b"".join(image.chunks()))
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def test_an_image_is_written_anew_without_its_tags(tmp_path: Path) -> None:
    saved = Saved(layer(a=b"1"), layer(b=b"2" * 5000))
    saved.tags = ["alpine:latest", "registry.example.com/other:1"]
    saved.extra = [file("repositories", b'{"alpine": {}}'), file("index.json", b"{}"), file("oci-layout", b"{}")]
    image = read(tmp_path, saved)
    assert image.id == saved.id
    config = f"{saved.id.removeprefix('sha256:')}.json"
    entries = written(tmp_path, image)
    assert list(entries) == ["manifest.json", config, *saved.names]
    assert json.loads(entries["manifest.json"]) == [{"Config": config, "RepoTags": None, "Layers": saved.names}]
    assert entries[config] == saved.config_bytes
    assert [entries[name] for name in saved.names] == list(saved.layers.values())


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_compressed_layers_are_unpacked_and_are_what_their_ids_say(tmp_path: Path, pack: type[bytes]) -> None:
    content = layer(a=b"1" * 3_000_000)
    image = read(tmp_path, Saved(content, packed=pack))
    assert written(tmp_path, image)[f"{hexed(content)}.tar"] == content
    other = Saved(content, packed=lambda _: pack(layer(a=b"2")))
    with pytest.raises(BadArchive, match="other bytes"):
        read(tmp_path, other)
    with pytest.raises(BadArchive, match=r"broken|other bytes"):
        read(tmp_path, Saved(content, packed=lambda plain: pack(plain)[:-9]))


def test_the_layout_of_a_newer_docker_and_that_of_an_old_one_are_read(tmp_path: Path) -> None:
    content = layer(a=b"1")
    new = Saved(content)
    config = f"blobs/sha256/{new.id.removeprefix('sha256:')}"
    blob = f"blobs/sha256/{hexed(content)}"
    index = json.dumps([{"Config": config, "RepoTags": ["x:1"], "Layers": [blob]}]).encode()
    entries = [special("blobs/", tarfile.DIRTYPE), special("blobs/sha256/", tarfile.DIRTYPE)]
    entries += [file(config, new.config_bytes), file(blob, content), file("manifest.json", index)]
    assert read(tmp_path, tar(entries)).id == new.id

    # A layer that an image has twice is a link to itself.
    twice = Saved(content, content)
    first, second = f"{'a' * 64}/layer.tar", f"{'b' * 64}/layer.tar"
    twice.names, twice.layers = [first, second], {first: content}
    twice.extra = [special(second, tarfile.SYMTYPE, f"../{first}")]
    image = read(tmp_path, twice)
    assert [each.size for each in image.layers] == [len(content)] * 2
    assert len(written(tmp_path, image)) == 3


def test_the_same_image_is_always_the_same_bytes(tmp_path: Path) -> None:
    saved = Saved(layer(a=b"1"))
    first = b"".join(read(tmp_path, saved).chunks())
    saved.tags = ["x:2"]
    assert b"".join(read(tmp_path, saved).chunks()) == first


def hostile(name: str) -> Saved | bytes:
    saved = Saved(layer(a=b"1"))
    if name == "two images":
        saved.images = 2
    elif name == "no image":
        saved.images = 0
    elif name == "a path out":
        saved.extra = [file("../../etc/cron.d/x", b"* * * * * root x")]
    elif name == "an absolute path":
        saved.extra = [file("/etc/passwd", b"x")]
    elif name == "a link to the node's files":
        saved.extra = [special(f"{'a' * 64}/layer.tar", tarfile.SYMTYPE, "/etc/shadow")]
        saved.names = [f"{'a' * 64}/layer.tar"]
    elif name == "a link one folder up":
        saved.extra = [special(f"{'a' * 64}/layer.tar", tarfile.SYMTYPE, "../../../etc/shadow")]
    elif name == "a hard link":
        saved.extra = [special(f"{'a' * 64}/layer.tar", tarfile.LNKTYPE, saved.names[0])]
    elif name == "a device":
        saved.extra = [special(f"{'a' * 64}/layer.tar", tarfile.BLKTYPE)]
    elif name == "another layer than the configuration says":
        saved.layers = {saved.names[0]: layer(a=b"2")}
    elif name == "a layer too many":
        saved.names = saved.names * 2
    elif name == "a layer that is not there":
        saved.names = [f"{'a' * 64}.tar"]
    elif name == "a layer outside":
        saved.names = ["/etc/passwd"]
    elif name == "a file twice":
        saved.extra = [file(saved.names[0], layer(a=b"2"))]
    elif name == "a large configuration":
        saved.config["history"] = ["x" * 5_000_000]
    elif name == "a deep configuration":
        return tar([file("manifest.json", b"[" * 500_000)])
    elif name == "another system":
        saved.config["os"] = "plan9"
    elif name == "a layer that is no tar":
        saved = Saved(b"no tar at all" * 100)
    elif name == "a layer with a sparse file":
        saved = Saved(sparse())
    elif name == "a layer with a sparse file of another kind":
        saved = Saved(pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**13)}))
    elif name == "a large header":
        return long_name(2 * 1024 * 1024)
    elif name == "a size below zero":
        return negative()
    elif name == "cut off":
        return saved.archive()[:2000]
    elif name == "nothing":
        return b""
    else:
        assert name == "many entries"
        saved.extra = [special(f"{number:064x}", tarfile.DIRTYPE) for number in range(2001)]
    return saved


def sparse() -> bytes:
    """A file of 10 TB in a kilobyte."""
    entry = tarfile.TarInfo("zeros")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"\x80" + (10**13).to_bytes(11, "big")
    return checksummed(block) + bytes(1024)


def pax(attributes: dict[str, str]) -> bytes:
    entry = tarfile.TarInfo("zeros")
    entry.pax_headers = attributes
    return entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def long_name(length: int) -> bytes:
    entry = tarfile.TarInfo("x" * length)
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def negative() -> bytes:
    block = bytearray(tarfile.TarInfo("manifest.json").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12
    return checksummed(block) + bytes(1024)


def checksummed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


HOSTILE = [
    "two images", "no image", "a path out", "an absolute path", "a link to the node's files", "a link one folder up",
    "a hard link", "a device", "another layer than the configuration says", "a layer too many",
    "a layer that is not there", "a layer outside", "a file twice", "a large configuration", "a deep configuration",
    "another system", "a layer that is no tar", "a layer with a sparse file", "a layer with a sparse file of another kind",
    "a large header", "a size below zero", "cut off", "nothing", "many entries",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_docker_save_would_not_write_is_refused_at_once(tmp_path: Path, name: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(BadArchive):
        read(tmp_path, hostile(name))
    assert time.monotonic() - began_s < 2


def test_headers_that_make_regular_expressions_slow_do_not(tmp_path: Path) -> None:
    digits = b"1" * 1_000_000
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"x"
    block[124:136] = b"%011o\0" % len(digits)
    content = checksummed(block) + digits + bytes(-len(digits) % 512 + 1024)
    began_s = time.monotonic()
    with pytest.raises(BadArchive, match="broken header"):
        read(tmp_path, Saved(content))
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_a_bomb_stops_at_the_limit(tmp_path: Path, pack: type[bytes]) -> None:
    with pytest.raises(TooLarge):
        read(tmp_path, Saved(layer(zeros=bytes(8 * 1024 * 1024)), packed=pack), most_bytes=4 * 1024 * 1024)
    spool = tmp_path / "spool"
    assert not spool.exists() or spool.stat().st_size <= 5 * 1024 * 1024


def test_zstd_comes_in_pieces_and_with_a_window_of_reason() -> None:
    bomb = zstandard.compress(bytes(200_000_000))
    assert max(len(chunk) for chunk in unzstd(iter([bomb]))) <= 1024 * 1024
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=30), level=3
    ).compressobj()
    frame = wide.compress(b"x" * 1000) + wide.flush()
    with pytest.raises(BadArchive):
        list(unzstd(iter([frame])))
    with pytest.raises(BadArchive):
        list(unzstd(iter([b"no zstd"])))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_changed_in_an_archive_it_is_the_same_image_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    saved = Saved(layer(a=b"1"))
    changed = bytearray(saved.archive())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = read(tmp_path, bytes(changed))
    except BadArchive:
        return
    assert [hexed(content) for name, content in written(tmp_path, image).items() if name.endswith(".tar")] == [
        name.removesuffix(".tar") for name in saved.names
    ] or image.id != saved.id
