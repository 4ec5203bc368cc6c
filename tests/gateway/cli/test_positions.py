"""The line of what a pointer names, in YAML and in JSON."""

from __future__ import annotations

import pytest

from gateway.cli.positions import line_of, place

YAML = b"""\
# a comment
kind: Function
metadata:
  name: f
  "a/b~c": 1
spec:
  job: {image: x,
    command: [a,
      b]}
  list:
    - one
    - two: 2
      three: 3
"""
JSON = b"""{
\t"a": {"b": [1,
\t\t2, "\\/\\ud83d"],
\t"c": 3}
}"""


@pytest.mark.parametrize(
    ("pointer", "line"),
    [
        ("", 2),
        ("/kind", 2),
        ("/metadata/name", 4),
        ("/metadata/a~1b~0c", 5),
        ("/metadata/missing", 3),
        ("/metadata/name/deeper", 4),
        ("/missing", 2),
        ("/spec/job/command", 8),
        ("/spec/job/command/1", 9),
        ("/spec/job/command/7", 8),
        ("/spec/job/command/-1", 8),
        ("/spec/list/1/three", 13),
    ],
)
def test_a_pointer_leads_to_its_line_or_to_that_around_it(pointer: str, line: int) -> None:
    assert line_of(YAML, pointer) == line


def test_json_has_lines_too() -> None:
    assert line_of(JSON.replace(b"\\ud83d", b""), "/a/b/1") == 3
    assert line_of(JSON.replace(b"\\ud83d", b""), "/a/c") == 4


@pytest.mark.parametrize("content", [JSON, b"", b"# nothing", b"\xff", b"a: ["])
def test_without_a_line_it_is_the_file_alone(content: bytes) -> None:
    assert place("f.json", content, "/a/c") == "f.json"
