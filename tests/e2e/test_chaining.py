"""One function's job starts another's, and its file becomes the other one's input."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.instance import Instance
from tests.e2e.manifests import shell

pytestmark = pytest.mark.docker

AGAIN = {"attempts": 3, "backoff": {"initial": "1s"}}
"""What a machine under load does to one attempt is not what this is about."""


async def test_a_file_of_one_function_is_the_input_of_the_next(instance: Instance, busybox: str) -> None:
    files = {"inputs": [{"path": "/in/word", "url": "{{ params.file }}"}], "outputs": [{"path": "/out/loud"}]}
    last = shell(
        "chain-last",
        busybox,
        job={"command": ["/bin/sh", "-c", "tr a-z A-Z </in/word >/out/loud"], "files": files},
        retry=AGAIN,
    )
    last["spec"]["params"] = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string"}}}
    await instance.apply(last)
    chained = [{"function": "chain-last", "params": {"file": "{{ outputs.word.uri }}"}}]
    outputs = [{"path": "/out/word", "required": True}]
    await instance.apply(shell("chain-first", busybox, outputs=outputs, callbacks=chained, retry=AGAIN))
    job = await instance.invoke("chain-first", {"script": "echo hello >/out/word"})
    ended = await instance.finished(job["id"])
    assert ended["status"] == "succeeded", ended
    following = (await instance.reaches(job["id"], "chained"))["job"]
    ended = await instance.finished(following)
    assert (ended["status"], ended["function"]) == ("succeeded", "chain-last"), ended
    assert (ended["trigger"]["kind"], ended["trigger"]["job"]) == ("function", job["id"])
    (output,) = ended["outputs"]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as browser:
        assert (await browser.get(output["url"])).content == b"HELLO\n"
