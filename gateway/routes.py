"""A row of the route table, from which router and OpenAPI document are made; and how requests are read.

A handler is ``async def name(request: Request) -> Response``. Who calls has been checked against the route's
scope before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from functions.documents import load_json, pointer, shown
from functions.errors import FieldError, Invalid, Malformed
from gateway.auth import Caller, NodeCaller, Scope
from gateway.body import CAP_BYTES, JSON, content_type, read_raw

if TYPE_CHECKING:
    from gateway.services import Services

__all__ = [
    "Answer", "Handler", "IdempotencyKey", "Route", "Scope", "caller", "content_type", "gone", "has_body",
    "node_caller", "read_body", "read_headers", "read_query", "read_raw", "services",
]  # fmt: skip

Handler = Callable[[Request], Awaitable[Response]]
Answer = type[BaseModel] | str | None
"""A model is JSON, text is a media type, None has no body."""
Model = TypeVar("Model", bound=BaseModel)

PARAMETERS = 100
FAULTS = 20
"""No more are listed for one request."""

IdempotencyKey = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]


@dataclass(frozen=True, slots=True)
class Route:
    """``body`` is a model (JSON) or the media types that it may have; ``answers``: what comes with a status.

    ``scope`` None is open to everyone; ``own``: a key that may only invoke gets in, too, and its handler shows it
    no other jobs than its own. Problem answers follow from the rest and need no mention.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None
    body: type[BaseModel] | tuple[str, ...] | None = None
    query: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None
    answers: Mapping[int, Answer | tuple[Answer, ...]] = field(default_factory=dict)
    tag: str = ""
    body_required: bool = True
    own: bool = False

    @property
    def segments(self) -> list[str]:
        return self.path.strip("/").split("/")

    @property
    def path_parameters(self) -> tuple[str, ...]:
        return tuple(segment[1:-1] for segment in self.segments if segment.startswith("{"))

    @property
    def media_types(self) -> tuple[str, ...]:
        if self.body is None:
            return ()
        return self.body if isinstance(self.body, tuple) else (JSON,)


def services(request: Request) -> Services:
    found: Services = request.scope["rgrid.services"]
    return found


def caller(request: Request) -> Caller:
    """Whose API key this is; only where the route has a scope."""
    found: Caller = request.scope["rgrid.caller"]
    return found


def node_caller(request: Request) -> NodeCaller:
    """Which node calls; only where the route's scope is ``NODE``."""
    found: NodeCaller = request.scope["rgrid.caller"]
    return found


async def read_body(request: Request, model: type[Model], *, cap: int = CAP_BYTES) -> Model:
    """The JSON body as a model, nothing coerced: ``true`` is no number and ``"1"`` neither."""
    route: Route = request.scope["rgrid.route"]
    if not route.body_required and not has_body(request):
        return _parsed(lambda: model.model_validate({}), "")
    data = await read_raw(request, cap, media_types=(JSON,))
    # Refuses what pydantic's reader lets pass: duplicate keys, depth, text that cannot be stored.
    load_json(data)
    return _parsed(lambda: model.model_validate_json(data, strict=True), "")


def read_query(request: Request, model: type[Model]) -> Model:
    """The query as a model. Each parameter may stand once; unknown ones are refused."""
    values = query_values(request.scope["query_string"])
    for name in _integers(model) & values.keys():
        if not re.fullmatch(r"-?[0-9]{1,19}", values[name]):
            fault = FieldError(f"/query/{name}", "not a whole number")
            raise Invalid("the query breaks a rule", errors=[fault])
    return _parsed(lambda: model.model_validate_strings(values), "/query")


def read_headers(request: Request, model: type[Model]) -> Model:
    """Those headers that the model's aliases name. Each may stand once; a bad one is ``Malformed``."""
    wanted = {name.lower().encode(): name for name in names(model)}
    values: dict[str, str] = {}
    for name, value in request.scope["headers"]:
        if (known := wanted.get(name)) is not None:
            if known in values:
                raise Malformed(f"there is more than one {known} header")
            values[known] = value.decode("latin-1").strip(" \t")
    try:
        return model.model_validate_strings(values)
    except ValidationError as error:
        raise Malformed("a header breaks a rule", errors=field_errors(error, "/header")) from None


def names(model: type[BaseModel]) -> list[str]:
    """What the model's fields are called outside."""
    return [info.alias or name for name, info in model.model_fields.items()]


async def gone(request: Request) -> None:
    """Return when the client has closed the connection: a handler that waits long waits for this, too."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def query_values(query: bytes) -> dict[str, str]:
    """The parameters of a query; raises ``Malformed`` or ``Invalid`` for what has no single meaning."""
    if not query:
        return {}
    if query.count(b"&") >= PARAMETERS:
        raise Malformed(f"there are more than {PARAMETERS} query parameters")
    if re.search(rb"%(?![0-9A-Fa-f]{2})", query):
        raise Malformed("the query has a percent sign without two hex digits")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", separator="&")
    except UnicodeDecodeError:
        raise Malformed("the query is not UTF-8") from None
    values: dict[str, str] = {}
    faults = []
    for name, value in pairs:
        if name in values:
            faults.append(FieldError(_pointer("/query", (name,)), "given more than once"))
        if "\0" in name or "\0" in value:
            faults.append(FieldError(_pointer("/query", (name,)), "holds a NUL character"))
        values[name] = value
    if faults:
        raise Invalid("the query breaks a rule", errors=faults[:FAULTS])
    return values


def no_query(query: bytes) -> None:
    """Refuse any parameter, for routes that have none."""
    unknown = [FieldError(_pointer("/query", (name,)), "unknown parameter") for name in query_values(query)]
    if unknown:
        raise Invalid("this takes no query parameters", errors=unknown[:FAULTS])


def field_errors(error: ValidationError, prefix: str) -> list[FieldError]:
    """What pydantic found, as pointers; values are not repeated."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        FieldError(_pointer(prefix, fault["loc"]), fault["msg"].removeprefix("Value error, "))
        for fault in faults[:FAULTS]
    ]


def _parsed(parse: Callable[[], Model], prefix: str) -> Model:
    try:
        return parse()
    except ValidationError as error:
        faults = field_errors(error, prefix)
        first = faults[0]
        where = shown(first.pointer) if first.pointer else "the body"
        raise Invalid(f"{where}: {first.message}", errors=faults) from None


def _pointer(prefix: str, path: Iterable[str | int]) -> str:
    return prefix + pointer(*(part[:200] if isinstance(part, str) else part for part in path))


@lru_cache(maxsize=256)
def _integers(model: type[BaseModel]) -> frozenset[str]:
    """Parameters that are whole numbers: pydantic reads ``1_000``, ``+1`` and ``1.0`` as such, too."""
    properties: dict[str, Any] = model.model_json_schema(mode="validation")["properties"]
    return frozenset(
        name
        for name, schema in properties.items()
        if any(kind.get("type") == "integer" for kind in (schema, *schema.get("anyOf", ())))
    )


def has_body(request: Request) -> bool:
    """Whether the client sends one, as far as its headers tell."""
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
