"""Names and ids for the shell's completion: asked from the gateway if it answers at once, else nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import typer

from gateway.cli import config
from gateway.cli.output import age

ANSWER_S = 0.7
"""Longer than this nobody wants to wait for a Tab."""
SHOWN = 50


def functions(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [
        (name, str(found.get("description") or ""))
        for found in _listed(ctx, "/v1/functions")
        if (name := str(found.get("name"))).startswith(incomplete)
    ]


def jobs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [
        (job_id, f"{found.get('function')} {found.get('status')}, {age(found.get('created_at'))}")
        for found in _listed(ctx, "/v1/jobs")
        if (job_id := str(found.get("id"))).startswith(incomplete)
    ]


def schedules(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [
        (name, f"{found.get('cron')} {found.get('timezone')}")
        for found in _listed(ctx, "/v1/schedules")
        if (name := f"{found.get('function')}/{found.get('name')}").startswith(incomplete)
    ]


def _listed(ctx: typer.Context, path: str) -> Iterator[dict[str, Any]]:
    """The newest entries; none on any trouble, since a shell has no place for an error."""
    from gateway.cli.client import Api

    chosen = _flags(ctx.params).over(_flags(ctx.find_root().params))
    try:
        with Api(config.target(chosen, os.environ), timeout_s=ANSWER_S, tries=1) as api:
            found = api.get(path, {"limit": SHOWN})["data"]
    except Exception:
        return
    yield from (one for one in found if isinstance(one, dict))


def _flags(params: dict[str, Any]) -> config.Flags:
    return config.Flags(params.get("url"), params.get("key"), params.get("project"))
