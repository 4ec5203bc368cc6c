"""The gateway hands the agent's file to whoever asks, by its hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx

from gateway.services import open_services
from tests.gateway.conftest import client_of, listening, make_settings
from tests.s3 import S3Server

CONTENT = b"#!/usr/bin/env python3\nPK" + bytes(300_000)


def build(folder: Path) -> str:
    digest = hashlib.sha256(CONTENT).hexdigest()
    (folder / f"{digest}.pyz").write_bytes(CONTENT)
    files = {"cp312-x86_64": {"sha256": digest, "size": len(CONTENT)}}
    (folder / "index.json").write_text(json.dumps({"version": "0.1.0", "files": files}))
    return digest


async def test_the_agents_file_comes_by_its_hash_without_a_key(database: str, s3_server: S3Server, tmp_path: Path) -> None:
    digest = build(tmp_path)
    settings = make_settings(database, s3_server, agent_dir=tmp_path, public_url="https://rgrid.example.com/")
    async with open_services(settings) as services:
        async with client_of(services, None) as client:
            index = (await client.get("/node/v1/agent")).json()
            missing = await client.get(f"/node/v1/agent/{'0' * 64}")
        url = f"https://rgrid.example.com/node/v1/agent/{digest}"
        assert index == {
            "version": "0.1.0",
            "files": {"cp312-x86_64": {"sha256": digest, "size": len(CONTENT), "url": url}},
        }
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        async with listening(services) as gateway, httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{gateway.port}/node/v1/agent/{digest}")
        assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, digest)
        assert answer.headers["content-type"] == "application/octet-stream" and "immutable" in answer.headers["cache-control"]


async def test_a_gateway_without_the_agent_serves_all_the_same(database: str, s3_server: S3Server, tmp_path: Path) -> None:
    async with open_services(make_settings(database, s3_server, agent_dir=tmp_path)) as services, client_of(services) as api:
        assert (await api.get("/node/v1/agent")).json() == {"version": "", "files": {}}
