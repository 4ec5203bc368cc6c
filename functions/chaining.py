"""Chains: a callback to a function of the project, and the params that it makes of a job's end.

Reads ``functions`` and ``function_versions``, writes neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from functions import expressions, faults, filling
from functions.db import Connection
from functions.documents import pointer, shown, strings
from functions.expressions import CHAIN_ROOTS, Lookup
from functions.faults import Fault
from functions.ids import ProjectId

DEEPEST_CHAIN = 16
"""Jobs in a row that were each caused by the one before."""
OUTPUT_FIELDS = frozenset({"uri", "size", "sha256", "content_type", "name", "path"})

# A chain of one function at a time: two applies beside each other might each close a half of a circle.
LOCK_CHAINS = """
-- lock_chains
SELECT 1 FROM projects WHERE id = $1 FOR NO KEY UPDATE
"""

CHAINED_FUNCTIONS = """
-- chained_functions
WITH RECURSIVE reached (target, name) AS (
    SELECT name, name FROM unnest($2::text[]) t (name)
    UNION
    SELECT reached.target, callback ->> 'function'
      FROM reached
      JOIN functions ON functions.project_id = $1 AND functions.name = reached.name AND functions.deleted_at IS NULL
      JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
     CROSS JOIN LATERAL json_array_elements(v.manifest #> '{spec,callbacks}') callback
     WHERE callback ->> 'function' IS NOT NULL
)
SELECT target, bool_or(name = $3) AS leads_back,
       EXISTS (SELECT 1 FROM functions
                WHERE project_id = $1 AND functions.name = target AND deleted_at IS NULL) AS found
  FROM reached GROUP BY target
"""


class HasChains(Protocol):
    """A callback of a manifest, as far as chains go. ``params`` holds templates in its texts."""

    @property
    def function(self) -> str | None: ...

    @property
    def params(self) -> Mapping[str, Any] | None: ...


def check_params(params: dict[str, Any]) -> dict[str, Any]:
    """Params with templates in their texts, as they stand; raises a pydantic error at the first that is none."""
    return filling.check_templates(params, CHAIN_ROOTS)


def chain_lookups(callbacks: Sequence[HasChains]) -> Iterator[tuple[tuple[str | int, ...], Lookup]]:
    """Every look-up in the params of callbacks, with its path in ``spec``."""
    for index, callback in enumerate(callbacks):
        for path, text in strings(callback.params or {}):
            for lookup in expressions.parse(text, CHAIN_ROOTS).lookups:
                yield ("callbacks", index, "params", *path), lookup


def output_fault(lookup: Lookup, outputs: frozenset[str]) -> str | None:
    """Why ``outputs.<name>.<field>`` can have no value; None if it can, with or without a number before the field."""
    *name, last = lookup.path[1:] or ("",)
    if not name or last not in OUTPUT_FIELDS:
        return f"{lookup} is no output's: write outputs.<name> and one of {', '.join(sorted(OUTPUT_FIELDS))} behind it"
    if ".".join(name) in outputs or (name[-1].isdecimal() and ".".join(name[:-1]) in outputs):
        return None
    return f"{lookup} can have no value: spec.job.files.outputs has no output {shown('.'.join(name))}"


def outputs_root(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``outputs`` is, of the outputs in a job object: the first file of a name, and each by its number."""
    root: dict[str, Any] = {}
    for output in outputs:
        here = root
        for segment in str(output["name"]).split("."):
            here = here.setdefault(segment, {})
        values = {key: output[key] for key in OUTPUT_FIELDS}
        number = sum(key.isdecimal() for key in here)
        here[str(number)] = values
        if number == 0:
            here.update(values)
    return root


def fill_in(params: Mapping[str, Any], roots: Mapping[str, Any]) -> dict[str, Any]:
    """The params of the next job; raises ``MissingValue``."""
    return filling.fill_in(params, roots, CHAIN_ROOTS)


async def lock_chains(conn: Connection, project: ProjectId) -> None:
    """Keep others from applying what has callbacks to functions, until the end of the transaction. Before any function
    is locked, or two that hold one each would wait for each other."""
    await conn.execute(LOCK_CHAINS, project)


async def check_targets(
    conn: Connection, project: ProjectId, name: str | None, callbacks: Sequence[HasChains], *, exist: bool = True
) -> None:
    """Raise ``Invalid`` for callbacks to functions that do not exist, or from which the way leads back to ``name``.

    In the caller's transaction, before it locks a function; others' are kept waiting, or two of them might close a
    circle. ``exist`` False: only circles are looked for.
    """
    targets = [callback.function for callback in callbacks if callback.function is not None]
    if not targets:
        return
    await lock_chains(conn, project)
    rows = {row["target"]: row for row in await conn.fetch(CHAINED_FUNCTIONS, project, targets, name)}
    found = []
    for index, callback in enumerate(callbacks):
        if callback.function is None:
            continue
        at, row = pointer("spec", "callbacks", index, "function"), rows[callback.function]
        if row["leads_back"]:
            way = "is the function itself" if callback.function == name else f"leads back to {name} by its callbacks"
            found.append(Fault(at, f"{callback.function} {way}: a chain must end", "callback_cycle"))
        elif exist and not row["found"]:
            found.append(Fault(at, f"there is no function {callback.function}: apply it first", "function_not_found"))
    faults.raise_all(found)
