"""What is in the body of a webhook's request, read once it is known who has sent it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from functions.documents import load_json
from functions.errors import FieldError, Invalid, Malformed, UnsupportedMedia
from functions.verifying import Headers

FORM = "application/x-www-form-urlencoded"
CLOUD_EVENT = "application/cloudevents+json"
MOST_FIELDS = 1000
IN_A_FIELD = frozenset({"github", "slack"})
"""Senders that wrap a JSON document into the field `payload` of a form."""

_JSON = re.compile(r"(?:application|text)/(?:[a-z0-9.+-]+\+)?json")
_TEXT = re.compile(r"text/[a-z0-9.+-]+|application/(?:[a-z0-9.+-]+\+)?xml")
_UTF8 = re.compile(r'\s*charset\s*=\s*"?(?:utf-?8|us-ascii)"?\s*', re.IGNORECASE)


def read_content(scheme: str, headers: Headers, body: bytes) -> Any:
    """JSON as it is, a form as an object of texts (a list where a field stands twice), other text as text; None without
    a body. Raises ``UnsupportedMedia``, ``Malformed`` or ``Invalid``."""
    kind = media_type(headers)
    if not body:
        return None
    if kind == FORM:
        return _form(scheme, body)
    if kind == "" or _JSON.fullmatch(kind):
        return load_json(body)
    if _TEXT.fullmatch(kind):
        return _storable(_decoded(body))
    raise UnsupportedMedia(f"a webhook takes JSON, a form ({FORM}) or text")


def media_type(headers: Headers) -> str:
    """In lower case, without parameters; empty when the sender does not say. Raises ``UnsupportedMedia``."""
    kind, *parameters = headers.get("content-type", "").split(";")
    for parameter in parameters:
        if parameter.strip().lower().startswith("charset") and not _UTF8.fullmatch(parameter):
            raise UnsupportedMedia("text must be UTF-8")
    return kind.strip().lower()


def cloud_event_id(headers: Headers, content: Any) -> tuple[str, str] | None:
    """``source`` and ``id`` of a CloudEvent, which are one event together; None for what is no CloudEvent.

    Binary mode has them in headers, structured mode in the body. Raises ``Malformed`` for one that lacks what it needs.
    """
    kind = media_type(headers)
    if kind.startswith("application/cloudevents-batch"):
        raise UnsupportedMedia("send one CloudEvent at a time")
    if kind == CLOUD_EVENT:
        event = content if isinstance(content, dict) else {}
        found = {name: event.get(name) for name in ("specversion", "source", "id", "type")}
    elif "ce-specversion" in headers:
        found = {name: headers.get(f"ce-{name}") for name in ("specversion", "source", "id", "type")}
    else:
        return None
    missing = [name for name, value in found.items() if not isinstance(value, str) or not value]
    if missing:
        raise Malformed(f"the CloudEvent has no {', '.join(missing)}")
    return str(found["source"]), str(found["id"])


def _form(scheme: str, body: bytes) -> Any:
    text = _decoded(body)
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Malformed("the form cannot be read: it is UTF-8, with no more than 1000 fields") from None
    if scheme in IN_A_FIELD and [name for name, _ in pairs] == ["payload"]:
        return load_json(pairs[0][1].encode())
    fields: dict[str, Any] = {}
    for name, value in pairs:
        _storable(name), _storable(value)
        if name not in fields:
            fields[name] = value
        elif isinstance(fields[name], list):
            fields[name].append(value)
        else:
            fields[name] = [fields[name], value]
    return fields


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start}") from None


def _storable(text: str) -> str:
    if "\0" in text:
        message = "holds a NUL character, which cannot be stored"
        raise Invalid(f"the body {message}", code="invalid_text", errors=[FieldError("", message)])
    return text
