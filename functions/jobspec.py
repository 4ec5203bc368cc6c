"""``spec.job`` of a manifest, the JobSpec template: what one attempt runs.

Left out, a key means what PRODUCT §3 shows: one CPU, 1Gi of memory, 2Gi of disk, 10 minutes, 10 seconds of grace, no
network, uid 65532; the command is the image's own.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Self, cast

from pydantic import AfterValidator, Field, model_validator

from functions.documents import pointer, shown
from functions.expressions import Template
from functions.fields import (
    UNSUPPORTED,
    Part,
    at_most,
    checked,
    cpu_between,
    duration_between,
    fault,
    size_between,
    template,
)
from functions.image_reference import check_image
from functions.job_paths import OUTPUT_NAME, check_input_path, check_output_name, check_output_path, clash, is_glob
from functions.rendering import ARGUMENT_BYTES, Rendered, RenderedInput, render

__all__ = ["Files", "Input", "JobSpec", "Output", "Rendered", "RenderedInput", "Resources", "render"]

MOST_ARGUMENTS = 1024
MOST_VARIABLES = 256
MOST_FILES = 100
URL_BYTES = 8 * 1024
CONTENT_BYTES = 256 * 1024

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}( *;[ !-~]{1,100})?")


def _check_saved(image: str) -> str:
    if image.startswith("artifact:"):
        raise fault("a saved image (artifact:…) is not supported yet", UNSUPPORTED)
    return image


def _check_media_type(value: str) -> None:
    if not _MEDIA_TYPE.fullmatch(value):
        raise ValueError("not a content type: write image/jpeg or text/plain; charset=utf-8")


def _check_command(command: tuple[Template, ...]) -> tuple[Template, ...]:
    if not command or not str(command[0]):
        raise fault("must begin with a program; leave command out to run the image's own")
    return command


def _check_variables(env: dict[str, Template]) -> dict[str, Template]:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise fault(
                f"{shown(name)} is no name of a variable: letters, digits and _, no digit first", at=pointer(name)
            )
        if name.startswith("RGRID_"):
            raise fault("names that begin with RGRID_ are set by RGrid", at=pointer(name))
    return env


def _check_inputs(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    if (found := clash([one.path for one in inputs])) is not None:
        raise fault(found[1], at=pointer(found[0], "path"))
    return inputs


def _check_outputs(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    seen: set[str] = set()
    for index, output in enumerate(outputs):
        if output.name in seen:
            raise fault(f"the name {shown(output.name)} stands twice", at=pointer(index, "name"))
        seen.add(output.name)
    plain = [(index, one.path) for index, one in enumerate(outputs) if not is_glob(one.path)]
    if (found := clash([path for _, path in plain])) is not None:
        raise fault(found[1], at=pointer(plain[found[0]][0], "path"))
    return outputs


class Resources(Part):
    """What a job may use at most. CPUs, and bytes."""

    cpu: Annotated[float, cpu_between(0.01, 256)] = 1.0
    memory: Annotated[int, size_between(16 * 1024**2, 1024**4)] = 1024**3
    disk: Annotated[int, size_between(16 * 1024**2, 1024**4)] = 2 * 1024**3


class Input(Part):
    """A file below /in: fetched from ``url`` (https://… or artifact:art_…), or ``content`` as it is."""

    path: Annotated[str, checked(check_input_path)]
    url: Annotated[Template, template(URL_BYTES)] | None = None
    content: Annotated[Template, template(CONTENT_BYTES)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.content is None):
            raise fault("must have either url or content")
        return self


class Output(Part):
    """A file below /out, or the files that a glob matches. ``name``: that of the file, unless given."""

    path: Annotated[str, checked(check_output_path)]
    name: Annotated[str, checked(check_output_name)]
    content_type: Annotated[str, checked(_check_media_type)] | None = Field(None, alias="contentType")
    required: bool = False

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_file(cls, given: object) -> object:
        path = given.get("path") if isinstance(given, dict) and "name" not in given else None
        if isinstance(path, str) and not is_glob(path) and OUTPUT_NAME.fullmatch(name := path.rpartition("/")[2]):
            return {**cast("dict[str, object]", given), "name": name}
        return given


class Files(Part):
    inputs: Annotated[tuple[Input, ...], at_most(MOST_FILES), Field(strict=False), AfterValidator(_check_inputs)] = ()
    outputs: Annotated[
        tuple[Output, ...], at_most(MOST_FILES), Field(strict=False), AfterValidator(_check_outputs)
    ] = ()


class JobSpec(Part):
    image: Annotated[str, AfterValidator(_check_saved), checked(check_image)]
    command: (
        Annotated[
            tuple[Annotated[Template, template(ARGUMENT_BYTES)], ...],
            at_most(MOST_ARGUMENTS),
            Field(strict=False),
            AfterValidator(_check_command),
        ]
        | None
    ) = None
    env: Annotated[
        dict[str, Annotated[Template, template(ARGUMENT_BYTES)]],
        at_most(MOST_VARIABLES),
        AfterValidator(_check_variables),
    ] = Field(default_factory=dict)
    resources: Resources = Resources()
    files: Files = Files()
    timeout: Annotated[timedelta, duration_between(timedelta(seconds=1), timedelta(days=7))] = timedelta(minutes=10)
    """Wall clock of one attempt."""
    grace: Annotated[timedelta, duration_between(timedelta(0), timedelta(minutes=10))] = timedelta(seconds=10)
    """Between SIGTERM and SIGKILL."""
    network: bool = False
    # Not 0: root of the container is root of the node for whoever gets out of it.
    user: Annotated[int, Field(ge=1, le=2**31 - 1)] = 65532
