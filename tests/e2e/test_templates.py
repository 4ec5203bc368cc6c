"""Each template on a real image built here, from its folder to its outputs: ``rgrid deploy``, an invoke, a node that
does not have the image."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.documents import load_yaml
from functions.params import ParamsSchema
from tests.e2e.instance import KEY, Instance, clean_env, docker_bridge
from tests.e2e.receiver import Receiver
from tests.images import build

pytestmark = pytest.mark.docker
TEMPLATES = Path(__file__).parent.parent.parent / "templates/functions"
Json = dict[str, Any]


async def rgrid(instance: Instance, *arguments: str) -> str:
    """What the command prints; its errors if it fails."""
    env = clean_env() | {"RGRID_URL": instance.url, "RGRID_API_KEY": KEY}
    command = [sys.executable, "-P", "-c", "from gateway.cli.main import main; main()", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


IMAGES: set[str] = set()
"""Of all deploys."""


@pytest.fixture(scope="module", autouse=True)
def no_image_stays() -> Iterator[None]:
    yield
    subprocess.run(["docker", "rmi", "-f", *IMAGES], capture_output=True, check=False)


async def deployed(instance: Instance, folder: Path, *arguments: str) -> Json:
    """What the deploy says."""
    answer: Json = json.loads(await rgrid(instance, "deploy", str(folder), "--json", *arguments))
    IMAGES.add(answer["image"]["id"])
    return answer


def forget(deploy: Json) -> None:
    """Take the image away from Docker here, which is the node's, too."""
    removed = subprocess.run(["docker", "rmi", "-f", deploy["image"]["id"]], capture_output=True, text=True, check=False)
    assert removed.returncode == 0, removed.stderr


async def python_template(instance: Instance, name: str) -> Json:
    build.python()
    return await deployed(instance, TEMPLATES / name, "--build-arg", f"BASE={build.PYTHON}")


async def ffmpeg_template(instance: Instance, name: str, folder: Path) -> None:
    shutil.copytree(TEMPLATES / name, folder / name)
    shutil.copy(build.ffmpeg_binary(), folder / name / "ffmpeg")
    with (folder / name / "Dockerfile").open("a") as dockerfile:
        dockerfile.write(f"LABEL rgrid.test={folder.name}\n")  # an image that nothing else is made of
    forget(await deployed(instance, folder / name))


async def fetched(output: Json) -> bytes:
    async with httpx.AsyncClient(trust_env=False) as browser:
        answer = await browser.get(output["url"])
    assert answer.status_code == 200
    return answer.content


async def succeeded(instance: Instance, name: str, params: Json) -> Json:
    job = await instance.finished((await instance.invoke(name, params))["id"])
    logs = await instance.api.get(f"/v1/jobs/{job['id']}/logs")
    assert job["status"] == "succeeded", (job["error"], logs.text)
    return job


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One second of a test picture with a tone."""
    path = tmp_path_factory.mktemp("clip") / "clip.mov"
    command = [str(build.ffmpeg_binary()), "-v", "error", "-f", "lavfi", "-i", "testsrc=duration=1:size=160x120:rate=10"]
    subprocess.run([*command, "-f", "lavfi", "-i", "sine=duration=1", "-pix_fmt", "yuv420p", str(path)], check=True)
    return path.read_bytes()


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir()))
def test_a_template_has_what_a_user_needs(name: str) -> None:
    folder = TEMPLATES / name
    manifest = load_yaml((folder / "function.yaml").read_bytes())
    assert manifest["metadata"]["name"] == name
    sample = json.loads((folder / "params.json").read_bytes())
    assert ParamsSchema(manifest["spec"]["params"]).complete(sample) == sample | {
        key: value["default"]
        for key, value in manifest["spec"]["params"]["properties"].items()
        if "default" in value and key not in sample
    }
    assert (folder / "Dockerfile").is_file()
    assert "rgrid deploy" in (folder / "README.md").read_text()


async def test_python_script(instance: Instance) -> None:
    answer = await python_template(instance, "python-script")
    assert (answer["version"], answer["changed"]) == (1, True)
    again = await python_template(instance, "python-script")  # nothing is sent, nothing changes
    assert (again["version"], again["changed"], again["image"]) == (1, False, answer["image"])
    forget(answer)
    job = await succeeded(instance, "python-script", {"text": "One fish two fish", "most": 1})
    assert job["result"] == {"words": 4, "different": 3, "most": {"fish": 2}}
    assert await fetched(job["outputs"][0]) == b"word,count\r\nfish,2\r\n"
    # The image's own id is what ran, and what every later attempt runs.
    versions = (await instance.api.get("/v1/functions/python-script/versions")).json()["data"]
    assert versions[0]["image_digest"] == answer["image"]["id"]


async def test_etl_csv(instance: Instance, receiver: Receiver, tmp_path: Path) -> None:
    forget(await python_template(instance, "etl-csv"))
    rows = ["id,price,code,note", '1,9.5,007,"a ""quoted"" one"', "2,10,008,", "3,,009,drop table", "bad row"]
    receiver.files["orders.csv"] = "\n".join(rows).encode()
    params = {"csv": receiver.file_url("orders.csv"), "table": "orders", "skipBadRows": True}
    job = await succeeded(instance, "etl-csv", params)
    assert (job["result"]["rows"], job["result"]["skipped"]) == (3, 1)
    kinds = {column["name"]: (column["type"], column["empty"]) for column in job["result"]["columns"]}
    assert kinds == {"id": ("INTEGER", 0), "price": ("REAL", 1), "code": ("TEXT", 0), "note": ("TEXT", 1)}
    path = tmp_path / "data.sqlite"
    path.write_bytes(await fetched(job["outputs"][0]))
    database = sqlite3.connect(path)
    assert database.execute("SELECT * FROM orders").fetchall() == [
        (1, 9.5, "007", 'a "quoted" one'), (2, 10.0, "008", None), (3, None, "009", "drop table"),
    ]  # fmt: skip
    database.close()

    strict = await instance.finished((await instance.invoke("etl-csv", params | {"skipBadRows": False}))["id"])
    logs = await instance.api.get(f"/v1/jobs/{strict['id']}/logs")
    assert strict["status"] == "failed"
    assert "row 5 has 1 values" in logs.text


async def test_ffmpeg_thumbnail(instance: Instance, receiver: Receiver, clip: bytes, tmp_path: Path) -> None:
    await ffmpeg_template(instance, "ffmpeg-thumbnail", tmp_path)
    receiver.files["clip.mov"] = clip
    job = await succeeded(instance, "ffmpeg-thumbnail", {"video": receiver.file_url("clip.mov"), "width": 80})
    picture = await fetched(job["outputs"][0])
    assert picture.startswith(b"\xff\xd8") and picture.endswith(b"\xff\xd9")


async def test_ffmpeg_transcode(instance: Instance, receiver: Receiver, clip: bytes, tmp_path: Path) -> None:
    await ffmpeg_template(instance, "ffmpeg-transcode", tmp_path)
    receiver.files["clip.mov"] = clip
    params = {"video": receiver.file_url("clip.mov"), "height": 60, "preset": "ultrafast"}
    job = await succeeded(instance, "ffmpeg-transcode", params)
    path = tmp_path / "video.mp4"
    path.write_bytes(await fetched(job["outputs"][0]))
    about = subprocess.run([str(build.ffmpeg_binary()), "-i", str(path)], capture_output=True, text=True, check=False).stderr
    assert "Video: h264" in about and "80x60" in about and "Audio: aac" in about


class Model:
    """A server that speaks as much of OpenAI's protocol as an agent needs, and remembers what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.busy = 1
        """How often it says so first."""
        self.keys: set[str] = set()
        self.asked: list[Json] = []

    def answer(self, asked: Json) -> Json:
        last = asked["messages"][-1]
        if last["role"] == "tool":
            return {"role": "assistant", "content": f"Done: {last['content']}"}
        arguments = json.dumps({"name": "haiku.txt", "text": "jobs wait in a line"})
        bad = json.dumps({"name": "../../etc/passwd", "text": "x"})
        calls = [
            {"id": f"call_{index}", "type": "function", "function": {"name": "write_file", "arguments": each}}
            for index, each in enumerate([bad, arguments])
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}


@contextmanager
def model() -> Iterator[Model]:
    found = Model()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            found.keys.add(self.headers["Authorization"])
            if found.busy:
                found.busy -= 1
                self.send_response(429)
                self.send_header("Retry-After", "1")
                self.end_headers()
                return
            found.asked.append(asked)
            message = found.answer(asked)
            body = json.dumps({"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": 7}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A test's output is its own."""

    server = ThreadingHTTPServer((docker_bridge(), 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    found.url = f"http://{docker_bridge()}:{server.server_port}/v1"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_llm_agent(instance: Instance) -> None:
    answer = await instance.api.post("/v1/secrets", json={"name": "OPENAI_API_KEY", "value": "sk-of-the-test"})
    assert answer.is_success, answer.text
    forget(await python_template(instance, "llm-agent"))
    with model() as endpoint:
        job = await succeeded(instance, "llm-agent", {"prompt": "A haiku, please", "url": endpoint.url, "model": "m"})
    assert endpoint.keys == {"Bearer sk-of-the-test"}
    assert job["attempt"] == 2  # it was busy at first
    assert job["result"] == {"answer": "Done: haiku.txt: 19 characters written", "steps": 2, "tokens": 14}
    assert endpoint.asked[0]["model"] == "m"
    assert "letters, digits" in endpoint.asked[1]["messages"][-2]["content"]
    [output] = job["outputs"]
    assert (output["name"], output["path"]) == ("files", "/out/files/haiku.txt")
    assert await fetched(output) == b"jobs wait in a line"
    logs = await instance.api.get(f"/v1/jobs/{job['id']}/logs")
    assert "sk-of-the-test" not in logs.text
