"""The docs agree with the code: generated pages are current, every code is explained, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from functions.errors import CODES
from nodes.protocol import ErrorCode

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings_reference", "http_reference", "cli_reference"])
def test_a_generated_page_is_what_its_script_writes(name: str) -> None:
    module = script(name)
    assert module.PAGE.read_text() == module.page(), f"run .venv/bin/python scripts/{name}.py"


def test_every_code_of_a_problem_is_explained_and_no_other() -> None:
    page = (DOCS / "reference/problems.md").read_text()
    explained = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    assert explained == sorted(CODES)


def test_every_code_in_the_source_has_a_title() -> None:
    packages = ("functions", "scheduler", "nodes", "gateway")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    used = {code for path in sources for code in re.findall(r'\bcode ?= ?"([a-z_]+)"', path.read_text())}
    # What a guard or a node finds becomes the error of a job, not of a request.
    assert used - {*CODES, *ErrorCode, "egress_failed"} == set()


def test_every_code_of_a_failed_job_is_explained() -> None:
    page = (DOCS / "reference/job.md").read_text()
    errors = page.partition("## error")[2]
    ours = {"budget_exceeded", "concurrency_rejected", "deadline_exceeded", "node_lost", "secret_missing"}
    assert set(re.findall(r"^\| `([a-z_]+)` \|", errors, re.MULTILINE)) == {*ErrorCode, *ours}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert heading in {anchor(text) for text in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_folders_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:functions|scheduler|nodes|gateway|templates|tests|scripts)/[\w./*-]*)`", page.read_text())
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]
    assert missing == []


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
