from __future__ import annotations

import pytest

from nodes.agent.attached import Frames


def frame(payload: bytes, stream: int = 1) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


STREAM = frame(b"one\n") + frame(b"two\n", 2) + frame(b"") + frame(b"x" * 300) + frame(b"\x01\0\0\0\0\0\0\x05")


@pytest.mark.parametrize("piece", [1, 3, 7, 8, 9, 64, 10_000])
def test_the_payload_is_the_same_however_the_stream_is_cut(piece: int) -> None:
    frames = Frames()
    got = b"".join(frames.feed(STREAM[start : start + piece]) for start in range(0, len(STREAM), piece))
    assert got == b"one\ntwo\n" + b"x" * 300 + b"\x01\0\0\0\0\0\0\x05"
