"""What a terminal may get to see, and how things read."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest

from gateway.cli.failures import in_one_line, problem_line
from gateway.cli.output import log_text, size, span, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain\ttext", "plain\ttext"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b]0;title\x07", "^[]0;title^G"),
        ("\x1b[2J\x1b[H", "^[[2J^[[H"),
        ("10%\r20%", "10%20%"),
        ("\x9b31m", "�31m"),
    ],
)
def test_a_log_line_cannot_command_a_terminal(
    line: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert log_text(line, Terminal()) == shown
    assert log_text(line, io.StringIO()) == line


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert log_text("\x1b[31mred\x1b[0m", Terminal()) == "red"


def test_a_table_is_neither_cut_nor_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    table(("ID", "NOTE"), [("a" * 300, "two\nlines \x1b[31m[bold]x[/bold]"), ("b", None)])
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "ID" + " " * 300 + "NOTE",
        "a" * 300 + "  two lines [31m[bold]x[/bold]",
        "b",
    ]
    table(("ID",), [], empty="none")
    assert capsys.readouterr() == ("", "none\n")


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        ({"code": "not_found", "detail": "no job"}, "not_found: no job"),
        ({"code": "invalid", "errors": [{"pointer": "/a", "message": "is bad"}]}, "invalid: /a: is bad"),
        (
            {"code": "invalid", "errors": [{"pointer": "", "message": str(n)} for n in range(7)]},
            "invalid: 0; 1; 2; 3; 4; and 2 more",
        ),
        ({"code": "internal", "detail": "oh", "instance": "req_1"}, "internal: oh (request req_1)"),
        ({"title": "No\n\x1b[31mentry"}, "refused: No [31mentry"),
        ({}, "refused: no reason given"),
    ],
)
def test_a_problem_is_one_line(problem: dict[str, object], line: str) -> None:
    assert problem_line(problem) == line


def test_one_line_has_nothing_that_moves_a_cursor() -> None:
    assert in_one_line("a\r\nb\x1b[2J\u2028c\u202e") == "a b [2J c"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0.0s"), (0.25, "0.2s"), (59.4, "59s"), (61, "1m01s"), (3599, "59m"), (7260, "2h01m"), (200_000, "2d")],
)
def test_a_span_has_its_largest_units(seconds: float, shown: str) -> None:
    assert span(timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_300_000, "5.3 MB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes_are_decimal(count: int, shown: str) -> None:
    assert size(count) == shown
