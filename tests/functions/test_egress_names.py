"""Names that lead where they should not (SECURITY §4.4, the rows with a resolver): real name servers on UDP and TCP, the C
library's own resolver, and servers that would answer at the forbidden addresses. All in namespaces of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

World = dict[str, Any]
ALONE = ["unshare", "--map-root-user", "--mount", "--net", "--kill-child"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What came of each call."""
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives nobody namespaces of his own")
    folder = tmp_path_factory.mktemp("world")
    command = [*ALONE, sys.executable, "-m", "tests.functions.egress_world", str(folder)]
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=root)
    assert ran.returncode == 0, ran.stderr
    found: World = json.loads(ran.stdout)
    return found


def test_a_public_name_is_called_at_its_address(world: World) -> None:
    assert world["public.test"]["said"] == "200 from 8.8.8.8"
    assert world["public.test"]["reached"] == ["8.8.8.8"]


@pytest.mark.parametrize(
    "name",
    [
        "private.test", "metadata.test", "mixed.test", "mixed-families.test", "mapped.test", "translated.test", "alias.test",
        "many.test",
    ],
)  # fmt: skip
def test_a_name_with_one_forbidden_address_is_refused_and_nothing_is_reached(world: World, name: str) -> None:
    assert world[name]["said"].startswith("refused: "), world[name]
    assert world[name]["reached"] == []
    assert not any(character.isdigit() for character in world[name]["said"].replace("32 addresses", "")), "an address"


def test_five_hundred_addresses_came_over_tcp(world: World) -> None:
    assert world["asked"]["many.test tcp 1"] >= 1


def test_a_chain_of_fifty_aliases_leads_nowhere(world: World) -> None:
    assert world["c0.chain.test"]["said"].split(":")[0] in ("refused", "failed")
    assert world["c0.chain.test"]["reached"] == []


@pytest.mark.parametrize("name", ["nobody.test", "empty.test", "hangs.test"])
def test_a_name_that_is_not_answered_fails_in_time_and_may_be_tried_again(world: World, name: str) -> None:
    assert world[name]["said"] == "failed: dns"
    assert world[name]["seconds"] < 4


@pytest.mark.parametrize("name", ["moves.test", "flips.test"])
def test_a_name_is_looked_up_once_for_each_call_and_that_answer_is_called(world: World, name: str) -> None:
    assert (world[name]["said"], world[name]["reached"]) == ("200 from 8.8.8.8", ["8.8.8.8"])
    later = world[f"{name} later"]
    assert (later["said"].split(":")[0], later["reached"]) == ("refused", [])
    assert world["asked"][f"{name} udp 1"] == 2


def test_a_redirect_to_metadata_is_not_followed_and_a_download_refuses_it(world: World) -> None:
    assert world["redirects.test"]["said"] == "302 from 8.8.8.8"
    download = world["download redirects.test"]
    assert (download["said"].split(":")[0], download["reached"]) == ("refused", ["8.8.8.8"])


def test_of_all_addresses_only_the_public_one_was_ever_reached(world: World) -> None:
    assert set(world["connected"]) == {"8.8.8.8"}
