"""Writes docs/reference/cli.md from the commands themselves: ``.venv/bin/python scripts/cli_reference.py``.

A test holds the page current.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main

from gateway.cli.main import app

PAGE = Path(__file__).parent.parent / "docs/reference/cli.md"

HEAD = """\
# Command line

`rgrid --help` and `rgrid COMMAND --help` say the same. This page is written by `scripts/cli_reference.py`.

Commands that talk to a gateway find it by `--url` and `--key`, else by `RGRID_URL` and `RGRID_API_KEY`, else by the
context that `rgrid login` saved in `~/.config/rgrid/config.toml`. Tables are for people; `--json` prints what the API
answered and nothing else. Errors are one line on standard error.

| exit status | means |
| --- | --- |
| 0 | done |
| 1 | it failed; with `--wait`, `--follow` or `-o`: the job did not succeed |
| 2 | the command was called in a wrong way |
| 130 | interrupted with Ctrl-C |

"""
GATEWAY = {"--url", "--key", "--project"}
"""Options that every command has which talks to a gateway."""


def page() -> str:
    commands = list(_commands(typer.main.get_command(app), "rgrid"))
    text = HEAD + "| command | does |\n| --- | --- |\n"
    text += "".join(f"| [`{name}`](#{_anchor(name)}) | {_first_line(command)} |\n" for name, command in commands)
    for name, command in commands:
        text += f"\n## {name}\n\n" + "\n".join(_lines(name, command)) + "\n"
    return text


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child_name, child in children.items():
        if not child.hidden:
            yield from _commands(child, f"{name} {child_name}")


def _lines(name: str, command: Any) -> Iterator[str]:
    parameters = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    options = [one for one in parameters if one.param_type_name == "option" and not GATEWAY & set(one.opts)]
    options = [one for one in options if "--help" not in one.opts]
    usage = [name, *(_argument(one) for one in arguments), *(["[options]"] if options else [])]
    yield f"    {' '.join(usage)}"
    yield ""
    yield _text(command.help or "")
    shown = [one for one in (*arguments, *options) if _text(getattr(one, "help", "") or "")]
    if shown:
        yield ""
        yield "| | |"
        yield "| --- | --- |"
        for one in shown:
            label = _argument(one) if one in arguments else _option(one)
            yield f"| `{label}` | {_text(one.help)}{_default(one)} |"


def _argument(argument: Any) -> str:
    label: str = argument.metavar or argument.name.upper()
    return label if argument.required else f"[{label.strip('[]')}]"


def _option(option: Any) -> str:
    flags = ", ".join(option.opts)
    if option.is_flag:
        return flags
    return f"{flags} {option.metavar or _kind(option)}"


def _kind(option: Any) -> str:
    kind: str = option.display_type(typer.Context(typer.main.get_command(app))).strip("<>")
    names = {"str": "TEXT", "path": "PATH", "int": "N", "int range": "N", "float range": "N"}
    return names.get(kind, kind).replace("|", "\\|")


def _default(parameter: Any) -> str:
    default, variable = parameter.default, getattr(parameter, "envvar", None)
    text = ""
    if default not in (None, False, (), []) and not callable(default):
        text += f" Default: `{default}`."
    return text + (f" Also as `{variable}`." if variable and variable not in _text(parameter.help or "") else "")


def _first_line(command: Any) -> str:
    return _text((command.help or "").partition("\n\n")[0])


def _text(text: str) -> str:
    return " ".join(text.replace("\f", " ").split()).replace("|", "\\|")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page())
