"""``spec.job`` of a manifest, the JobSpec template: what one attempt runs.

Left out, a key means what PRODUCT §3 shows: one CPU, 1Gi of memory, 2Gi of disk, 10 minutes, 10 seconds of grace, no
network, uid 65532; the command is the image's own.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, model_validator

from functions.documents import pointer, shown
from functions.expressions import Template
from functions.fields import (
    Check,
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
from functions.quantities import format_bytes
from functions.rendering import ARGUMENT_BYTES, Rendered, RenderedInput, render

__all__ = ["Files", "Input", "JobSpec", "Output", "Rendered", "RenderedInput", "Resources", "render"]

MOST_ARGUMENTS = 1024
MOST_VARIABLES = 256
MOST_FILES = 100
MOST_SECRETS = 64
URL_BYTES = 8 * 1024
CONTENT_BYTES = 256 * 1024

RUNTIME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}( *;[ !-~]{1,100})?")


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


def check_secret_name(name: str) -> None:
    """Raise ``ValueError`` unless a project's secret may have this name: that of the variable that it becomes."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError("a secret is named as a variable: up to 255 letters, digits and _, no digit first")
    if name.startswith("RGRID_"):
        raise ValueError("names that begin with RGRID_ are set by RGrid")


def _check_secrets(names: tuple[str, ...]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fault(f"{name} stands twice", at=pointer(index))
    return names


def _check_runtime(name: str) -> None:
    if not RUNTIME.fullmatch(name):
        raise ValueError("a runtime is named like python3.12: lower-case letters, digits and . _ -, a letter first")


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
    """What a job may use at most. CPUs, and bytes. ``memory_max``: of an attempt after one that ran out of memory."""

    cpu: Annotated[float, cpu_between(0.01, 256)] = 1.0
    memory: Annotated[int, size_between(16 * 1024**2, 1024**4)] = 1024**3
    disk: Annotated[int, size_between(16 * 1024**2, 1024**4)] = 2 * 1024**3
    memory_max: Annotated[int, size_between(16 * 1024**2, 1024**4)] | None = Field(None, alias="memoryMax")

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.memory_max is not None and self.memory_max < self.memory:
            raise fault(f"must not be less than memory, which is {format_bytes(self.memory)}", at="/memoryMax")
        return self

    @property
    def grown_memory(self) -> int | None:
        """What an attempt gets after one that ran out of memory: twice as much, as far as allowed; None for no more."""
        if self.memory_max is None or self.memory_max == self.memory:
            return None
        return min(2 * self.memory, self.memory_max)


class Input(Part):
    """A file below /in: fetched from ``url`` (https://… or artifact:art_…), or ``content`` as it is."""

    path: Annotated[str, checked(check_input_path, pattern="^/in/")]
    url: Annotated[Template, template(URL_BYTES)] | None = None
    content: Annotated[Template, template(CONTENT_BYTES)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.content is None):
            raise fault("must have either url or content")
        return self


def _name_may_be_the_files(schema: dict[str, Any]) -> None:
    schema["required"].remove("name")
    plain = {"properties": {"path": {"not": {"pattern": r"[*?\[]"}}}}
    schema["anyOf"] = [{"required": ["name"]}, plain]


class Output(Part):
    """A file below /out, or the files that a glob matches. ``name``: that of the file, unless given."""

    model_config = ConfigDict(json_schema_extra=_name_may_be_the_files)

    path: Annotated[str, checked(check_output_path, pattern="^/out/")]
    name: Annotated[str, checked(check_output_name, pattern=f"^{OUTPUT_NAME.pattern}$")]
    content_type: Annotated[str, checked(_check_media_type, pattern=f"^{_MEDIA_TYPE.pattern}$")] | None = Field(
        None, alias="contentType"
    )
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


def _one_of_image_and_runtime(schema: dict[str, Any]) -> None:
    schema["properties"]["image"].pop("default", None)
    schema["oneOf"] = [{"required": ["image"]}, {"required": ["runtime"]}]


class JobSpec(Part):
    """``image`` is empty while the operator's catalogue has not been asked for that of ``runtime``."""

    model_config = ConfigDict(json_schema_extra=_one_of_image_and_runtime)

    image: Annotated[str, checked(check_image)] = ""
    runtime: Annotated[str, checked(_check_runtime, pattern=f"^{RUNTIME.pattern}$")] | None = None
    pull_secret: Annotated[str, checked(check_secret_name, pattern=f"^{_VARIABLE.pattern}$")] | None = Field(
        None, alias="pullSecret"
    )
    """The project's secret ``user:token``, for the image's registry."""
    command: (
        Annotated[
            tuple[Annotated[Template, template(ARGUMENT_BYTES)], ...],
            at_most(MOST_ARGUMENTS),
            Field(strict=False),
            Check(_check_command, {"minItems": 1}),
        ]
        | None
    ) = None
    env: Annotated[
        dict[str, Annotated[Template, template(ARGUMENT_BYTES)]],
        at_most(MOST_VARIABLES),
        Check(_check_variables, {"propertyNames": {"pattern": f"^{_VARIABLE.pattern}$"}}),
    ] = Field(default_factory=dict)
    secrets: Annotated[
        tuple[Annotated[str, checked(check_secret_name, pattern=f"^{_VARIABLE.pattern}$")], ...],
        at_most(MOST_SECRETS),
        Field(strict=False),
        Check(_check_secrets, {"uniqueItems": True}),
    ] = ()
    resources: Resources = Resources()
    files: Files = Files()
    timeout: Annotated[timedelta, duration_between(timedelta(seconds=1), timedelta(days=7))] = timedelta(minutes=10)
    """Wall clock of one attempt."""
    grace: Annotated[timedelta, duration_between(timedelta(0), timedelta(minutes=10))] = timedelta(seconds=10)
    """Between SIGTERM and SIGKILL."""
    network: bool = False
    # Not 0: root of the container is root of the node for whoever gets out of it.
    user: Annotated[int, Field(ge=1, le=2**31 - 1)] = 65532

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> Self:
        if info.context is not None:  # a version has both: the runtime's name, and what it stood for
            if not self.image and self.runtime is None:
                raise fault("is required: name an image, or a runtime", at="/image")
            if self.image and self.runtime is not None:
                raise fault("goes without image: the operator says which image a runtime is", at="/runtime")
        if self.runtime is not None and self.pull_secret is not None:
            raise fault("goes with an image of your own registry, not with a runtime", at="/pullSecret")
        for index, name in enumerate(self.secrets):
            if name in self.env:
                raise fault(f"{name} stands in env, too", at=pointer("secrets", index))
        return self

    @property
    def secret_places(self) -> dict[str, str]:
        """Pointer (below ``spec.job``) → name of each project secret that this needs."""
        places = {pointer("secrets", index): name for index, name in enumerate(self.secrets)}
        return places if self.pull_secret is None else {"/pullSecret": self.pull_secret} | places
