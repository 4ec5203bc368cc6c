from __future__ import annotations

from typing import Any

import pytest

from functions.errors import Invalid
from functions.jobspec import Rendered, RenderedInput, render
from functions.rendering import ARGUMENT_BYTES
from tests.functions.manifests import manifest

CONTENTS = {"inputs": [{"path": f"/in/{n}", "content": "{{ params.a }}"} for n in range(3)]}


def rendered(params: dict[str, Any], function: str | None = "thumbnail", **job: Any) -> Rendered:
    return render(
        manifest(**job).spec,
        params=params,
        trigger={"kind": "manual"},
        job_id="job_1",
        function=function,
        version=3,
    )


def faults(params: dict[str, Any], **job: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        rendered(params, **job)
    assert caught.value.code == "template_invalid"
    return [(error.pointer, error.message) for error in caught.value.errors]


def test_a_template_is_filled_in_with_the_values_of_a_job() -> None:
    result = rendered(
        {"video": "https://x.example/v", "width": 320, "opts": {"a": [1, None]}, "text": "line\n"},
        command=["ffmpeg", "-i", "{{ params.width }}", "scale={{ params.width }}:-1", "", "{{ params.opts }}"],
        env={
            "JOB": "{{ job.id }} of {{ function.name }} {{ function.version }}",
            "BY": "{{ trigger.kind }}",
            "E": "",
        },
        files={
            "inputs": [
                {"path": "/in/video", "url": "{{ params.video }}"},
                {"path": "/in/tail", "url": "https://cdn.example/{{ params.width }}"},
                {"path": "/in/opts.json", "content": "{{ params.opts }}"},
                {"path": "/in/text", "content": ">{{ params.text }}"},
                {"path": "/in/empty", "content": ""},
            ]
        },
    )
    assert result == Rendered(
        command=["ffmpeg", "-i", "320", "scale=320:-1", "", '{"a":[1,null]}'],
        env={"JOB": "job_1 of thumbnail 3", "BY": "manual", "E": ""},
        inputs=[
            RenderedInput("/in/video", "https://x.example/v", None),
            RenderedInput("/in/tail", "https://cdn.example/320", None),
            RenderedInput("/in/opts.json", None, '{"a":[1,null]}'),
            RenderedInput("/in/text", None, ">line\n"),
            RenderedInput("/in/empty", None, ""),
        ],
    )


def test_without_a_command_the_image_has_its_own() -> None:
    assert rendered({}) == Rendered(None, {}, [])


def test_a_value_never_splits_an_argument() -> None:
    sharp = "a b\"c'd;$(e)\n--flag {{ params.x }}"
    assert rendered({"x": sharp}, command=["run", "{{ params.x }}", "<{{ params.x }}>"]).command == [
        "run",
        sharp,
        f"<{sharp}>",
    ]


def test_all_that_is_missing_is_told_together_with_its_places() -> None:
    assert faults(
        {"list": [1], "nothing": None},
        command=["run", "{{ params.a }}", "x{{ params.list }}", "{{ params.nothing }}"],
        env={"B": "{{ trigger.name }}"},
        files={
            "inputs": [{"path": "/in/a", "url": "{{ params.list }}"}, {"path": "/in/b", "content": "{{ params.c }}"}]
        },
    ) == [
        ("/spec/job/command/1", "params.a has no value"),
        ("/spec/job/command/2", "params.list is a list, which cannot stand inside a longer text"),
        ("/spec/job/command/3", "params.nothing is null, which is no text"),
        ("/spec/job/env/B", "trigger.name has no value"),
        ("/spec/job/files/inputs/0/url", "params.list is not text, and an address must be"),
        ("/spec/job/files/inputs/1/content", "params.c has no value"),
    ]


def test_a_job_without_a_function_has_no_name_for_it() -> None:
    assert rendered({}, function=None, command=["{{ function.version }}"]).command == ["3"]
    with pytest.raises(Invalid, match=r"function\.name has no value"):
        rendered({}, function=None, command=["{{ function.name }}"])


@pytest.mark.parametrize(
    ("params", "job", "at", "words"),
    [
        ({"a": ""}, {"command": ["{{ params.a }}", "x"]}, "/spec/job/command/0", "empty"),
        ({"a": "x\0"}, {"command": ["x", "{{ params.a }}"]}, "/spec/job/command/1", "NUL"),
        ({"a": "x\0"}, {"env": {"A": "{{ params.a }}"}}, "/spec/job/env/A", "NUL"),
        ({"a": "x" * 131_072}, {"command": ["x", "{{ params.a }}"]}, "/spec/job/command/1", "131071"),
        ({"a": "é" * 70_000}, {"command": ["x", "{{ params.a }}"]}, "/spec/job/command/1", "131071"),
        ({"a": "x" * 131_070}, {"env": {"A": "{{ params.a }}"}}, "/spec/job/env/A", "131071"),
        ({"a": "x" * 130_000}, {"command": ["x", *["{{ params.a }}"] * 9]}, "/spec/job/command/9", "1048576"),
        ({"a": ["x" * 999_999]}, {"files": CONTENTS}, "/spec/job/files/inputs/2/content", "2097152"),
    ],
)  # fmt: skip
def test_what_no_process_can_be_given_is_refused(
    params: dict[str, Any], job: dict[str, Any], at: str, words: str
) -> None:
    [(pointer, message)] = faults(params, **job)
    assert pointer == at
    assert words in message


def test_the_longest_argument_is_taken() -> None:
    result = rendered({"a": "x" * ARGUMENT_BYTES}, command=["x", "{{ params.a }}"], env={"A": "{{ job.id }}"})
    assert result.command is not None
    assert len(result.command[1]) == ARGUMENT_BYTES


def test_no_more_is_filled_in_than_can_be_used() -> None:
    errors = faults({"a": "x" * 1_000_000}, command=["run", *["{{ params.a }}" * 30] * 30])
    assert len(errors) == 20
