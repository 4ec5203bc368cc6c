"""``rgrid deploy``: from a folder to a running function, without a registry."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import Json, connected
from gateway.cli.output import note, out, out_json, size

if TYPE_CHECKING:
    from gateway.cli.client import Api
    from gateway.cli.manifests import ManifestFile

MANIFESTS = ("function.yaml", "function.yml", "function.json")
ANY_IMAGE = "sha256:" + "0" * 64
"""Stands for the image while there is none yet."""
_PARAM = re.compile(r"\{\{ *params\.(\w+) *\}\}")


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(deploy)


@connected
def deploy(
    api: Api,
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Holds function.yaml and a Dockerfile. Default: here.", show_default=False),
    ] = Path(),
    *,
    no_build: Annotated[
        bool, typer.Option("--no-build", help="Take the image that the manifest names, which Docker has here.")
    ] = False,
    arguments: Annotated[
        list[str] | None, typer.Option("--build-arg", metavar="NAME=VALUE", help="For the Dockerfile's ARG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a folder's image, upload it, and make its function or a new version of it.

    The image goes into the gateway's own store, and nodes load it from there. What has been uploaded before is not
    sent again, and a function that did not change gets no new version.
    """
    from gateway.cli.apply import apply_manifests
    from gateway.cli.saving import MEDIA_TYPE, build, save
    from gateway.cli.uploads import upload

    manifest = _manifest(folder)
    # Whatever is wrong with the manifest is said before the work begins.
    apply_manifests(api, [manifest], [_with_image(manifest, ANY_IMAGE)], dry_run=True)
    with TemporaryDirectory(prefix="rgrid-deploy-") as scratch:
        into = Path(scratch)
        image = _named(manifest) if no_build else build(folder, arguments or (), into, note)
        saved = save(image, into, note)
        note(f"uploading {saved.id[:19]}…, {size(saved.size)} ({size(saved.unpacked)} unpacked)")
        uploaded = upload(api, saved.path, content_type=MEDIA_TYPE, name=f"{manifest.name}.tar.zst")
    [applied] = apply_manifests(
        api, [manifest], [_with_image(manifest, f"{uploaded.uri}@{saved.id}")], dry_run=False
    )
    if as_json:
        out_json({**applied, "image": {"id": saved.id, "artifact": uploaded.id, "size": saved.size}})
        return
    out(f"{applied['name']}  version {applied['version']}  {'changed' if applied['changed'] else 'unchanged'}")
    note(f"invoke it: {_invocation(manifest, folder)}")


def _manifest(folder: Path) -> ManifestFile:
    from gateway.cli.manifests import read_manifests

    found = [folder / name for name in MANIFESTS if (folder / name).is_file()]
    if len(found) != 1:
        which = "more than one of" if found else "none of"
        raise Failed(f"{folder}: {which} {', '.join(MANIFESTS)} here")
    return read_manifests(found)[0][0]


def _job(manifest: ManifestFile) -> Mapping[str, Any]:
    spec = manifest.document.get("spec")
    job = spec.get("job") if isinstance(spec, dict) else None
    return job if isinstance(job, dict) else {}


def _named(manifest: ManifestFile) -> str:
    image = _job(manifest).get("image")
    if not isinstance(image, str) or not image or image.startswith(("artifact:", "-")):
        raise Failed(f"{manifest.source}: /spec/job/image: --no-build needs the name of an image that Docker has here")
    return image


def _with_image(manifest: ManifestFile, image: str) -> dict[str, Any]:
    """The manifest with this image in place of whatever it names. What is no manifest is left to the gateway."""
    document = dict(manifest.document)
    spec, job = document.get("spec"), _job(manifest)
    if isinstance(spec, dict) and job:
        kept = {key: value for key, value in job.items() if key != "runtime"}
        document["spec"] = {**spec, "job": {**kept, "image": image}}
    return document


def _invocation(manifest: ManifestFile, folder: Path) -> str:
    """A command to try it with: the folder's own sample, else what it cannot do without."""
    words = ["rgrid", "invoke", manifest.name]
    if (folder / "params.json").is_file():
        words += ["--data", f"@{folder / 'params.json'}"]
    else:
        files = set(_PARAM.findall(str((_job(manifest).get("files") or {}).get("inputs"))))
        schema = manifest.document["spec"].get("params") or {}
        for name in schema.get("required") or ():
            words += ["--file", f"{name}=PATH"] if name in files else ["-p", f"{name}=VALUE"]
    return shlex.join([*words, "--wait"])
