"""Which gateway a command talks to, and with which key."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.cli import config
from gateway.cli.config import Context, Contexts, Flags
from gateway.cli.failures import Failed
from tests.gateway.cli.conftest import Rgrid

KEY = "key-of-the-first-gateway"
SAVED = Contexts(
    "one", {"one": Context("http://one:8080", KEY, "acme/default"), "two": Context("https://two", "key-of-two")}
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    found = {"XDG_CONFIG_HOME": str(tmp_path)}
    config.write(SAVED, found)
    return found


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        (Flags(), {}, Context("http://one:8080", KEY, "acme/default")),
        (Flags(), {"RGRID_URL": "https://two/"}, Context("https://two", "key-of-two")),
        (Flags(url="https://two"), {"RGRID_URL": "http://one:8080"}, Context("https://two", "key-of-two")),
        (Flags(), {"RGRID_API_KEY": "other"}, Context("http://one:8080", "other", "acme/default")),
        (Flags(key="flag"), {"RGRID_API_KEY": "other"}, Context("http://one:8080", "flag", "acme/default")),
        (Flags(), {"RGRID_URL": "", "RGRID_API_KEY": ""}, Context("http://one:8080", KEY, "acme/default")),
        (Flags(project="mine"), {}, Context("http://one:8080", KEY, "mine")),
        # A saved key goes to the gateway that it was saved for, and to no other.
        (Flags(url="http://one:8081"), {}, Context("http://one:8081", None)),
        (Flags(url="http://evil"), {"RGRID_PROJECT": "p"}, Context("http://evil", None, "p")),
    ],
)
def test_flags_go_before_variables_and_those_before_the_context(
    environment: dict[str, str], flags: Flags, variables: dict[str, str], expected: Context
) -> None:
    assert config.target(flags, environment | variables) == expected


def test_without_any_of_them_it_is_the_gateway_of_rgrid_up(tmp_path: Path) -> None:
    assert config.target(Flags(), {"XDG_CONFIG_HOME": str(tmp_path)}) == Context("http://127.0.0.1:8080", None)


def test_contexts_are_read_as_they_were_written_and_only_by_their_owner(environment: dict[str, str]) -> None:
    assert config.read(environment) == SAVED
    assert stat.S_IMODE(config.path(environment).stat().st_mode) == 0o600
    assert [entry.name for entry in config.path(environment).parent.iterdir()] == ["config.toml"]


def test_a_key_does_not_show_in_a_representation() -> None:
    assert KEY not in repr(SAVED) and KEY not in repr(Flags(key=KEY))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"active = ", "is not valid"),
        (b"\xff\xfe", "is not valid"),
        (b"contexts = 3", "is not a list of contexts"),
        (b"[contexts.one]\nkey = 'k'", "is not a list of contexts"),
        (b"[contexts.one]\nurl = 3", "is not a list of contexts"),
        (b"[contexts.one]\nurl = 'http://one'\nkey = 3", "is not a list of contexts"),
        (b"[contexts.'a/b']\nurl = 'http://one'", "is not a list of contexts"),
    ],
)
def test_a_damaged_file_is_named(environment: dict[str, str], content: bytes, said: str) -> None:
    config.path(environment).write_bytes(content)
    with pytest.raises(Failed, match=said) as failed:
        config.read(environment)
    assert str(config.path(environment)) in str(failed.value)


def test_an_active_context_that_is_gone_is_none(environment: dict[str, str]) -> None:
    config.path(environment).write_text("active = 'three'\n")
    assert config.target(Flags(), environment).url == config.DEFAULT_URL


def test_contexts_are_chosen_shown_and_removed(rgrid: Rgrid, home: Path) -> None:
    config.write(SAVED, {"XDG_CONFIG_HOME": str(home / "config")})
    listed = rgrid("context", "--json").json["data"]
    assert [(one["name"], one["active"]) for one in listed] == [("one", True), ("two", False)]
    assert rgrid("context", "use", "two").status == 0
    shown = rgrid("context", "show", "--json")
    assert shown.json == {"url": "https://two", "key": "…", "project": None}
    assert rgrid("context", "show", "--json", "--key", KEY + KEY).json["key"] == "key-of-t…"
    assert rgrid("context", "rm", "two").status == 0
    assert rgrid("context", "show", "--json").json["url"] == config.DEFAULT_URL
    assert "one" in rgrid("context").out
    assert rgrid("context", "rm", "one").status == 0
    assert "no contexts yet" in rgrid("context").err
