"""``rgrid new`` and ``rgrid schema``."""

from __future__ import annotations

from pathlib import Path

import pytest

from functions.documents import load_yaml
from functions.manifest_schema import manifest_schema
from gateway.cli.new import TEMPLATES, templates
from tests.gateway.cli.conftest import Connected, Rgrid


def test_templates_are_listed_with_what_they_do(rgrid: Rgrid) -> None:
    listed = rgrid("new").out
    for name in ("ffmpeg-thumbnail", "ffmpeg-transcode"):
        assert name in listed
    assert rgrid("new", "--json").json["data"] == [
        {"name": name, "description": text} for name, text in templates().items()
    ]
    assert all(templates().values())


@pytest.mark.parametrize("template", sorted(path.parent.name for path in TEMPLATES.glob("*/function.yaml")))
def test_a_template_is_copied_with_all_its_files(rgrid: Rgrid, tmp_path: Path, template: str) -> None:
    done = rgrid("new", template, tmp_path / "mine")
    assert done.status == 0 and str(tmp_path / "mine" / "function.yaml") in done.out.splitlines()
    assert {"function.yaml", "Dockerfile", "params.json", "README.md"} <= {
        path.name for path in (tmp_path / "mine").iterdir()
    }
    assert load_yaml((tmp_path / "mine" / "function.yaml").read_bytes())["kind"] == "Function"


def test_nothing_is_overwritten(rgrid: Rgrid, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert "is there already" in rgrid("new", "ffmpeg-thumbnail", tmp_path / "full").refused()
    assert "is there already" in rgrid("new", "ffmpeg-thumbnail", tmp_path / "full" / "a").refused()
    assert "no template '../x': there are " in rgrid("new", "../x", tmp_path / "new").refused()
    (tmp_path / "empty").mkdir()
    assert rgrid("new", "ffmpeg-thumbnail", tmp_path / "empty").status == 0


async def test_the_schema_is_the_gateways(call: Connected) -> None:
    import httpx

    printed = (await call("schema")).json
    assert printed == manifest_schema()
    async with httpx.AsyncClient(trust_env=False) as anybody:
        assert (await anybody.get(f"{call.url}/schemas/function.json")).json() == printed
