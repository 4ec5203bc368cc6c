"""``rgrid secrets``."""

from __future__ import annotations

from tests.gateway.cli.conftest import Connected


async def test_a_secret_is_set_listed_and_removed_and_never_shown(call: Connected) -> None:
    assert "no secrets yet" in (await call("secrets")).err
    assert (await call("secrets", "set", "TOKEN", stdin=b"first value\n")).out == "TOKEN set\n"
    again = await call("secrets", "set", "TOKEN", "--value", "other value", "--json")
    assert again.json["name"] == "TOKEN" and "value" not in again.json
    await call.apply(
        job={"image": "busybox:1", "secrets": ["TOKEN"], "command": ["true"]},
    )
    listed = await call("secrets", "list")
    assert listed.out.splitlines()[1].split()[0] == "TOKEN" and "greet" in listed.out
    assert "value" not in listed.out
    assert (await call("secrets", "rm", "TOKEN")).out == "TOKEN removed\n"
    assert (await call("secrets", "rm", "TOKEN")).refused().startswith("secret_not_found: ")


async def test_bad_values_are_one_line(call: Connected) -> None:
    assert "no value for A" in (await call("secrets", "set", "A")).refused()
    assert "UTF-8" in (await call("secrets", "set", "A", stdin=b"\xff")).refused()
    line = (await call("secrets", "set", "A-B", "--value", "hidden")).refused()
    assert "/name" in line and "hidden" not in line
