"""``rgrid apply``: functions out of manifests, all of them or none, with what changes shown line by line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import Failed, Refused
from gateway.cli.options import Json, Yes, connected
from gateway.cli.output import note, out, out_json

if TYPE_CHECKING:
    from gateway.cli.client import Api
    from gateway.cli.manifests import ManifestFile

SET_LABEL = "rgrid.dev/apply-set"
"""Which set a function was applied with: what --prune may remove."""
LIMIT = 100_000


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(apply)


def set_name(value: str | None) -> str | None:
    from gateway.cli.config import NAME

    if value is not None and not NAME.fullmatch(value):
        raise typer.BadParameter("letters, digits, dots, dashes and underscores, at most 63")
    return value


@connected
def apply(
    api: Api,
    *,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="PATH", help="A manifest, a folder of them, or - for standard input."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[PATH...]", help="More of them.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Let the gateway check all of it, show what would change, change nothing.")
    ] = False,
    of_set: Annotated[
        str | None,
        typer.Option("--set", metavar="NAME", callback=set_name, help="Mark the functions as one set, for --prune."),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove the functions of this --set that these manifests no longer have."),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make functions out of manifests, or new versions of those that changed: all of them, or none.

    What changes is shown as a diff. A file holds one manifest; of a folder, the folders in it are looked at, too.
    """
    from gateway.cli.manifests import STDIN, read_manifests

    paths = [*(files or ()), *(more or ())]
    if not paths:
        raise typer.BadParameter("name a manifest or a folder of them", param_hint="--file")
    if prune and of_set is None:
        raise typer.BadParameter("only with --set, so that it is clear what may be removed", param_hint="--prune")
    manifests, passed_over = read_manifests(paths)
    for source in passed_over:
        note(f"{source}: no manifest, passed over")
    documents = [_document(manifest, of_set) for manifest in manifests]
    obsolete = _obsolete(api, of_set, manifests) if prune and of_set else []
    if dry_run:
        changes = apply_manifests(api, manifests, documents, dry_run=True)
        _tell(changes, obsolete, as_json, dry_run=True)
        return
    if obsolete and not yes:
        apply_manifests(api, manifests, documents, dry_run=True)
        _confirm(obsolete, asking=sys.stdin.isatty() and STDIN not in paths)
    changes = apply_manifests(api, manifests, documents, dry_run=False)
    _tell(changes, _remove(api, obsolete), as_json, dry_run=False)


def _document(manifest: ManifestFile, of_set: str | None) -> dict[str, Any]:
    """What is sent: the manifest with the mark of its set. Labels that are wrong stay for the gateway to refuse."""
    metadata = manifest.document["metadata"]
    labels = metadata.get("labels", {})
    if of_set is None or not isinstance(labels, dict):
        return dict(manifest.document)
    if labels.get(SET_LABEL, of_set) != of_set:
        at = manifest.at("/metadata/labels/" + SET_LABEL.replace("/", "~1"))
        raise Failed(f"{at}: the label {SET_LABEL} names another set than --set {of_set}")
    return {**manifest.document, "metadata": {**metadata, "labels": {**labels, SET_LABEL: of_set}}}


def apply_manifests(
    api: Api, manifests: list[ManifestFile], documents: list[dict[str, Any]], *, dry_run: bool
) -> list[dict[str, Any]]:
    """What changed in each function, or would; raises ``Failed`` with file and line of each fault."""
    params = {"dry_run": "true" if dry_run else None}
    try:
        answer = api.post("/v1/functions", {"manifests": documents}, params=params, repeatable=True)
    except Refused as refused:
        if not refused.faults or not any(pointer.startswith("/manifests/") for pointer, _ in refused.faults):
            raise
        *said, last = [_located(refused.code, pointer, message, manifests) for pointer, message in refused.faults]
        for line in said:
            note(f"error: {line}")
        raise Failed(f"{last} (nothing was applied)") from None
    found: list[dict[str, Any]] = answer["data"]
    return found


def _located(code: str, pointer: str, message: str, manifests: list[ManifestFile]) -> str:
    """A fault with file and line instead of the manifest's number."""
    _, _, rest = pointer.partition("/manifests/")
    index, slash, inside = rest.partition("/")
    if not index.isdecimal() or int(index) >= len(manifests):
        return f"{code}: {pointer}: {message}"
    pointer = slash + inside
    return f"{manifests[int(index)].at(pointer)}: {code}: " + (f"{pointer}: {message}" if pointer else message)


def _obsolete(api: Api, of_set: str, manifests: list[ManifestFile]) -> list[str]:
    """Functions that an apply of this set made and that are in no manifest any more."""
    wanted = {manifest.name for manifest in manifests}
    found = api.pages("/v1/functions", {"label": f"{SET_LABEL}={of_set}"}, limit=LIMIT)
    return sorted(one["name"] for one in found["data"] if one["name"] not in wanted)


def _confirm(obsolete: list[str], *, asking: bool) -> None:
    names = ", ".join(obsolete)
    if not asking:
        raise Failed(f"--prune would remove {names}: --yes does it, --dry-run shows all that would change")
    if not typer.confirm(f"remove {names}? queued jobs of them are cancelled", err=True):
        raise Failed("nothing was applied")


def _remove(api: Api, obsolete: list[str]) -> list[str]:
    removed: list[str] = []
    for name in obsolete:
        try:
            api.delete(f"/v1/functions/{name}")
        except Refused as refused:
            if refused.code != "function_not_found":
                done = f", and of the others {', '.join(removed)} removed" if removed else ""
                raise Failed(f"{name}: {refused} (the manifests were applied{done})") from None
        removed.append(name)
    return removed


def _tell(changes: list[dict[str, Any]], removed: list[str], as_json: bool, *, dry_run: bool) -> None:
    if as_json:
        out_json({"data": changes, "removed": removed})
        return
    from gateway.cli.diffs import manifest_diff

    would = "would be " if dry_run else ""
    for change in changes:
        word = "created" if change["created"] else "changed" if change["changed"] else "unchanged"
        # For a dry run it is the result, else a word about it.
        if change["changed"] and not change["created"]:
            for line in manifest_diff(change, sys.stdout if dry_run else sys.stderr):
                (out if dry_run else note)(line)
        out(f"{change['name']}  version {change['version']}  {'' if word == 'unchanged' else would}{word}")
    for name in removed:
        out(f"{name}  {would}removed")
