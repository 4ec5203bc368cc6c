"""A webhook of a function: who may call it, what of its calls becomes a job, and with which params.

Left out, ``params`` are the request's JSON body, and ``dedupe`` is the id that the sender has for a delivery.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from functions import expressions, filling
from functions.documents import pointer, shown
from functions.errors import FieldError, Invalid
from functions.expressions import WEBHOOK_ROOTS, Budget, Lookup, MissingValue, Template
from functions.fields import BAD_TEMPLATE, Part, ReadAs, at_most, checked, duration_between, fault, quoting_hint
from functions.filling import PARAMS_SIZE
from functions.names import Name
from functions.params import ParamsSchema
from functions.secret_names import SecretNames, places_of_names
from functions.verifying import NONE, SCHEMES, Options
from functions.verifying.plain_hmac import ALGORITHMS, ENCODINGS

MOST_WEBHOOKS = 20
MOST_FILTERS, MOST_ALLOWED, ALLOWED_CHARACTERS = 20, 100, 1024
PARAMS_BYTES = 64 * 1024
"""Of the templates; gateways keep webhooks in memory."""
DEDUPE_BYTES = 1024
LONGEST_PER = timedelta(days=1)

_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_PLACE = re.compile(r"(header|query)\.[\w-]{1,100}|body(\.[\w-]{1,200}){0,31}")
Scalar = str | int | float | bool | None


def _check_header(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise fault("is no header's name: letters, digits and dashes")
    return name.lower()


def _check_prefix(text: str) -> None:
    if len(text) > 100 or not text.isascii() or not text.isprintable():
        raise ValueError("has up to 100 visible ASCII characters")


def _read_filter(value: object) -> dict[str, tuple[Scalar, ...]]:
    if not isinstance(value, dict):
        raise fault("must be a mapping of places to the values that they may have")
    if len(value) > MOST_FILTERS:
        raise fault(f"has {len(value)} entries, and {MOST_FILTERS} is the most")
    read: dict[str, tuple[Scalar, ...]] = {}
    for place, allowed in value.items():
        if not isinstance(place, str) or not _PLACE.fullmatch(place):
            raise fault(
                f"{shown(str(place))} is no place of a request: write header.x-github-event, body.action or query.name",
                at=pointer(str(place)[:200]),
            )
        root, dot, rest = place.partition(".")
        key = root + dot + (rest.lower() if root == "header" else rest)
        if key in read:
            raise fault(f"{key} stands twice", at=pointer(place))
        read[key] = _read_allowed(allowed, place, text=root != "body")
    return read


def _read_allowed(allowed: object, place: str, *, text: bool) -> tuple[Scalar, ...]:
    if not isinstance(allowed, list | tuple) or not allowed:
        raise fault("must be a list of values that it may have", at=pointer(place))
    if len(allowed) > MOST_ALLOWED:
        raise fault(f"has {len(allowed)} entries, and {MOST_ALLOWED} is the most", at=pointer(place))
    for index, each in enumerate(allowed):
        at = pointer(place, index)
        if text and not isinstance(each, str):
            raise fault(f"must be text, as headers and queries are{quoting_hint(each)}", at=at)
        if isinstance(each, dict | list):
            raise fault("must be text, a number, true, false or null", at=at)
        if isinstance(each, str) and "{{" in each:
            raise fault("no template can stand here", BAD_TEMPLATE, at=at)
        if len(str(each)) > ALLOWED_CHARACTERS:
            raise fault(f"is longer than {ALLOWED_CHARACTERS} characters", at=at)
    return tuple(allowed)


def _write_filter(value: Mapping[str, tuple[Scalar, ...]]) -> Any:
    return {place: list(allowed) for place, allowed in value.items()}


def _check_params(params: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(params)) > PARAMS_BYTES:
        raise fault(f"have more than {PARAMS_BYTES // 1024} KiB")
    return filling.check_templates(params, WEBHOOK_ROOTS)


def _read_dedupe(value: object) -> Template:
    if not isinstance(value, str):
        raise fault(f"must be text{quoting_hint(value)}")
    if len(value.encode()) > DEDUPE_BYTES:
        raise fault(f"is longer than {DEDUPE_BYTES} bytes")
    try:
        template = expressions.parse(value, WEBHOOK_ROOTS)
    except expressions.BadTemplate as error:
        raise fault(str(error), BAD_TEMPLATE) from None
    if not any(lookup.path[0] in ("body", "header", "query") for lookup in template.lookups):
        raise fault("needs a look-up: what tells one delivery from another, such as {{ header.x-delivery-id }}")
    return template


_ALLOWED_SCHEMA = {"type": "array", "minItems": 1, "maxItems": MOST_ALLOWED}
Filter = ReadAs(
    _read_filter,
    _write_filter,
    {"type": "object", "maxProperties": MOST_FILTERS, "additionalProperties": _ALLOWED_SCHEMA},
)


class WebhookRate(Part):
    """How many verified requests each gateway takes in ``per``; the others are told when to come again."""

    limit: Annotated[int, Field(ge=1, le=1_000_000)]
    per: Annotated[timedelta, duration_between(timedelta(seconds=1), LONGEST_PER)] = timedelta(seconds=1)


class WebhookSpec(Part):
    """``header``, ``algorithm``, ``encoding`` and ``prefix`` go with ``verify: hmac``; ``header`` and ``prefix`` with
    ``token``, too. All of ``filter`` must fit, each with one of its values."""

    name: Name
    verify: Literal[SCHEMES]  # type: ignore[valid-type]  # of a constant: one list of them
    secret: SecretNames | None = None
    header: Annotated[str, AfterValidator(_check_header)] | None = None
    algorithm: Literal[ALGORITHMS] | None = None  # type: ignore[valid-type]
    encoding: Literal[ENCODINGS] | None = None  # type: ignore[valid-type]
    prefix: Annotated[str, checked(_check_prefix, maxLength=100)] | None = None
    filter: Annotated[dict[str, tuple[Scalar, ...]], Filter] = Field(default_factory=dict)
    params: Annotated[dict[str, Any], at_most(1000), AfterValidator(_check_params)] | None = None
    dedupe: Annotated[Template, ReadAs(_read_dedupe, str, {"type": "string"})] | None = None
    rate: WebhookRate | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("verify") == "hmac":
            return {"algorithm": "sha256", "encoding": "hex", **given}
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.verify == NONE and self.secret is not None:
            raise fault("verifies nothing: leave it out, or say in verify how it is used", at="/secret")
        if self.verify != NONE and self.secret is None:
            raise fault("is required: the name of the project secret that the sender signs with", at="/secret")
        if self.verify == "hmac" and self.header is None:
            raise fault("is required: the header that the signature is in", at="/header")
        for key in ("header", "algorithm", "encoding", "prefix"):
            takes = ("hmac", "token") if key in ("header", "prefix") else ("hmac",)
            if getattr(self, key) is not None and self.verify not in takes:
                raise fault(f"goes with verify: {' or '.join(takes)}", at=f"/{key}")
        if self.verify == "token" and self.prefix is not None and self.header is None:
            raise fault("goes with a header; without one the token stands behind Bearer", at="/prefix")
        return self

    @property
    def options(self) -> Options:
        return Options(self.header, self.algorithm or "sha256", self.encoding or "hex", self.prefix or "")

    @property
    def secret_places(self) -> dict[str, str]:
        """Pointer into the webhook → name of each secret that it needs."""
        return {} if self.secret is None else places_of_names(self.secret, "/secret")

    def stored(self) -> dict[str, Any]:
        """As JSON types, what the database keeps; ``stored_webhook`` reads it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def check_distinct(webhooks: tuple[WebhookSpec, ...]) -> tuple[WebhookSpec, ...]:
    """Refuse two of one name."""
    names = [webhook.name for webhook in webhooks]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fault(f"the name {name} stands twice", at=pointer(index, "name"))
    return webhooks


def impossible_params(webhook: WebhookSpec, schema: ParamsSchema) -> Iterator[tuple[str, str]]:
    """Params that the function never takes: the pointer of each into the webhook, and what is wrong."""
    for name in webhook.params or {}:
        if not schema.may_have((name,)):
            yield pointer("params", name), "the function has no such param: spec.params has no such property"


def passes(webhook: WebhookSpec, values: Mapping[str, Any]) -> bool:
    """Whether the filter lets a request through; ``values`` has what look-ups find."""
    for place, allowed in webhook.filter.items():
        try:
            found = expressions.find(Lookup(tuple(place.split("."))), values)
        except MissingValue:
            return False
        if not any(_same(found, each) for each in allowed):
            return False
    return True


def params_of(webhook: WebhookSpec, values: Mapping[str, Any], schema: ParamsSchema) -> dict[str, Any]:
    """The params of the job that a request makes; raises ``Invalid``.

    A param that is one look-up without a value is left to the schema, if that has a default for it.
    """
    if webhook.params is None:
        body = values["body"]
        if not isinstance(body, dict):
            message = "the body is no JSON object, and the webhook makes no params of it"
            raise Invalid(message, code="params_invalid", errors=[FieldError("", message)])
        return body
    budget = Budget(PARAMS_SIZE)
    params: dict[str, Any] = {}
    for name, value in webhook.params.items():
        try:
            params[name] = filling.filled(value, values, WEBHOOK_ROOTS, budget)
        except MissingValue as error:
            whole = isinstance(value, str) and expressions.parse(value, WEBHOOK_ROOTS).lookup is not None
            if whole and schema.has_default(name):
                continue
            faults = [FieldError(pointer(name), str(error))]
            raise Invalid(f"{name}: {error}", code="template_invalid", errors=faults) from None
    return params


def stored_webhook(document: Mapping[str, Any]) -> WebhookSpec:
    """What ``stored`` wrote, read again."""
    return WebhookSpec.model_validate(document)


def _same(found: Any, allowed: Scalar) -> bool:
    if isinstance(found, bool) or isinstance(allowed, bool):
        return found is allowed
    if isinstance(found, int | float) and isinstance(allowed, int | float):
        return found == allowed
    return type(found) is type(allowed) and bool(found == allowed)
