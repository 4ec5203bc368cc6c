from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from nodes.agent.masking import Mask


def masked(pieces: list[bytes], *values: str) -> bytes:
    mask = Mask(values)
    return b"".join(map(mask.feed, pieces)) + mask.rest()


@pytest.mark.parametrize(
    ("log", "values", "shown"),
    [
        (b"key=hunter22;", ["hunter22"], b"key=***;"),
        (b"hunter22hunter22", ["hunter22"], b"******"),
        (b"a hunter22-long b", ["hunter22", "hunter22-long"], b"a *** b"),
        (b"a hunter22-lone b", ["hunter22", "hunter22-long"], b"a ***-lone b"),
        (b"abcdef ghijkl", ["abcdef", "ghijkl"], b"*** ***"),
        (b"abcdefghi", ["abcdef", "defghi"], b"***"),
        (b"token\n", ["token1\n"], b"token\n"),
        (b"say token1!", ["token1\n"], b"say ***!"),
        ("grüße an alle".encode(), ["grüße"], b"*** an alle"),
        (b"PIN 1234, code 12345.", ["1234", "12345"], b"PIN ***, code ***."),
        (b"no, not all of it", ["not"], b"no, not all of it"),
        (b"nothing here", [], b"nothing here"),
        (b"hunter2", ["hunter22"], b"hunter2"),
        (b"\xff\x00hunter22\xff", ["hunter22"], b"\xff\x00***\xff"),
    ],
)
def test_values_are_replaced_wherever_the_log_is_cut(log: bytes, values: list[str], shown: bytes) -> None:
    assert masked([log], *values) == shown
    assert masked([bytes([each]) for each in log], *values) == shown
    for at in range(len(log)):
        assert masked([log[:at], log[at:]], *values) == shown, at


def test_any_cut_of_any_log_hides_every_value() -> None:
    rng = random.Random(11)
    for _ in range(300):
        values = ["".join(rng.choices("ab", k=rng.randint(4, 9))) for _ in range(rng.randint(1, 3))]
        noise = ["".join(rng.choices("cd ", k=rng.randint(0, 4))) for _ in range(6)]
        log = "".join(part for word in noise for part in (word, " ", rng.choice(values), " ")).encode()
        pieces, rest = [], log
        while rest:
            size = rng.randint(1, 12)
            pieces.append(rest[:size])
            rest = rest[size:]
        shown = masked(pieces, *values)
        assert not any(value.encode() in shown for value in values), (values, log, shown)
        assert set(shown) <= set(b"cd *ab"), shown
        assert b"a" not in shown and b"b" not in shown


def test_what_cannot_be_a_value_is_shown_at_once() -> None:
    mask = Mask(["hunter22"])
    assert mask.feed(b"progress 10 %") == b"progress 10 %"
    assert mask.feed(b"the hunt") == b"the "
    assert mask.feed(b"ing") == b"hunting"


def test_a_long_log_of_almost_values_takes_little_memory_and_time() -> None:
    values = ["a" * 65_000 + "b", "ab" * 30_000, *(f"secret-{n:020}" for n in range(62))]
    mask = Mask(values)
    pieces = [b"a" * 16_384, b"ab" * 8192, b"secret-" * 2340]
    tracemalloc.start()
    before_s = time.process_time()
    for number in range(300):
        mask.feed(pieces[number % 3])
    took_s = time.process_time() - before_s
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024
    assert took_s < 3, "5 MB"
