from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.documents import DEPTH, load_json, load_yaml, pointer, shown, strings
from functions.errors import Invalid, Malformed, RGridError

NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "only spaces": b" \n\t",
    "not JSON": b"hello",
    "truncated object": b'{"a": 1',
    "truncated text": b'{"a": "b',
    "trailing comma in an object": b'{"a": 1,}',
    "trailing comma in a list": b"[1,]",
    "line comment": b'{"a": 1} // no',
    "block comment": b'/* no */ {"a": 1}',
    "two values": b"{} {}",
    "single quotes": b"{'a': 1}",
    "UTF-8 byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a": 1}'.encode("utf-16-le"),
    "UTF-16 big endian": '{"a": 1}'.encode("utf-16-be"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "UTF-32 without a mark": '{"a": 1}'.encode("utf-32-le"),
    "invalid UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'{"a": "\xc0\x80"}',
    "surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "raw NUL": b'{"a": "\x00"}',
    "raw newline in text": b'{"a": "\n"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[Infinity]",
    "minus Infinity": b"[-Infinity]",
    "too large for a float": b"[1e999]",
    "negative and too large": b"[-1e999]",
    "integer of 5,000 digits": b"[" + b"9" * 5000 + b"]",
    "float of 5,000 digits": b"[0." + b"9" * 5000 + b"]",
    "leading zero": b"[01]",
    "plus sign": b"[+1]",
    "hexadecimal": b"[0x1]",
    "duplicate key": b'{"a": 1, "a": 2}',
    "duplicate key, spelled otherwise": b'{"a": 1, "\\u0061": 2}',
    "duplicate key deep inside": b'[{"b": {"a": 1, "a": 1}}]',
    "duplicate surrogate key": b'{"\\ud800": 1, "\\ud800": 2}',
    "nesting of lists": b"[" * (DEPTH + 2) + b"]" * (DEPTH + 2),
    "nesting of 100,000": b"[" * 100_000,
    "closed nesting of 100,000": b"[" * 100_000 + b"]" * 100_000,
    "nesting of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        load_json(data)


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b'{"a": "x\\u0000y"}', "/a"),
        (b'{"a": [1, "\\ud800"]}', "/a/1"),
        (b'{"a/b": {"~": "\\udfff"}}', "/a~1b/~0"),
        (b'{"a": {"x\\u0000": 1}}', "/a"),
        (b'{"\\uD800": "\\u0000"}', ""),
        (b'"\\u0000"', ""),
        (b'"\\udc00\\ud800"', ""),
    ],
)
def test_text_that_cannot_be_stored_is_invalid_with_its_place(data: bytes, at: str) -> None:
    with pytest.raises(Invalid) as caught:
        load_json(data)
    assert [error.pointer for error in caught.value.errors] == [at]
    assert caught.value.errors[0].message.encode()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"null", None),
        (b" [1, -0, 1.5, 1e3] ", [1, 0, 1.5, 1000.0]),
        (b"[9223372036854775808]", [2**63]),
        (b"[" + b"9" * 200 + b"]", [int("9" * 200)]),
        (b'"\\ud83d\\ude00 \\u00e9"', "😀 é"),
        ('{"ключ": "значение"}'.encode(), {"ключ": "значение"}),
        (b'{"a": "\\\\u0000"}', {"a": "\\u0000"}),
        (b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}', {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}),
    ],
)
def test_good_json_is_read(data: bytes, value: Any) -> None:
    assert load_json(data) == value


@pytest.mark.parametrize("load", [load_json, load_yaml])
def test_nesting_at_the_limit_is_read_and_one_more_is_not(load: Any) -> None:
    assert load(b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1))
    with pytest.raises(Malformed, match="nested"):
        load(b"[" * (DEPTH + 2) + b"]" * (DEPTH + 2))


NOT_YAML: dict[str, bytes] = {
    "empty": b"",
    "only a comment": b"# nothing\n",
    "only a marker": b"---\n...\n---\n",
    "tab as indent": b"a:\n\t- b",
    "unclosed list": b"a: [1, 2",
    "two documents": b"a: 1\n---\nb: 2\n",
    "an anchor": b"a: &x 1\n",
    "an alias": b"a: &x 1\nb: *x\n",
    "an alias of nothing": b"a: *x\n",
    "laughing aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
    "a Python tag": b"a: !!python/object/apply:os.system [id]\n",
    "a plain tag": b"a: !!str 1\n",
    "a non-specific tag": b"a: ! 1\n",
    "a duplicate key": b"a: 1\na: 2\n",
    "a duplicate key in flow style": b"{a: 1, a: 2}",
    "a list as a key": b"? [a, b]\n: 1\n",
    "a mapping as a key": b"{{a: 1}: 2}",
    "infinity": b"a: .inf\n",
    "not a number": b"a: .nan\n",
    "too large": b"a: 1e999\n",
    "many digits": b"a: " + b"9" * 5000,
    "many hexadecimal digits": b"a: 0x" + b"f" * 5000,
    "byte order mark": b"\xef\xbb\xbfa: 1",
    "UTF-16": "a: 1".encode("utf-16"),
    "invalid UTF-8": b"a: \xff",
    "control character": b"a: \x07",
    "deep lists": b"[" * 100_000,
    "deep dashes": b"- " * 100_000,
    "deep mappings": b"{a: " * 100_000,
    "too many values": b"[" + b"1," * 200_000 + b"1]",
}


@pytest.mark.parametrize("data", NOT_YAML.values(), ids=NOT_YAML.keys())
def test_what_is_not_plain_yaml_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        load_yaml(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("12", 12),
        ("+12", 12),
        ("-0", 0),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-02-29", "2024-02-29"),
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00Z"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("'1'", "1"),
        ('"null"', "null"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("10m", "10m"),
        ("=", "="),
        ("[on, 1]", ["on", 1]),
    ],
)
def test_yaml_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = load_yaml(f"key: {text}".encode())["key"]
    assert (found, type(found)) == (value, type(value))


def test_yaml_keys_are_text_as_written() -> None:
    assert load_yaml(b"on: 1\n1: 2\nnull: 3\n<<: 4\n") == {"on": 1, "1": 2, "null": 3, "<<": 4}


def test_nul_in_yaml_text_is_invalid_with_its_place() -> None:
    with pytest.raises(Invalid) as caught:
        load_yaml(b'a:\n  - ok\n  - "x\\0y"\n')
    assert [error.pointer for error in caught.value.errors] == ["/a/1"]


def test_yaml_faults_name_line_and_column() -> None:
    with pytest.raises(Malformed, match=r"“a” stands twice .* at line 3, column 1"):
        load_yaml(b"a: 1\nb: 2\na: 3\n")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert load_json(json.dumps(value).encode()) == value


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for load in (load_json, load_yaml):
        try:
            load(data)
        except RGridError as error:
            assert error.message.encode()


@given(st.text(st.sampled_from("{}[]:,-?&*!|>#%@`\"'\\ \n\tab01.~eu\x00")))
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    for load in (load_json, load_yaml):
        try:
            json.dumps(load(text.encode()), allow_nan=False).encode()
        except RGridError as error:
            assert error.message.encode()


def test_pointers_are_escaped() -> None:
    assert pointer("a/b", "~", 0) == "/a~1b/~0/0"


def test_shown_text_is_short_and_printable() -> None:
    assert shown("x" * 1000) == "“" + "x" * 80 + "…”"
    assert shown("\ud800\n") == '"\\ud800\\n"'


def test_strings_are_found_in_order_with_their_paths() -> None:
    assert list(strings({"a": ["x", 1, {"b": "y"}], "c": "z"})) == [
        (("a", 0), "x"), (("a", 2, "b"), "y"), (("c",), "z"),
    ]  # fmt: skip
