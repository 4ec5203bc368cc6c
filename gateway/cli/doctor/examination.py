"""All checks in order, of a deployment by its ``RGRID_*`` settings or of the ``rgrid up`` of a data directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from functions.s3 import S3Config
from gateway import embedded_settings, probes
from gateway.cli import config
from gateway.cli.doctor.cloud import cloud
from gateway.cli.doctor.findings import Finding, ok, skipped, wrong
from gateway.cli.doctor.gateway import gateway
from gateway.cli.doctor.machine import node_needs, python
from gateway.cli.doctor.renting import opened_books, renting
from gateway.cli.doctor.servers import bucket_owner, object_store, postgresql
from gateway.cli.failures import Failed
from gateway.cli.running import faults
from gateway.embedded_folder import Folder, Keys
from gateway.embedded_postgres import database_url
from gateway.embedded_s3 import endpoint_at
from gateway.services import s3_config
from gateway.settings import Settings
from gateway.spawning import CannotStart

ONLY_NODES = "only nodes need it"


def examine(environment: Mapping[str, str], flags: config.Flags, data_dir: Path, port: int) -> list[Finding]:
    found = [python()]
    if environment.get("RGRID_DATABASE_URL"):
        found += [one.at_most_a_warning(ONLY_NODES) for one in node_needs(data_dir)]
        found += _deployed(flags, environment)
    else:
        found += node_needs(data_dir)
        found += _embedded(Folder(data_dir.absolute()), flags, environment, port)
    return found


def _deployed(flags: config.Flags, environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in faults(error):
            yield wrong("settings", fault, "see docs/reference/settings.md")
        return
    yield ok("settings", "they agree")
    yield from _servers(settings.database_url.get_secret_value(), s3_config(settings))
    if settings.provider == "hetzner":
        yield from asyncio.run(_renting(settings))
    known = config.Flags(
        settings.base_url, None if settings.bootstrap_key is None else settings.bootstrap_key.get_secret_value()
    )
    yield from _gateway(flags, environment, known)


def _embedded(folder: Folder, flags: config.Flags, environment: Mapping[str, str], port: int) -> Iterator[Finding]:
    part = "rgrid up"
    try:
        url, keys = folder.url(), folder.stored_keys()
    except PermissionError:
        yield skipped(part, f"{folder.path} is closed to you", "run as root, `sudo rgrid doctor`")
        yield from _gateway(flags, environment, config.Flags())
        return
    except CannotStart as error:
        yield wrong(part, str(error), "restore it, or choose another --data-dir")
        return
    if url is None or keys is None:
        yield skipped(part, f"does not run on {folder.path}", "start it with `rgrid up`")
        if flags.url or environment.get("RGRID_URL"):
            yield from _gateway(flags, environment, config.Flags())
        else:
            yield _port(port)
        return
    yield ok(part, f"runs on {folder.path}")
    endpoint = endpoint_at(urlsplit(url).hostname or "127.0.0.1", keys.s3_port)
    yield from _servers(database_url(folder.socket_folder), _embedded_s3(endpoint, keys))
    yield from _gateway(flags, environment, config.Flags(url, embedded_settings.api_key(environment, keys)))


def _port(port: int) -> Finding:
    """Whether ``rgrid up`` could take it."""
    if probes.is_free("127.0.0.1", port):
        return ok("port", f"{port} is free")
    return wrong("port", f"{port} is taken by another program", "stop that, or choose another with --port")


def _embedded_s3(endpoint: str, keys: Keys) -> S3Config:
    values = Settings.model_fields
    return S3Config(
        endpoint=endpoint,
        public_endpoint=endpoint,
        region=str(values["s3_region"].default),
        bucket=str(values["s3_bucket"].default),
        access_key_id=keys.s3_key_id,
        secret_access_key=keys.s3_secret,
    )


def _servers(url: str, store: S3Config) -> list[Finding]:
    async def look() -> list[Finding]:
        return [one async for one in _both(url, store)]

    return asyncio.run(look())


async def _both(url: str, store: S3Config) -> AsyncIterator[Finding]:
    async for one in postgresql(url):
        yield one
    async for one in object_store(store):
        yield one
    async for one in bucket_owner(url, store):
        yield one


async def _renting(settings: Settings) -> list[Finding]:
    async with opened_books(settings) as books:
        found = [one async for one in renting(settings, books)]
        return found + [one async for one in cloud(settings, books)]


def _gateway(flags: config.Flags, environment: Mapping[str, str], known: config.Flags) -> Iterator[Finding]:
    """``known`` is what the settings or the data directory tell, for what the user does not say."""
    told = flags.over(config.from_environment(environment))
    if told.url not in (None, known.url):
        known = config.Flags()
    try:
        target = config.target(told.over(known), environment)
    except Failed as failed:
        yield wrong("gateway", str(failed), "mend RGRID_URL, RGRID_API_KEY or the saved context")
        return
    yield from gateway(target)
