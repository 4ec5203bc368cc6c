"""Writes docs/reference/settings.md from the settings themselves: ``.venv/bin/python scripts/settings_reference.py``.

A test holds the page current.
"""
# ruff: noqa: E501  rows of a table cannot be wrapped

from __future__ import annotations

import types
import typing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from functions.quantities import format_duration
from gateway.settings import Settings

PAGE = Path(__file__).parent.parent / "docs/reference/settings.md"

HEAD = """\
# Settings

Every process reads its settings from environment variables, once, when it starts. A wrong or missing one is reported
by name, all of them at once, and the process exits with status 2. Values are never printed or logged.

This page is made from the code by `scripts/settings_reference.py`.

## Gateway and scheduler

`rgrid gateway` and `rgrid scheduler` read the same variables; give both the same values. `rgrid migrate` needs
`RGRID_DATABASE_URL` alone.

"""

REST = """
## Node

Read by `rgrid node`. Options on its command line go before them.

| variable | default | meaning |
| --- | --- | --- |
| `RGRID_GATEWAY_URL` | required | URL of the gateway. https, unless it is on this machine or the network is private. |
| `RGRID_JOIN_TOKEN` | | One-time token, needed at the first start only; afterwards the node has a credential of its own. |
| `RGRID_NODE_DIR` | `/var/lib/rgrid-node` | Where the node keeps its credential, its leases and its jobs' files. |
| `RGRID_NODE_NAME` | the host name | Name of the node in lists. |
| `RGRID_SLOTS` | number of CPUs | Jobs that run side by side, 1 to 1024. |
| `RGRID_DRAIN_S` | 30 | Seconds that running jobs have after SIGTERM before they are handed back. |
| `RGRID_LEAVE_ON_EXIT` | 0 | 1: the machine goes for good when the agent ends, its credential dies. |
| `RGRID_ENFORCE_FLOORS` | 0 | 1: refuse to start on a kernel, Docker or runc that is too old, instead of warning. |
| `RGRID_INPUT_ALLOW` | `RGRID_CALLBACK_ALLOW` | CIDRs or host names, comma-separated, that inputs may come from although they are private. Development only. |
| `RGRID_JOB_DNS` | the machine's, if public | Name servers of jobs with `network: true`, comma-separated IPv4 addresses. A private one has to be named here. |
| `RGRID_JOB_DENY` | | Public CIDRs, comma-separated, that jobs with `network: true` must not reach, such as your own machines. |
| `RGRID_JOB_ALLOW` | | Private CIDRs, comma-separated, that jobs with `network: true` may reach all the same. For development only. |
| `RGRID_IMAGES_GIB` | half of Docker's disk | What images that jobs brought to this node may take, in GiB. Over it, or with less than 2 GiB free, those that no job uses go, the longest unused first. Images that you put there stay. |
| `DOCKER_HOST` | `unix:///var/run/docker.sock` | Socket of the Docker engine, on this machine. |

## Everything on one machine

`rgrid up` reads `RGRID_DATA_DIR` (default `/var/lib/rgrid`), `RGRID_HOST`, `RGRID_PORT`, `RGRID_SLOTS` and
`RGRID_BOOTSTRAP_KEY`, and hands every other variable above on to the processes that it starts. Where the database and
the store are, their keys, `RGRID_SECRET_KEY` and `RGRID_MAX_SLOTS` it decides itself: it says so when one of them is
set. A bootstrap key that it is given once is kept in `--data-dir`, and stays the instance's until it is given
another. `RGRID_SLOT_MEMORY` defaults to the machine's memory divided by the slots there, and at least 2 GiB.

## Command line

| variable | meaning |
| --- | --- |
| `RGRID_URL` | The gateway that commands talk to. Default: the active context of `~/.config/rgrid/config.toml`. |
| `RGRID_API_KEY` | The API key. |
| `RGRID_PROJECT` | One of several projects. |
| `RGRID_DEBUG` | 1: show where an internal error of the command line comes from. |
"""


def page() -> str:
    rows = ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [_row(name, field) for name, field in Settings.model_fields.items()]
    return HEAD + "\n".join(rows) + "\n" + REST


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    if bounds := _bounds(field):
        meaning += f" {bounds}."
    return f"| `RGRID_{name.upper()}` | {_type(field.annotation)} | {_default(field)} | {meaning} |"


def _type(annotation: object) -> str:
    if isinstance(annotation, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is tuple:
        return "list"
    if typing.get_origin(annotation) is dict:
        return "pairs"
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    names = {
        SecretStr: "secret",
        str: "text",
        int: "integer",
        float: "number",
        Decimal: "number",
        bool: "0 or 1",
        timedelta: "duration",
        Path: "path",
    }
    return names[annotation]  # type: ignore[index]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or field.default in ((), {}, ""):
        return ""
    if isinstance(field.default, tuple):
        return f"`{','.join(field.default)}`"
    if isinstance(field.default, timedelta):
        return f"`{format_duration(field.default)}`"
    return f"`{int(field.default) if isinstance(field.default, bool) else field.default}`"


def _bounds(field: FieldInfo) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = [f"{words[kind]} {getattr(rule, kind)}" for rule in field.metadata for kind in words if hasattr(rule, kind)]
    return ", ".join(found).capitalize()


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
