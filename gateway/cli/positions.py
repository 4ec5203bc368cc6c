"""Where in a manifest's text a JSON pointer points: ``function.yaml:12``."""

from __future__ import annotations

from typing import Any


def place(source: str, content: bytes, pointer: str) -> str:
    """``source`` with the line of what ``pointer`` names, or of the nearest thing around it that is there."""
    line = line_of(content, pointer)
    return source if line is None else f"{source}:{line}"


def line_of(content: bytes, pointer: str) -> int | None:
    """Counted from 1; None for text that has no lines to tell, as standard YAML cannot read it.

    ``content`` has been read by ``functions.documents``, so that it is neither deep nor large, and JSON reads as YAML.
    """
    import yaml

    try:
        node = yaml.compose(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return None
    if node is None:
        return None
    mark = node.start_mark
    for part in pointer.split("/")[1:]:
        found = _inside(node, part.replace("~1", "/").replace("~0", "~"))
        if found is None:
            break
        mark, node = found
    return int(mark.line) + 1


def _inside(node: Any, part: str) -> tuple[Any, Any] | None:
    """Where the member or item begins (a member: its key), and its value."""
    if node.id == "mapping":
        return next(((key.start_mark, value) for key, value in node.value if key.value == part), None)
    if node.id == "sequence" and part.isdecimal() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item.start_mark, item
    return None
