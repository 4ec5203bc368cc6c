from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.agent.progress import LINE_CAP_BYTES, ProgressReader

FFMPEG = b"""\
ffmpeg version 7.0.2-static Copyright (c) 2000-2024 the FFmpeg developers
Input #0, mov,mp4,m4a,3gp,3g2,mj2, from '/in/video.mp4':
  Duration: 00:01:40.00, start: 0.000000, bitrate: 1205 kb/s
  Stream #0:0[0x1](und): Video: h264 (Main), yuv420p, 640x360, 959 kb/s, 25 fps
"""
STATS = b"frame=  250 fps= 25 q=28.0 size=     512kB time=%s bitrate= 819.2kbits/s speed=1.02x    \r"

CASES: list[tuple[str, bytes, float | None]] = [
    ("nothing", b"", None),
    ("plain text", b"starting up\nreading config\n", None),
    ("ffmpeg before its first statistics", FFMPEG, None),
    ("ffmpeg statistics", FFMPEG + STATS % b"00:00:25.00", 0.25),
    ("ffmpeg statistics, the last counts", FFMPEG + STATS % b"00:00:25.00" + STATS % b"00:00:50.00", 0.5),
    ("ffmpeg goes past the end", FFMPEG + STATS % b"00:01:41.12", 1.0),
    ("ffmpeg time not known yet", FFMPEG + STATS % b"N/A", None),
    ("ffmpeg negative time", FFMPEG + STATS % b"-00:00:00.02", None),
    ("ffmpeg without a duration", b"  Duration: N/A, start: 0.0\n" + STATS % b"00:00:25.00", None),
    (
        "ffmpeg with two inputs takes the longer",
        FFMPEG + b"Input #1, wav\n  Duration: 00:00:10.00, start\n" + STATS % b"00:00:50.00",
        0.5,
    ),
    (
        "a second ffmpeg starts anew",
        FFMPEG + STATS % b"00:01:40.00" + FFMPEG.replace(b"01:40", b"00:10") + STATS % b"00:00:05.00",
        0.5,
    ),
    (
        "-progress",
        FFMPEG + b"out_time_us=25000000\nout_time_ms=25000000\nout_time=00:00:25.000000\nprogress=continue\n",
        0.25,
    ),
    ("-progress with the misnamed unit alone", FFMPEG + b"out_time_ms=50000000\n", 0.5),
    ("-progress ends", FFMPEG + b"out_time_us=25000000\nprogress=end\n", 1.0),
    (
        "-progress overflows",
        FFMPEG + b"out_time_us=-9223372036854775807\nout_time=-577014:32:22.775807\n",
        None,
    ),
    (
        "an encoder's percentages are none",
        FFMPEG + STATS % b"00:00:50.00" + b"[libx264 @ 0x55d0c8] i16 v,h,dc,p: 22% 25%\n",
        0.5,
    ),
    ("an encoder's percentages alone are none", b"[libx264 @ 0x55d0c8] i16 v,h,dc,p: 22% 25%\n", None),
    ("ffmpeg is not overruled", FFMPEG + STATS % b"00:00:50.00" + b"disk 93% used, 1/2 done\n", 0.5),
    ("tqdm", b"\r 42%|\xe2\x96\x88\xe2\x96\x88\xe2\x96\x88   | 42/100 [00:01<00:02, 30.0it/s]", 0.42),
    ("tqdm redrawn", b"\r 42%|#  | 42/100 [00:01<00:02]\r 43%|#  | 43/100 [00:01<00:02]", 0.43),
    ("tqdm with a description", b"train:  7%|7         | 7/100 [00:01<00:20, 4.5it/s, acc=93.1%]", 0.07),
    ("tqdm ends", b"100%|####| 100/100 [00:04<00:00, 25it/s]\n", 1.0),
    ("percent", b"progress: 12.5%\n", 0.125),
    ("percent with a space", b"done 12 %\n", 0.12),
    ("percent zero", b"0%\n", 0.0),
    ("yt-dlp", b"\r[download]  45.3% of 10.00MiB at 1.00MiB/s ETA 00:05", 0.453),
    ("more than all", b"cpu 240%\n", None),
    ("a negative percentage", b"change: -15%\n", None),
    ("an escaped URL", b"GET /a%20b 10%20c\n", None),
    ("a version in percent", b"v1.2.3%\n", None),
    ("counter", b"step 3/10\n", 0.3),
    ("counter in brackets", b"[3/10] COPY . .\n", 0.3),
    ("counter with spaces", b"3 / 10 files\n", 0.3),
    ("counter with a colon", b"Epoch 3/10: loss=0.12\n", 0.3),
    ("counter at a sentence's end", b"chunk 3/10.\n", 0.3),
    ("counter redrawn", b"\r1/4\r2/4\r3/4\r", 0.75),
    ("counter all done", b"10/10\n", 1.0),
    ("more than there are", b"24/7 support\n", None),
    ("of one", b"1/1\n", None),
    ("a path", b"/data/1/2/3\n", None),
    ("a date", b"2024/05/01 12:00\n", None),
    ("a protocol", b"HTTP/1.1 200\n", None),
    ("sizes", b"12.5MB/30MB\n", None),
    ("a rate", b"30/100it\n", None),
    ("by zero", b"0/0\n", None),
    ("clock ratio", b"00:30/45\n", None),
    ("unfinished number at the end", b"step 3/1", None),
    ("unfinished line, finished number", b"step 3/10 ", 0.3),
    ("huge numbers", b"9" * 400 + b"/" + b"9" * 400 + b"\n", None),
    ("garbage", bytes(range(256)) * 20, None),
    ("windows line ends", b"step 3/10\r\nstep 4/10\r\n", 0.4),
    ("a line longer than what is kept", b"x" * 3 * LINE_CAP_BYTES + b" 50%\n", 0.5),
]


@pytest.mark.parametrize(("output", "value"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_progress_is_read_from_output(output: bytes, value: float | None) -> None:
    assert ProgressReader().feed(output) == (None if value is None else pytest.approx(value))


# A share at the very end is taken at its word, or a bar that is redrawn once a minute would always be one
# step behind.
CUT = [case for case in CASES if case[0] != "an escaped URL"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(("output", "value"), [case[1:] for case in CUT], ids=[case[0] for case in CUT])
def test_where_the_output_is_cut_does_not_matter(output: bytes, value: float | None, size: int) -> None:
    reader = ProgressReader()
    for start in range(0, len(output), size):
        reader.feed(output[start : start + size])
    assert reader.value == (None if value is None else pytest.approx(value))


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_garbage_is_never_an_error_and_a_value_is_a_share(pieces: list[bytes]) -> None:
    reader = ProgressReader()
    for piece in pieces:
        value = reader.feed(piece)
        assert value is None or 0 <= value <= 1


@given(st.text(alphabet="0123456789%/: .\r\n=timeDuraon[]|", max_size=200))
def test_what_looks_like_progress_is_never_an_error(text: str) -> None:
    value = ProgressReader().feed(text.encode())
    assert value is None or 0 <= value <= 1


def test_a_program_that_never_ends_its_line_does_not_make_the_reader_grow() -> None:
    reader = ProgressReader()
    for _ in range(1000):
        reader.feed(b"." * 1024)
    assert len(reader._rest) <= LINE_CAP_BYTES
