"""How -p and --data become the params of an invocation."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli import params
from gateway.cli.params import read_params


@pytest.mark.parametrize(
    ("pairs", "data", "expected"),
    [
        ([], None, {}),
        (["width=320"], None, {"width": 320}),
        (["width=320.5", "on=true", "none=null"], None, {"width": 320.5, "on": True, "none": None}),
        (["name=Big Buck"], None, {"name": "Big Buck"}),
        (['name="320"'], None, {"name": "320"}),
        (["name="], None, {"name": ""}),
        (["url=https://a/?b=c"], None, {"url": "https://a/?b=c"}),
        (['list=["a", 1]'], None, {"list": ["a", 1]}),
        (["big=[1"], None, {"big": "[1"}),
        (["a.b.c=1", "a.b.d=2"], None, {"a": {"b": {"c": 1, "d": 2}}}),
        (["a\\.b=1"], None, {"a.b": 1}),
        (["a=2"], '{"a": 1, "b": {"c": 3}}', {"a": 2, "b": {"c": 3}}),
        (["b.d=4"], '{"a": 1, "b": {"c": 3}}', {"a": 1, "b": {"c": 3, "d": 4}}),
        (["ü=ö"], None, {"ü": "ö"}),
    ],
)
def test_pairs_are_set_over_the_data(pairs: list[str], data: str | None, expected: dict[str, Any]) -> None:
    assert read_params(pairs, data).params == expected


def test_data_comes_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "params.json"
    file.write_text('{"a": 1}')
    assert read_params([], f"@{file}").params == {"a": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"b": 2}')))
    assert read_params([], "-").params == {"b": 2}


def test_more_than_the_gateway_takes_is_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "LARGEST", 10)
    file = tmp_path / "params.json"
    file.write_text('{"a": "0123456789"}')
    with pytest.raises(typer.BadParameter, match="larger than 10 bytes"):
        read_params([], f"@{file}")
