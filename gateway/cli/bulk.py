"""Cancelling and retrying all jobs that filters fit: asked about first, then called until nothing is left."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from gateway.cli.failures import Failed

if TYPE_CHECKING:
    from gateway.cli.client import Api

SUMMED = ("cancelled", "retried", "skipped", "refused")


def version_or_current(value: str | None) -> str | None:
    if value is not None and value != "current" and not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise typer.BadParameter(f"{value!r} is no version: a number, or current")
    return value


def changes(pairs: Sequence[str] | None, version: str | None) -> dict[str, Any]:
    """What the new jobs have other than the old ones."""
    from gateway.cli.params import read_params

    changed: dict[str, Any] = {}
    if pairs:
        changed["params"] = read_params(pairs, None).params
    if version is not None:
        changed["version"] = version if version == "current" else int(version)
    return changed


def run(api: Api, action: str, wanted: dict[str, Any], *, dry_run: bool, yes: bool) -> dict[str, Any]:
    """The sums over all calls. The gateway does as much as it can in a few seconds, and says what is left."""
    path = f"/v1/jobs/{action}"
    planned = api.post(path, {**wanted, "dry_run": True}, repeatable=True)
    if dry_run or not planned["matched"]:
        return {**planned, "dry_run": dry_run}
    if not yes:
        _confirm(action, planned["matched"])
    done = api.post(path, wanted, repeatable=True)
    while done["remaining"]:
        more = api.post(path, wanted, repeatable=True)
        if all(not more.get(count) for count in ("cancelled", "retried")):
            raise Failed(f"{more['remaining']} jobs are left and none of them went on: try again")
        sums = {count: done[count] + more[count] for count in SUMMED if count in done}
        errors = {"errors": (done["errors"] + more["errors"])} if "errors" in done else {}
        done = {**more, **sums, **errors}
    return done


def said(done: dict[str, Any], word: str) -> str:
    if done["dry_run"]:
        return f"{done['matched']} jobs would be {word}"
    skipped = f", {done['skipped']} were before" if done.get("skipped") else ""
    return f"{done[word]} jobs {word}{skipped}"


def _confirm(action: str, matched: int) -> None:
    if not sys.stdin.isatty():
        raise Failed(f"it would {action} {matched} jobs: --yes does it, --dry-run only counts them")
    if not typer.confirm(f"{action} {matched} jobs?", err=True):
        raise Failed("nothing was done")
