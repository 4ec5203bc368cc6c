"""A webhook as a manifest has it: what it may say, what it lets through, and the params that it makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from functions.errors import Invalid
from functions.manifest import parse_manifest, stored_manifest
from functions.params import ParamsSchema
from functions.verifying import Headers
from functions.webhook_ids import delivery_id, shortened
from functions.webhook_spec import MOST_WEBHOOKS, WebhookSpec, params_of, passes, stored_webhook
from tests.functions.manifests import POLICY

HOOK = {"name": "in", "verify": "github", "secret": "HOOK"}


def parsed(*webhooks: dict[str, Any], params: Any = None) -> tuple[WebhookSpec, ...]:
    spec = {"job": {"image": "busybox:1"}, "triggers": {"webhooks": list(webhooks)}}
    document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": "ci"}, "spec": spec}
    if params is not None:
        spec["params"] = params
    read = parse_manifest(json.dumps(document).encode(), yaml=False, policy=POLICY)
    assert stored_manifest(json.loads(json.dumps(read.stored()))) == read
    return () if read.spec.triggers is None else read.spec.triggers.webhooks


def refused(*webhooks: dict[str, Any], params: Any = None) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        parsed(*webhooks, params=params)
    at = "/spec/triggers/webhooks"
    assert all(one.pointer.startswith(at) for one in caught.value.errors)
    return [(one.pointer.removeprefix(at), one.message) for one in caught.value.errors]


def spec(**more: Any) -> WebhookSpec:
    return WebhookSpec.model_validate({"name": "in", "verify": "none", **more})


def request(body: Any = None, query: Any = None, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "body": body, "query": query or {}, "header": Headers(pairs),
        "trigger": {"kind": "webhook", "name": "in"}, "function": {"name": "ci", "version": 1},
    }  # fmt: skip


def test_the_webhook_of_the_products_page() -> None:
    (hook,) = parsed(
        {
            "name": "github", "verify": "github", "secret": "GITHUB_WEBHOOK_SECRET",
            "filter": {"header.x-github-event": ["push"]}, "params": {"ref": "{{ body.ref }}"},
        }
    )  # fmt: skip
    assert (hook.secret, hook.filter) == (("GITHUB_WEBHOOK_SECRET",), {"header.x-github-event": ("push",)})
    assert hook.secret_places == {"/secret": "GITHUB_WEBHOOK_SECRET"}
    assert stored_webhook(json.loads(json.dumps(hook.stored()))) == hook


def test_no_triggers_are_as_good_as_none_said() -> None:
    document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": "ci"}}
    read = [
        parse_manifest(
            json.dumps({**document, "spec": {"job": {"image": "a"}, **more}}).encode(), yaml=False, policy=POLICY
        )
        for more in ({}, {"triggers": {}}, {"triggers": {"webhooks": []}})
    ]
    assert read[0] == read[1] == read[2] and "triggers" not in read[0].stored()["spec"]


def test_what_means_the_same_is_written_the_same() -> None:
    (plain,) = parsed({"name": "in", "verify": "hmac", "secret": ["HOOK"], "header": "X-Sig"})
    (full,) = parsed(
        {
            "name": "in", "verify": "hmac", "secret": "HOOK", "header": "x-sig", "algorithm": "sha256",
            "encoding": "hex", "filter": {},
        }
    )  # fmt: skip
    assert plain == full and plain.stored() == full.stored()


@pytest.mark.parametrize(
    ("hook", "pointer", "words"),
    [
        ({"verify": None}, "/verify", "has no value"),
        ({"verify": "md5"}, "/verify", "must be 'standard'"),
        ({"name": "In"}, "/name", "lower-case"),
        ({"secret": None}, "/secret", "has no value"),
        ({"secret": []}, "/secret", "must name a secret"),
        ({"secret": ["A", "B", "C"]}, "/secret", "2 is the most"),
        ({"secret": ["A", "A"]}, "/secret/1", "twice"),
        ({"secret": "no-name"}, "/secret", "named as a variable"),
        ({"secret": ""}, "/secret", "named as a variable"),
        ({"header": "x-a"}, "/header", "goes with verify: hmac or token"),
        ({"algorithm": "sha1"}, "/algorithm", "goes with verify: hmac"),
        ({"verify": "token", "encoding": "hex"}, "/encoding", "goes with verify: hmac"),
        ({"verify": "token", "prefix": "Key "}, "/prefix", "goes with a header"),
        ({"verify": "hmac"}, "/header", "is required"),
        ({"verify": "hmac", "header": "x a"}, "/header", "no header's name"),
        ({"verify": "hmac", "header": "x-a", "algorithm": "md5"}, "/algorithm", "must be"),
        ({"verify": "hmac", "header": "x-a", "prefix": "ä"}, "/prefix", "ASCII"),
        ({"verify": "none"}, "/secret", "verifies nothing"),
        ({"filter": []}, "/filter", "must be a mapping"),
        ({"filter": {"event": ["a"]}}, "/filter/event", "no place of a request"),
        ({"filter": {"header": ["a"]}}, "/filter/header", "no place of a request"),
        ({"filter": {"body..a": ["a"]}}, "/filter/body..a", "no place of a request"),
        ({"filter": {"header.a": "b"}}, "/filter/header.a", "must be a list"),
        ({"filter": {"header.a": []}}, "/filter/header.a", "must be a list"),
        ({"filter": {"header.a": [1]}}, "/filter/header.a/0", "put it in quotes"),
        ({"filter": {"body.a": [{}]}}, "/filter/body.a/0", "must be text, a number"),
        ({"filter": {"body.a": ["{{ body.b }}"]}}, "/filter/body.a/0", "no template"),
        ({"filter": {"header.a": ["x"], "header.A": ["y"]}}, "/filter/header.A", "twice"),
        ({"filter": {f"body.a{n}": [1] for n in range(21)}}, "/filter", "20 is the most"),
        ({"filter": {"body.a": list(range(101))}}, "/filter/body.a", "100 is the most"),
        ({"params": {"a": "{{ params.b }}"}}, "/params/a", "there is no"),
        ({"params": {"a": {"b": ["{{ outputs.b }}"]}}}, "/params/a/b/0", "exists only in"),
        ({"params": {"a": "all: {{ header }}"}}, "/params/a", "write header.name"),
        ({"dedupe": "{{ header }}"}, "/dedupe", "write header.name"),
        ({"params": {"a": "{{ trigger.id }}"}}, "/params/a", "trigger.kind or trigger.name"),
        ({"params": {"a": "{{ body.b | upper }}"}}, "/params/a", "no filters"),
        ({"filter": {"body.a": ["x" * 1025]}}, "/filter/body.a/0", "longer than 1024"),
        ({"params": {"a": "x" * 65536}}, "/params", "more than 64 KiB"),
        ({"dedupe": "fixed"}, "/dedupe", "needs a look-up"),
        ({"dedupe": "{{ trigger.name }}"}, "/dedupe", "needs a look-up"),
        ({"dedupe": 1}, "/dedupe", "put it in quotes"),
        ({"dedupe": "{{ body.x }}" + "x" * 1024}, "/dedupe", "longer than 1024"),
        ({"rate": {"limit": 0}}, "/rate/limit", "at least 1"),
        ({"rate": {"limit": 1, "per": "1ms"}}, "/rate/per", "must be between"),
        ({"rate": {"per": "1s"}}, "/rate/limit", "is required"),
        ({"unknown": 1}, "/unknown", "no such key"),
    ],
)
def test_what_a_webhook_cannot_say_is_refused_with_a_pointer(hook: dict[str, Any], pointer: str, words: str) -> None:
    ((found, message),) = refused({**HOOK, **hook})
    assert (found, words in message) == (f"/0{pointer}", True), message


def test_a_param_that_the_function_never_takes_is_refused() -> None:
    schema = {"type": "object", "properties": {"ref": {}}, "additionalProperties": False}
    assert parsed({**HOOK, "params": {"ref": "{{ body.ref }}"}}, params=schema)
    ((pointer, _),) = refused({**HOOK, "params": {"rev": "{{ body.ref }}"}}, params=schema)
    assert pointer == "/0/params/rev"


def test_names_are_distinct_and_not_too_many() -> None:
    assert refused(HOOK, HOOK) == [("/1/name", "the name in stands twice")]
    many = [{**HOOK, "name": f"in{number}"} for number in range(MOST_WEBHOOKS + 1)]
    assert [pointer for pointer, _ in refused(*many)] == [""]
    assert len(parsed(*many[1:])) == MOST_WEBHOOKS


@pytest.mark.parametrize(
    ("allowed", "found", "fits"),
    [
        ([1], 1, True), ([1], 1.0, True), ([1], True, False), ([True], 1, False), ([True], True, True),
        (["1"], 1, False), ([None], None, True), ([None], False, False), ([0], False, False), (["a", "b"], "b", True),
        (["a"], ["a"], False), (["a"], "A", False),
    ],
)  # fmt: skip
def test_a_filter_compares_values_of_one_type(allowed: list[Any], found: Any, fits: bool) -> None:
    assert passes(spec(filter={"body.a": allowed}), request({"a": found})) is fits


def test_a_filter_needs_all_of_its_places() -> None:
    hook = spec(filter={"header.X-Event": ["push"], "query.q": ["1"], "body.0.a": [1]})
    assert passes(hook, request([{"a": 1}], {"q": "1"}, x_event="push"))
    assert not passes(hook, request([{"a": 1}], {"q": "2"}, x_event="push"))
    assert not passes(hook, request([{"a": 1}], {"q": "1"}))
    assert not passes(hook, request("text", {"q": "1"}, x_event="push"))


def test_params_are_filled_in_and_keep_their_types() -> None:
    hook = spec(
        params={"whole": "{{ body }}", "n": "{{ body.n }}", "text": "{{ body.n }}/{{ header.X-A }}", "in": [{"q": "{{ query.q }}"}]}
    )
    made = params_of(hook, request({"n": 7}, {"q": "1"}, x_a="b"), ParamsSchema(None))
    assert made == {"whole": {"n": 7}, "n": 7, "text": "7/b", "in": [{"q": "1"}]}


def test_a_default_of_the_schema_takes_the_place_of_what_is_not_there() -> None:
    schema = ParamsSchema(
        {
            "$defs": {"text": {"type": "string", "default": "x"}},
            "allOf": [{"properties": {"c": {"default": 3}}}],
            "properties": {"a": {"default": 1}, "b": {"$ref": "#/$defs/text"}, "d": {}},
        }
    )
    for name in ("a", "b", "c"):
        assert params_of(spec(params={name: "{{ body.no }}"}), request({}), schema) == {}
    for params in ({"d": "{{ body.no }}"}, {"a": "x{{ body.no }}"}, {"a": ["{{ body.no }}"]}, {"e": "{{ header.no }}"}):
        with pytest.raises(Invalid) as caught:
            params_of(spec(params=params), request({}), schema)
        assert (caught.value.code, caught.value.errors[0].pointer) == ("template_invalid", f"/{next(iter(params))}")


def test_params_cannot_grow_without_bound() -> None:
    hook = spec(params={"a": "{{ body }}" * 500})
    with pytest.raises(Invalid, match="1048576 characters"):
        params_of(hook, request("x" * 10_000), ParamsSchema(None))


@pytest.mark.parametrize(
    ("verify", "body", "headers", "found"),
    [
        ("stripe", {"id": "evt_1"}, {}, "evt_1"),
        ("slack", {"event_id": "Ev1"}, {}, "Ev1"),
        ("twilio", {"MessageSid": "SM1", "MessageStatus": "sent"}, {}, "SM1 sent"),
        ("twilio", {"CallSid": "CA1"}, {}, "CA1"),
        ("hmac", {}, {"webhook_id": "w", "idempotency_key": "i"}, "w"),
        ("hmac", {}, {"idempotency_key": "i"}, "i"),
        ("hmac", {"id": "x"}, {}, None),
        ("none", None, {}, None),
        ("none", {}, {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/s", "ce_type": "t"}, "/s 1"),
    ],
)
def test_the_senders_id_is_where_the_sender_has_it(
    verify: str, body: Any, headers: dict[str, str], found: str | None
) -> None:
    given = {"secret": "HOOK"} if verify != "none" else {}
    given |= {"header": "x-sig"} if verify == "hmac" else {}
    values = request(body, **headers)
    assert delivery_id(spec(verify=verify, **given), values["header"], values, None) == found


@pytest.mark.parametrize(("verify", "key"), [("stripe", "id"), ("slack", "event_id"), ("discord", "id")])
def test_where_a_timestamp_is_signed_no_header_makes_a_replay_a_new_delivery(verify: str, key: str) -> None:
    hook = spec(verify=verify, secret="HOOK")
    for body in ({}, {key: 7}, {key: ""}, "text", None):
        values = request(body, webhook_id="w", ce_specversion="1.0", ce_id="1", ce_source="/s", ce_type="t")
        assert delivery_id(hook, values["header"], values, "signed:1") == "signed:1"
    values = request({key: "e"}, webhook_id="w")
    assert delivery_id(hook, values["header"], values, "signed:1") == "e"


def test_a_long_or_odd_id_is_kept_as_its_hash() -> None:
    assert (shortened("a" * 200), shortened("")) == ("a" * 200, None)
    hashes = {shortened(text) for text in ("a" * 201, "a\0b", "a\nb", "\ud800")}
    assert len(hashes) == 4 and all(text is not None and len(text) == 71 for text in hashes)
