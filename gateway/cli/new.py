"""``rgrid new``: a function to begin with, out of the templates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

import gateway
from gateway.cli.failures import Failed
from gateway.cli.options import Json
from gateway.cli.output import note, out, out_json, table

# They are installed beside our packages, and are none: another folder of that name cannot get between.
TEMPLATES = Path(gateway.__file__).parent.parent / "templates" / "functions"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(new)


def new(
    template: Annotated[
        str | None, typer.Argument(metavar="TEMPLATE", help="Which one; without it they are listed.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A new folder. Default: the template's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Begin a function with a copy of a template: its manifest, Dockerfile and sample params."""
    if template is None:
        _list(as_json)
        return
    if template not in templates():
        raise Failed(f"no template {template!r}: there are {', '.join(templates())}")
    target = Path(template) if directory is None else directory
    made = copy(template, target)
    if as_json:
        out_json({"template": template, "directory": str(target), "files": made})
        return
    for name in made:
        out(str(target / name))
    note(f"next: see {target / 'README.md'}, then 'rgrid deploy {target}'")


def templates() -> dict[str, str]:
    """Each template with what it does: the first line of its README."""
    found = {}
    for readme in sorted(TEMPLATES.glob("*/README.md")):
        lines = (line.strip("# ") for line in readme.read_text().splitlines())
        found[readme.parent.name] = next((line for line in lines if line), "")
    return found


def copy(template: str, target: Path) -> list[str]:
    """Copy its files into a folder that is new or empty; their names. Raises ``Failed``."""
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Failed(f"{target} is there already: name a new folder")
        source = TEMPLATES / template
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__"), dirs_exist_ok=True)
        return sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())
    except OSError as error:
        raise Failed(f"{target}: {error.strerror}") from None
    except shutil.Error as error:
        raise Failed(f"{target}: {error.args[0][0][2]}") from None
    except ValueError:  # a NUL in the name
        raise Failed(f"{str(target)!r} is not a folder's name") from None


def _list(as_json: bool) -> None:
    found = templates()
    if as_json:
        out_json({"data": [{"name": name, "description": text} for name, text in found.items()]})
        return
    table(("TEMPLATE", "DOES"), found.items())
    note("'rgrid new TEMPLATE [DIR]' copies one")
