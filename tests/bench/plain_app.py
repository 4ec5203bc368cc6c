"""What one would write without RGrid: Starlette, a hashed key, pydantic, one INSERT, 202.

``DATABASE_URL`` and ``PORT`` are in the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import uuid
from collections.abc import AsyncIterator

import asyncpg
import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

KEY_SHA256 = hashlib.sha256(b"plain-key").hexdigest()
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id uuid PRIMARY KEY, params json NOT NULL, state smallint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX IF NOT EXISTS runs_ready ON runs (created_at) WHERE state = 0
"""
INSERT = "INSERT INTO runs (id, params) VALUES ($1, $2)"


class Params(BaseModel):
    text: str = Field(max_length=1000)
    width: int = Field(320, ge=16, le=4096)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=8, max_size=8) as pool:
        async with pool.acquire() as conn:
            await conn.execute(SCHEMA)
        app.state.pool = pool
        yield


async def submit(request: Request) -> Response:
    key = request.headers.get("authorization", "")[7:]
    if not hmac.compare_digest(hashlib.sha256(key.encode()).hexdigest(), KEY_SHA256):
        return Response(status_code=401)
    try:
        params = Params.model_validate_json(await request.body())
    except ValidationError as error:
        return Response(error.json(), 422, media_type="application/json")
    run = uuid.uuid4()
    async with request.app.state.pool.acquire() as conn:
        await conn.execute(INSERT, run, params.model_dump_json())
    return Response(f'{{"id": "{run}"}}', 202, media_type="application/json")


if __name__ == "__main__":
    app = Starlette(routes=[Route("/runs", submit, methods=["POST"])], lifespan=lifespan)
    port = int(os.environ["PORT"])
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False)
