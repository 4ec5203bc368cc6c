"""What commands have in common: the options that choose a gateway, ``--json``, and groups that list by default."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer
from typer.core import TyperGroup

from gateway.cli import completion, config
from gateway.cli.failures import Failed

if TYPE_CHECKING:
    from gateway.cli.client import Api

P = ParamSpec("P")
PANEL = "Gateway"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The gateway. Default: RGRID_URL.", rich_help_panel=PANEL),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="API key. Default: RGRID_API_KEY.", rich_help_panel=PANEL),
]
Project = Annotated[
    str | None,
    typer.Option(
        "--project",
        metavar="PROJECT",
        help="One of several projects. Default: RGRID_PROJECT.",
        rich_help_panel=PANEL,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON and nothing else.")]


def plain_id(value: str) -> str:
    """Refuse what can be no name and no id, before it becomes part of a URL."""
    if not _ID.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is no name and no id")
    return value


def plain_ids(values: list[str] | None) -> list[str]:
    return [plain_id(value) for value in values or ()]


def plain_id_or_none(value: str | None) -> str | None:
    return None if value is None else plain_id(value)


FunctionName = Annotated[
    str, typer.Argument(help="The function's name.", callback=plain_id, autocompletion=completion.functions)
]
JobId = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id.", callback=plain_id, autocompletion=completion.jobs)
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        help="A param: JSON if it reads as JSON, else text; a.b=1 sets b inside a. May be repeated.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", metavar="JSON", help="All params: JSON, @file, or - for standard input."),
]


def header(value: str | None) -> str | None:
    """Refuse what a header cannot carry."""
    if value is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise typer.BadParameter("only visible ASCII characters, please")
    return value


MaxCost = Annotated[
    str | None,
    typer.Option(
        "--max-cost", metavar="EUR", callback=header, help="What running a job may cost, retries included: like 0.05."
    ),
]


def duration(value: str) -> timedelta:
    """``30s``, ``10m``, ``1h30m``; a bare number is seconds."""
    from functions.quantities import parse_duration

    try:
        return timedelta(seconds=int(value)) if re.fullmatch(r"[0-9]{1,9}", value) else parse_duration(value)
    except (OverflowError, ValueError):
        raise typer.BadParameter(f"{value!r} is not a duration: write 30s, 10m or 1h30m") from None


def moment(value: str | None) -> str | None:
    """A time for the API: an RFC 3339 time or a date as it is, a duration as that long ago."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        pass
    else:
        return _rfc3339(at if at.tzinfo else at.astimezone())
    try:
        return _rfc3339(datetime.now(UTC) - duration(value))
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(
            f"{value!r} is no time: write 2026-01-31, 2026-01-31T12:00:00Z, or 2h for two hours ago"
        ) from None


def connected(command: Callable[Concatenate[Api, P], None]) -> Callable[..., None]:
    """Give ``command`` an ``Api`` as its first argument, and its users the options that choose the gateway.

    They work before the command's name, too: ``rgrid --url … jobs``.
    """

    @functools.wraps(command)
    def with_api(ctx: typer.Context, **values: Any) -> None:
        from gateway.cli.client import Api

        given = config.Flags(values.pop("url"), values.pop("key"), values.pop("project"))
        with Api(config.target(given.over(general(ctx)), os.environ)) as api:
            command(api, **values)  # type: ignore[call-arg]

    # Commands know the class by name only: importing it costs more than all of them together.
    signature = inspect.signature(command, locals={"Api": object}, eval_str=True)
    own = list(signature.parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=None, annotation=annotation)
        for name, annotation in (("url", Url), ("key", Key), ("project", Project))
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(parameter.replace(kind=keyword) for parameter in own), *added]
    with_api.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_api.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_api


def general(ctx: typer.Context) -> config.Flags:
    """What stood before the command's name."""
    found = ctx.find_root().obj
    return found if isinstance(found, config.Flags) else config.Flags()


class ListsByDefault(TyperGroup):
    """A group whose ``list`` need not be said: ``rgrid nodes --json`` is ``rgrid nodes list --json``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and (
            not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        ):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _rfc3339(at: datetime) -> str:
    try:
        return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError:
        raise Failed("that time is out of range") from None
