"""The gateway: whether it answers, lets the key in, and has nodes to run jobs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import httpx

from gateway.cli.client import Api, loopback
from gateway.cli.config import Context
from gateway.cli.doctor.findings import Finding, ok, skipped, warning, wrong
from gateway.cli.failures import Failed, Refused

ANSWER_S = 5.0


def gateway(target: Context) -> Iterator[Finding]:
    """``target`` may have no key: then only what is everybody's is looked at."""
    part = "gateway"
    try:
        answer = httpx.get(f"{target.url}/readyz", timeout=ANSWER_S, trust_env=not loopback(target.url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield wrong(
            part, f"{target.url} does not answer ({type(error).__name__})",
            "start it with `rgrid up` or `rgrid gateway`, or name another with RGRID_URL",
        )  # fmt: skip
        return
    if answer.status_code == 200:
        yield ok(part, f"{target.url} is ready")
    else:
        yield wrong(part, f"{target.url}: {_detail(answer)}", "mend what it names; its log has more")
    if target.key is None:
        yield skipped("key", "none is set", "set RGRID_API_KEY, or `rgrid login`")
        return
    with Api(target, timeout_s=ANSWER_S, tries=1) as api:
        try:
            api.get("/v1/functions", {"limit": 1})
        except Failed as failed:
            if getattr(failed, "status", None) != 403:  # one that may only invoke is a good key as well
                yield wrong("key", str(failed), "make a key for this gateway, and set RGRID_API_KEY")
                return
        yield ok("key", "valid")
        yield _nodes(api)


def _nodes(api: Api) -> Finding:
    part = "nodes"
    try:
        page = api.get("/v1/nodes", {"limit": 100})
    except Refused as refused:
        if refused.status == 403:
            return skipped(part, "this key may not list them")
        return wrong(part, str(refused), "look into the gateway's log")
    except Failed as failed:
        return wrong(part, str(failed), "try again")
    states = Counter(str(node["state"]) for node in page["data"])
    found = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    if not states["ready"] and page.get("fleet") is None:
        return wrong(part, found, "jobs wait until a node joins: `rgrid nodes add`, then `rgrid node` there")
    if states["silent"]:
        return warning(part, found, "look at the silent ones: `rgrid nodes`")
    return ok(part, found)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
