from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.expressions import BadTemplate, Budget, MissingValue, parse, text_of

ROOTS: dict[str, Any] = {
    "params": {
        "name": "a b; $(rm) {{ params.width }}",
        "width": 320,
        "ratio": 1.5,
        "whole": 320.0,
        "huge": 1e300,
        "yes": True,
        "nothing": None,
        "empty": "",
        "tags": ["x", {"y": "é"}],
        "nested": {"deep-er": {"0": "zero"}},
    },
    "trigger": {"kind": "manual"},
    "job": {"id": "job_1"},
    "function": {"name": "thumb", "version": 3},
}


def filled(text: str) -> str:
    return text_of(parse(text), ROOTS, Budget(10_000))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("plain", "plain"),
        ("}} and } and { and {}", "}} and } and { and {}"),
        ('{"a":{"b":1}}', '{"a":{"b":1}}'),
        ("{{ params.width }}", "320"),
        ("{{params.width}}", "320"),
        ("{{\tparams.width\n}}", "320"),
        ("scale={{ params.width }}:-1", "scale=320:-1"),
        ("{{ params.width }}{{ params.ratio }}", "3201.5"),
        ("{{ params.whole }}", "320"),
        ("{{ params.huge }}", "1e+300"),
        ("x{{ params.yes }}", "xtrue"),
        ("{{ params.yes }}", "true"),
        ("[{{ params.empty }}]", "[]"),
        ("{{ params.empty }}", ""),
        ("{{ params.tags.0 }}", "x"),
        ("{{ params.tags.1.y }}", "é"),
        ("{{ params.nested.deep-er.0 }}", "zero"),
        ("{{ params.tags }}", '["x",{"y":"é"}]'),
        ("{{ params.nested }}", '{"deep-er":{"0":"zero"}}'),
        ("{{ job.id }}/{{ function.name }}/{{ function.version }}/{{ trigger.kind }}", "job_1/thumb/3/manual"),
        ("}}{{ params.width }}}}", "}}320}}"),
        # What was filled in is not looked through again.
        ("{{ params.name }}", "a b; $(rm) {{ params.width }}"),
    ],
)
def test_a_template_is_filled_in(text: str, result: str) -> None:
    assert filled(text) == result


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ }}", "names no value"),
        ("{{}}", "names no value"),
        ("{{", "not closed"),
        ("a {{ params.x } b", "not closed"),
        ("{{ params.a {{ params.b }}", "not a path"),
        ("{{ params.width | upper }}", "no filters"),
        ("{{ params['width'] }}", "not a path"),
        ("{{ params.tags[0] }}", "not a path"),
        ("{{ params.width + 1 }}", "not a path"),
        ("{{ params..width }}", "not a path"),
        ("{{ .params }}", "not a path"),
        ("{{ params. }}", "not a path"),
        ("{{ params.width }", "not closed"),
        ("{% if true %}{{ 1 }}{% endif %}", "there is no"),
        ("{{{ params.width }}}", "not a path"),
        ("{{ width }}", "a path begins with params"),
        ("{{ env.HOME }}", "a path begins with params"),
        ("{{ secrets.KEY }}", "a path begins with params"),
        ("{{ Params.width }}", "a path begins with params"),
        ("{{ job }}", "job.id"),
        ("{{ job.name }}", "job.id"),
        ("{{ job.id.x }}", "job.id"),
        ("{{ function }}", "function.name or function.version"),
        ("{{ trigger.body }}", "trigger.kind or trigger.name"),
        ("{{ params" + ".a" * 32 + " }}", "more than 32"),
        ("{{ " + "x" * 100_000, "not closed"),
    ],
)
def test_a_look_up_that_can_never_work_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadTemplate, match=words) as caught:
        parse(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("root", "place"),
    [("body", "webhook"), ("header", "webhook"), ("query", "webhook"), ("schedule", "schedule"), ("outputs", "callback")],
)
def test_a_root_that_stands_at_the_wrong_place_is_told_where_it_belongs(root: str, place: str) -> None:
    with pytest.raises(BadTemplate, match=f"{root} exists only in the params of a {place}"):
        parse(f"{{{{ {root}.x }}}}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ params.other }}", "params.other has no value"),
        ("{{ params.width.x }}", "params.width.x has no value"),
        ("{{ params.name.0 }}", "has no value"),
        ("{{ params.tags.2 }}", "has no value"),
        ("{{ params.tags.-1 }}", "has no value"),
        ("{{ params.tags.x }}", "has no value"),
        ("{{ params.tags." + "9" * 5000 + " }}", "has no value"),
        ("{{ params.tags.١ }}", "has no value"),
        ("{{ params.nothing }}", "null"),
        ("{{ params.nothing.x }}", "has no value"),
        ("a {{ params.nothing }}", "null"),
        ("a {{ params.tags }}", "a list"),
        ("a {{ params.nested }}", "an object"),
        ("{{ trigger.name }}", "trigger.name has no value"),
    ],
)
def test_a_value_that_is_missing_or_no_text_is_an_error(text: str, words: str) -> None:
    with pytest.raises(MissingValue, match=words):
        filled(text)


def test_a_short_template_over_a_long_value_ends_at_the_budget() -> None:
    roots = {"params": {"long": "x" * 1000, "list": ["x" * 1000]}}
    budget = Budget(10_500)
    with pytest.raises(MissingValue, match="10500"):
        text_of(parse("{{ params.long }}" * 1000), roots, budget)
    assert budget.left >= -1000  # it ended with the first part that did not fit
    with pytest.raises(MissingValue):
        text_of(parse("x"), roots, budget)
    with pytest.raises(MissingValue):
        text_of(parse("{{ params.list }}"), roots, Budget(1000))


@given(st.text(alphabet=st.sampled_from("{} ap.rms0-\n|")) | st.text())
def test_any_text_is_a_template_or_a_bad_one(text: str) -> None:
    try:
        template = parse(text)
    except BadTemplate:
        return
    assert str(template) == text
    try:
        text_of(template, ROOTS, Budget(10_000))
    except MissingValue:
        assert template.lookups
