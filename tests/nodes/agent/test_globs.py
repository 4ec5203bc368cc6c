from __future__ import annotations

import time

import pytest

from nodes.agent.globs import Pattern


def matches(pattern: str, path: str) -> bool:
    return Pattern.parse(pattern).matches(tuple(path.strip("/").split("/")))


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/out/a.jpg", "/out/a.jpg", True),
        ("/out/a.jpg", "/out/b.jpg", False),
        ("/out/a.jpg", "/out/a.jpg/x", False),
        ("/out/a.jpg", "/out/x/a.jpg", False),
        ("/out//./a.jpg", "/out/a.jpg", True),
        ("/out/*", "/out/a", True),
        ("/out/*", "/out/.hidden", True),
        ("/out/*", "/out/a/b", False),
        ("/out/*.png", "/out/a.png", True),
        ("/out/*.png", "/out/a.PNG", False),
        ("/out/*.png", "/out/a.png.gz", False),
        ("/out/frame?.png", "/out/frame1.png", True),
        ("/out/frame?.png", "/out/frame10.png", False),
        ("/out/[ab].txt", "/out/a.txt", True),
        ("/out/[!ab].txt", "/out/a.txt", False),
        ("/out/[0-9]*", "/out/7up", True),
        ("/out/a[b", "/out/a[b", True),
        ("/out/[z-a]", "/out/z", False),
        ("/out/**", "/out/a", True),
        ("/out/**", "/out/a/b/c", True),
        ("/out/**/c", "/out/c", True),
        ("/out/**/c", "/out/a/b/c", True),
        ("/out/**/c", "/out/a/b/d", False),
        ("/out/**/**/c", "/out/a/c", True),
        ("/out/a/**/b/*.txt", "/out/a/x/b/y/b/1.txt", True),
        ("/out/a/**/b/*.txt", "/out/a/x/y/1.txt", False),
        ("/**", "/out/a", True),
        ("/out/*/b", "/out/a/b", True),
        ("/out/é*", "/out/éa", True),
    ],
)
def test_a_pattern_means_these_files(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


def test_only_a_path_without_wildcards_is_literal() -> None:
    assert Pattern.parse("/out/a/b").literal
    assert Pattern.parse("/out/a/b").names == ("out", "a", "b")
    assert not any(Pattern.parse(each).literal for each in ("/out/*", "/out/**", "/out/a?", "/out/[a]"))


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/out/" + "*a" * 100 + "b", "/out/" + "a" * 250),
        ("/out/" + "**/*a*a*a/" * 30 + "b", "/out/" + "/".join(["aaaaaaaaaa"] * 60)),
        ("/out/" + "[a-z]*" * 60 + "!", "/out/" + "z" * 250),
    ],
)
def test_no_pattern_takes_long(pattern: str, path: str) -> None:
    began_s = time.monotonic()
    assert not matches(pattern, path)
    assert time.monotonic() - began_s < 0.5
