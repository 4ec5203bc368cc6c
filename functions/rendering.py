"""Filling in a JobSpec template with the values of one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from functions import expressions
from functions.documents import ERRORS, pointer
from functions.errors import FieldError, Invalid
from functions.expressions import Budget, MissingValue, Template

if TYPE_CHECKING:
    from functions.jobspec import JobSpec

ARGUMENT_BYTES = 128 * 1024 - 1
"""Linux takes no longer argument and no longer NAME=value (MAX_ARG_STRLEN, less its NUL)."""
ARGUMENTS_BYTES = 1024 * 1024
"""Command and environment together: Linux stops at 2 MiB, pointers to each of them included."""
FILLED_BYTES = 2 * 1024 * 1024
"""The urls and contents of all inputs together: they travel with the lease."""


class HasJob(Protocol):
    """``spec`` of a manifest, of which only ``job`` is needed here."""

    @property
    def job(self) -> JobSpec: ...


@dataclass(frozen=True, slots=True)
class RenderedInput:
    """Exactly one of ``url`` and ``content`` is given. The url has not been vetted."""

    path: str
    url: str | None
    content: str | None


@dataclass(frozen=True, slots=True)
class Rendered:
    command: list[str] | None
    env: dict[str, str]
    inputs: list[RenderedInput]


def templates_of(job: JobSpec) -> Iterator[tuple[tuple[str | int, ...], Template]]:
    """Every template of ``spec.job`` with its path in there."""
    yield from ((("command", index), part) for index, part in enumerate(job.command or ()))
    yield from ((("env", name), value) for name, value in job.env.items())
    for index, one in enumerate(job.files.inputs):
        for key, template in (("url", one.url), ("content", one.content)):
            if template is not None:
                yield ("files", "inputs", index, key), template


def render(
    spec: HasJob,
    *,
    params: Mapping[str, Any],
    trigger: Mapping[str, Any],
    job_id: str,
    function: str | None,
    version: int,
) -> Rendered:
    """Fill in the template; the same values give the same result.

    Raises ``Invalid`` with code ``template_invalid`` and pointers into the manifest (``/spec/job/command/3``).
    """
    job = spec.job
    roots = {
        "params": params,
        "trigger": trigger,
        "job": {"id": job_id},
        "function": {"version": version} | ({} if function is None else {"name": function}),
    }
    filling = _Filling(roots)
    arguments = Budget(ARGUMENTS_BYTES)
    command = None
    if job.command is not None:
        command = [filling.argument(part, arguments, "", ("command", index)) for index, part in enumerate(job.command)]
        if not command[0] and not filling.errors:
            filling.fail(("command", 0), "the program's name is empty")
    env = {name: filling.argument(value, arguments, f"{name}=", ("env", name)) for name, value in job.env.items()}
    contents = Budget(FILLED_BYTES)
    inputs = [
        RenderedInput(
            one.path,
            None if one.url is None else filling.url(one.url, contents, ("files", "inputs", index, "url")),
            None if one.content is None else filling.text(one.content, contents, ("files", "inputs", index, "content")),
        )
        for index, one in enumerate(job.files.inputs)
    ]
    filling.finish()
    return Rendered(command, env, inputs)


class _Filling:
    """Fills in one template after another and remembers what was wrong, to tell all of it at once."""

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.roots = roots
        self.errors: list[FieldError] = []

    def text(self, template: Template, budget: Budget, at: tuple[str | int, ...]) -> str:
        try:
            return expressions.text_of(template, self.roots, budget)
        except MissingValue as error:
            self.fail(at, str(error))
            return ""

    def argument(self, template: Template, budget: Budget, prefix: str, at: tuple[str | int, ...]) -> str:
        value = self.text(template, budget, at)
        if "\0" in value:
            self.fail(at, "a NUL character cannot be in an argument or a variable")
        if len(prefix) + len(value.encode()) > ARGUMENT_BYTES:
            self.fail(at, f"with the values filled in it is longer than {ARGUMENT_BYTES} bytes")
        return value

    def url(self, template: Template, budget: Budget, at: tuple[str | int, ...]) -> str:
        only = template.lookup
        if only is not None:
            try:
                if not isinstance(expressions.find(only, self.roots), str):
                    self.fail(at, f"{only} is not text, and an address must be")
                    return ""
            except MissingValue:
                pass  # said below, once
        return self.text(template, budget, at)

    def fail(self, at: tuple[str | int, ...], message: str) -> None:
        self.errors.append(FieldError(pointer("spec", "job", *at), message))

    def finish(self) -> None:
        if self.errors:
            first = self.errors[0]
            raise Invalid(f"{first.pointer}: {first.message}", code="template_invalid", errors=self.errors[:ERRORS])
