"""What the client repeats, what it does not, and how it says that nothing helps."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from gateway.cli import client
from gateway.cli.client import Api, pause
from gateway.cli.config import Context
from gateway.cli.failures import Failed, Refused
from gateway.cli.sse import stream
from gateway.cli.waiting import wait
from tests.gateway.cli.server import PROBLEM, Answer, answering

OK = Answer(body=b'{"fine": true}')
LOST = Answer(cut=-1)
BUSY = Answer(503, b'{"code": "unavailable", "detail": "starting"}', PROBLEM, {"Retry-After": "0"})
GATEWAY_TIMEOUT = Answer(504, b"<html>", "text/html")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("client", "sse", "downloads"):
        monkeypatch.setattr(f"gateway.cli.{module}.pause", lambda *_: 0.0)


def api_of(url: str) -> Api:
    return Api(Context(url, "the-key", "acme/default"))


@pytest.mark.parametrize("trouble", [LOST, BUSY, GATEWAY_TIMEOUT, Answer(cut=1)])
def test_what_may_be_repeated_is_repeated(trouble: Answer) -> None:
    with answering(trouble, trouble, OK) as server, api_of(server.url) as api:
        assert api.get("/v1/jobs") == {"fine": True}
        server.answers[:] = [trouble, OK]
        assert api.post("/v1/functions/f/invoke", {}, repeatable=True) == {"fine": True}
        assert len(server.asked) == 5


@pytest.mark.parametrize("trouble", [LOST, GATEWAY_TIMEOUT])
def test_a_request_that_may_have_been_carried_out_is_not_repeated(trouble: Answer) -> None:
    with answering(trouble, OK) as server, api_of(server.url) as api:
        with pytest.raises(Failed):
            api.post("/v1/jobs/job_a/retry")
        assert len(server.asked) == 1


def test_a_gateway_that_did_nothing_is_asked_again() -> None:
    with answering(BUSY, OK) as server, api_of(server.url) as api:
        assert api.post("/v1/jobs/job_a/retry") == {"fine": True}


def test_trying_has_an_end() -> None:
    with answering(BUSY) as server, api_of(server.url) as api:
        with pytest.raises(Refused, match="unavailable: starting"):
            api.get("/v1/jobs")
        assert len(server.asked) == client.TRIES


def test_the_key_and_the_project_go_with_each_request() -> None:
    with answering(OK) as server, api_of(server.url) as api:
        api.get("/v1/jobs", {"status": None, "limit": 3})
    ((method, path, headers),) = server.asked
    assert (method, path) == ("GET", "/v1/jobs?limit=3")
    assert (headers["authorization"], headers["rgrid-project"]) == ("Bearer the-key", "acme/default")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(404, b"<html>", "text/html"), "answered 404 Not Found, not as an RGrid gateway does"),
        (Answer(404, b"{", PROBLEM), "not as an RGrid gateway does"),
        (Answer(200, b"<html>", "text/html"), "does not speak RGrid's API"),
        (Answer(200, b"[]"), "does not speak RGrid's API"),
        (Answer(302, b"", headers={"Location": "http://elsewhere"}), "answered 302 Found"),
        (Answer(401, b'{"code": "unauthenticated", "detail": "no"}', PROBLEM), "unauthenticated: no: log in again"),
    ],
)
def test_other_servers_are_recognised(answer: Answer, said: str) -> None:
    with answering(answer) as server, api_of(server.url) as api, pytest.raises(Failed, match=said):
        api.get("/v1/jobs")


def test_without_a_key_it_says_how_to_get_in() -> None:
    refusal = Answer(401, b'{"code": "unauthenticated", "detail": "no"}', PROBLEM)
    with answering(refusal) as server, Api(Context(server.url, None)) as api, pytest.raises(Refused) as refused:
        api.get("/v1/jobs")
    assert f"log in with 'rgrid login --url {server.url}'" in str(refused.value)


def test_pages_are_put_together_up_to_the_limit() -> None:
    pages = [
        Answer(body=json.dumps({"data": [1, 2], "next_cursor": "c"}).encode()),
        Answer(body=json.dumps({"data": [3], "next_cursor": "d"}).encode()),
    ]
    with answering(*pages) as server, api_of(server.url) as api:
        assert api.pages("/v1/jobs", {}, limit=3, page=2) == {"data": [1, 2, 3], "next_cursor": "d"}
        assert [path for _, path, _ in server.asked] == ["/v1/jobs?limit=2", "/v1/jobs?limit=1&cursor=c"]


def test_waiting_outlives_a_gateway_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Answer(body=b'{"id": "job_a", "status": "succeeded"}')
    with answering(ended) as server, api_of(server.url) as api:
        away = iter([httpx.ConnectError("refused"), httpx.ReadError("reset")])
        real = api._http.request

        def request(*args: object, **options: object) -> httpx.Response:
            for error in away:
                raise error
            return real(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(api._http, "request", request)
        assert wait(api, "job_a")["status"] == "succeeded"


def test_a_log_stream_goes_on_after_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    first = b"id: 1:2\nevent: log\ndata: one\n\nid: 1:4\nevent: log\nda"
    second = b"id: 1:4\nevent: log\ndata: two\n\nevent: end\ndata: {}\n\n"
    answers = (
        Answer(body=first + b"x" * 100, content_type="text/event-stream", cut=len(first)), LOST, BUSY,
        Answer(body=second, content_type="text/event-stream"),
    )  # fmt: skip
    with answering(*answers) as server, api_of(server.url) as api:
        events: Iterator[str] = (event.data for event in stream(api, "/v1/jobs/job_a/logs", {"follow": "true"}))
        assert list(events) == ["one", "two", "{}"]
    assert [headers.get("last-event-id") for _, _, headers in server.asked] == [None, "1:2", "1:2", "1:2"]


def test_a_stream_that_is_refused_is_not_asked_again() -> None:
    gone = Answer(404, b'{"code": "not_found", "detail": "no such job"}', PROBLEM)
    with answering(gone) as server, api_of(server.url) as api:
        with pytest.raises(Refused, match="not_found: no such job"):
            list(stream(api, "/v1/jobs/job_a/logs", {}))
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("asked", "longest"), [("3", 3.0), ("0", 0.0), ("86400", 30.0), ("9" * 400, 30.0), ("soon", 6.0), ("-1", 6.0)]
)
def test_a_pause_is_what_the_gateway_asks_for_within_bounds(asked: str, longest: float) -> None:
    assert 0 <= pause(9, httpx.Response(503, headers={"Retry-After": asked})) <= longest
