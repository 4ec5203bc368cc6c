"""``rgrid quote``: what a job will take and cost, judged by the function's last ones."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import Data, FunctionName, Json, Pairs, connected
from gateway.cli.output import note, out_json, span, table

if TYPE_CHECKING:
    from gateway.cli.client import Api


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(quote)


@connected
def quote(
    api: Api,
    *,
    name: FunctionName,
    pairs: Pairs = None,
    data: Data = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, max=2**31 - 1, help="An earlier version of the function.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a job with these params will probably take and cost; none is made."""
    from gateway.cli.params import read_params

    params = read_params(pairs or (), data).params
    headers = {} if version is None else {"RGrid-Version": str(version)}
    found = api.post(f"/v1/functions/{name}/invoke", params, headers=headers, params={"quote": "true"}, repeatable=True)
    if as_json:
        out_json(found)
        return
    if not found["jobs"]:
        note(f"{name} has no finished jobs yet, by which to judge")
        return
    note(f"of the last {found['jobs']} jobs that succeeded:")
    times = (("running", found["run_ms"]), ("waiting for a node", found["queue_ms"]))
    rows = [(what, *(span(timedelta(milliseconds=ms[key])) for key in ("p50", "p95"))) for what, ms in times if ms]
    for what, cost in (("cost", found["cost"]), ("of it running", found.get("running_cost"))):
        if cost:
            rows.append((f"{what}, {cost['currency']}", cost["p50"], cost["p95"]))
    table(("", "HALF OF THEM", "95 OF 100"), rows)
