"""Strict readers of JSON and YAML: only what every reader would understand in the same way comes through.

Refused as ``Malformed``: not UTF-8, a byte order mark, duplicate keys, NaN and infinities, numbers of more
than ``DIGITS`` characters, nesting deeper than ``DEPTH``; in YAML also tags, anchors, aliases and several
documents. Refused as ``Invalid`` with a pointer: text that the database cannot hold (NUL, half of a surrogate
pair). Whatever the bytes are, nothing but an ``RGridError`` comes out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from functions.errors import FieldError, Invalid, Malformed

DEPTH = 64
DIGITS = 256
YAML_VALUES = 30_000
"""YAML costs a hundred times what JSON does, so that one document must not hold up everybody else's."""
ERRORS = 20
"""No more faults than this are listed for one document."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAYBE_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SPACE = re.compile(r"[ \t\n\r]*")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it

_YAML_WORDS: dict[str, bool | None] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_YAML_INT = re.compile(r"[-+]?[0-9]+")
_YAML_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_YAML_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_YAML_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def load_json(data: bytes) -> Any:
    """The value of one JSON text (RFC 8259, UTF-8)."""
    text = _decode(data)
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(error) from None
    except RecursionError:
        raise _too_deep() from None
    _check_json(value, text)
    return value


def json_items(data: bytes) -> Iterator[tuple[Any, int]]:
    """The items of a JSON array, one after the other, with their length as text; the array is never made as a whole.

    Raises as ``load_json`` does, when it gets there; pointers are into the item.
    """
    text = _decode(data)
    at = _past_space(text, 0)
    if text[at] != "[":
        load_json(data)
        raise Invalid("not a list", errors=[FieldError("", "not a list")])
    at = _past_space(text, at + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        try:
            value, end = _JSON.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _not_json(error) from None
        except RecursionError:
            raise _too_deep() from None
        _check_json(value, text[at:end])
        yield value, end - at
        at = _past_space(text, end)
        closed = text[at : at + 1] == "]"
        if not closed:
            if text[at : at + 1] != ",":
                raise _not_json(json.JSONDecodeError("Expecting ',' delimiter", text, at))
            at = _past_space(text, at + 1)
    if _past_space(text, at + 1) != len(text):
        raise _not_json(json.JSONDecodeError("Extra data", text, at + 1))


def json_lines(data: bytes) -> Iterator[tuple[Any, int]]:
    """The values of NDJSON, one a line, with their length in bytes. Blank lines are none.

    Raises as ``load_json`` does, when it gets there; pointers are into the value.
    """
    start, number = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        line = data[start:end]
        start, number = end + 1, number + 1
        if line.strip(b" \t\r"):
            try:
                yield load_json(line), len(line)
            except Malformed as error:
                raise Malformed(f"line {number}: {error.message}") from None


def _not_json(error: json.JSONDecodeError) -> Malformed:
    return Malformed(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _check_json(value: Any, text: str) -> None:
    # Each level needs a bracket and bad text needs an escape: most bodies have too few of both for a walk.
    if text.count("[") + text.count("{") > DEPTH:
        _check_depth(value)
    if _MAYBE_UNSTORABLE.search(text):
        _check_text(value)


def load_yaml(data: bytes) -> Any:
    """The value of one YAML 1.2 document, as far as JSON can say it; ``on``, ``yes`` and dates are text."""
    text = _decode(data)
    try:
        value = _compose(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        where = _where(error.problem_mark) if error.problem_mark else ""
        raise Malformed(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise Malformed(f"not YAML: {getattr(error, 'reason', 'it cannot be read')}") from None
    _check_text(value)
    return value


def pointer(*path: str | int) -> str:
    """An RFC 6901 JSON pointer: ``pointer("spec", "a/b", 0)`` is ``/spec/a~1b/0``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def shown(text: str, limit: int = 80) -> str:
    """Text for a message: quoted, escaped to plain ASCII where it is not printable, and cut."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return f"“{cut}”" if cut.isprintable() else json.dumps(cut)


def merge_patch(target: Any, patch: Any) -> Any:
    """``target`` as RFC 7396 changes it: keys given replace, ``null`` takes away, objects are merged."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def strings(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text in a JSON value with its path, keys not included, in order."""
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            stack.extend(((*path, key), child) for key, child in reversed(item.items()))
        elif isinstance(item, list):
            stack.extend(((*path, index), child) for index, child in reversed(list(enumerate(item))))


def _decode(data: bytes) -> str:
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Malformed("it starts with a byte order mark: send plain UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start}") from None
    if not text or text.isspace():
        raise Malformed("it is empty")
    return text


def _too_deep() -> Malformed:
    return Malformed(f"nested deeper than {DEPTH} levels")


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not a JSON number")


def _check_digits(number: str) -> None:
    if len(number) > DIGITS:
        raise Malformed(f"a number has more than {DIGITS} digits")


def _integer(text: str) -> int:
    _check_digits(text)
    return int(text)


def _float(text: str) -> float:
    _check_digits(text)
    value = float(text)
    if math.isinf(value):
        raise Malformed(f"{text} is too large for a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"the key {shown(key)} stands twice in one object")
            seen.add(key)
    return value


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer, parse_float=_float
)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _check_text(value: Any) -> None:
    """Refuse text that PostgreSQL cannot store; a bad key is pointed at by the object that has it."""
    errors: list[FieldError] = []
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while stack and len(errors) < ERRORS:
        path, item = stack.pop()
        if isinstance(item, str):
            if _UNSTORABLE.search(item):
                errors.append(FieldError(pointer(*path), _unstorable("the text")))
        elif isinstance(item, dict):
            bad = [key for key in item if _UNSTORABLE.search(key)]
            if bad:
                errors.append(FieldError(pointer(*path), _unstorable("a key")))
            stack.extend(((*path, key), child) for key, child in reversed(item.items()) if key not in bad)
        elif isinstance(item, list):
            stack.extend(((*path, index), child) for index, child in reversed(list(enumerate(item))))
    if errors:
        raise Invalid("it has text that cannot be stored", code="invalid_text", errors=errors)


def _unstorable(what: str) -> str:
    return f"{what} has a NUL character or half of a surrogate pair"


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not been read. ``key`` waits for its value."""

    value: dict[str, Any] | list[Any]
    key: str | None = None


def _compose(events: Iterable[Any]) -> Any:
    """Build the value from libyaml's events, without recursion and without YAML's own types."""
    roots: list[Any] = []
    open_ = [_Open(roots)]
    for count, event in enumerate(events):
        if count > YAML_VALUES:
            raise Malformed(f"more than {YAML_VALUES} values: send JSON")
        _refuse_decorations(event)
        if isinstance(event, yaml.DocumentStartEvent) and roots:
            raise Malformed(f"one document is wanted, and a second one starts{_where(event.start_mark)}")
        if isinstance(event, yaml.ScalarEvent):
            _add(open_[-1], event)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_) > DEPTH + 1:
                raise _too_deep()
            open_.append(_Open({} if isinstance(event, yaml.MappingStartEvent) else []))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = open_.pop().value
            _place(open_[-1], done, event)
    if not roots:
        raise Malformed("it is empty")
    return roots[0]


def _refuse_decorations(event: Any) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise Malformed(f"anchors and aliases are not taken: write the value out{_where(event.start_mark)}")
    if getattr(event, "tag", None) is not None:
        raise Malformed(f"tags are not taken{_where(event.start_mark)}")


def _add(parent: _Open, event: Any) -> None:
    """A scalar is the next key of a mapping that waits for one, and a value anywhere else."""
    if isinstance(parent.value, list) or parent.key is not None:
        _place(parent, _scalar(event), event)
        return
    if event.value in parent.value:
        where = _where(event.start_mark)
        raise Malformed(f"the key {shown(event.value)} stands twice in one mapping{where}")
    parent.key = event.value


def _place(parent: _Open, child: Any, event: Any) -> None:
    if isinstance(parent.value, list):
        parent.value.append(child)
    elif parent.key is None:
        raise Malformed(f"a key must be plain text{_where(event.start_mark)}")
    else:
        parent.value[parent.key] = child
        parent.key = None


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # quoted or a block: text, whatever it looks like
        return text
    if text in _YAML_WORDS:
        return _YAML_WORDS[text]
    if _YAML_INT.fullmatch(text):
        return _integer(text)
    if _YAML_BASED.fullmatch(text):
        _check_digits(text)
        return int(text, 0)
    if _YAML_FLOAT.fullmatch(text):
        return _float(text)
    if _YAML_INFINITE.fullmatch(text):
        raise Malformed(f"{text} is not a number that JSON knows{_where(event.start_mark)}")
    return text


def _where(mark: Any) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}"
