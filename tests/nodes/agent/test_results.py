from __future__ import annotations

from typing import Any

import pytest

from nodes.agent.results import DEPTH, NotAResult, parse_result


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "\\u00e9"]}', {"a": [1, 2.5, None, True, "é"]}),
        (b" null\n", None),
        (b'"text"', "text"),
        (b"[" * DEPTH + b"]" * DEPTH, None),
        (b"9007199254740993", 2**53 + 1),
    ],
)
def test_any_json_value_is_a_result(data: bytes, value: Any) -> None:
    result = parse_result(data)
    assert value is None or result == value


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not JSON"),
        (b"{", "line 1"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"1 2", "not JSON"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"1e999", "too large"),
        (b"9" * 5000, "digits"),
        (b"0." + b"1" * 5000, "digits"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b'"\\u0000"', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'["\\ud800"]', "surrogate"),
        (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), "deeper"),
        (b"[" * 100_000, "deeper"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "deeper"),
    ],
)
def test_what_another_reader_would_see_differently_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(NotAResult, match=word):
        parse_result(data)
