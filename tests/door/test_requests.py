"""What surrounds every request."""

import asyncio
import json
from typing import Any

import pytest
from litestar import Litestar

from door import logs, requests
from tests.door.conftest import TOKENS, ask, bearer, captured

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        (b"abc_DEF-1", "abc_DEF-1"),
        (b"a" * 64, "a" * 64),
        (b"a" * 65, "minted"),
        (b"", "minted"),
        (b"a b", "minted"),
        (b"a\n", "minted"),
        (b"\xff", "minted"),
    ],
)
async def test_a_request_id_is_echoed_only_when_it_is_harmless(app: Litestar, sent: bytes, echoed: str) -> None:
    """Operators follow a request through proxies; nobody writes lines of theirs into our logs."""
    answer = await ask(app, "/admin/v1/things/a", query=b"limit=1", headers=[(b"x-request-id", sent)])
    assert answer.headers["x-request-id"] == echoed
    assert answer.json()["request_id"] == echoed


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([TRACE], TRACE.decode()),
        ([b"01" + TRACE[2:] + b"-more"], "01" + TRACE[2:].decode()),
        ([TRACE + b"-more"], None),
        ([b"ff" + TRACE[2:]], None),
        ([TRACE.upper()], None),
        ([TRACE[:-1]], None),
        ([b"00-" + b"0" * 32 + TRACE[35:]], None),
        ([TRACE[:36] + b"0" * 16 + b"-01"], None),
        ([TRACE, TRACE], None),
        ([b""], None),
        ([TRACE + b"\n"], None),
    ],
)
async def test_only_a_valid_trace_goes_on_into_events(app: Litestar, sent: list[bytes], kept: str | None) -> None:
    """W3C Trace Context section 3.2: what is not valid is as if absent."""
    headers = [(b"traceparent", each) for each in sent]
    answer = await ask(app, "/admin/v1/things/a", query=b"limit=1", headers=headers)
    assert answer.json()["traceparent"] == kept


async def test_outside_of_a_request_there_is_none(app: Litestar) -> None:
    """Followers and projectors log without an id of a request that has ended."""
    await ask(app, "/healthz")
    assert (requests.current_request_id(), requests.current_traceparent(), requests.current_caller()) == (None,) * 3


@pytest.mark.usefixtures("restored_logging")
async def test_the_access_line_has_the_template_and_never_the_path_or_query(app: Litestar) -> None:
    """Ids of people, and secrets that clients put into queries by mistake, stay out of logs."""
    logs.configure(level="DEBUG")
    with captured() as lines:
        await ask(app, "/admin/v1/things/alice", query=b"limit=1&token=hunter2")
        await ask(app, "/nowhere/alice", query=b"hunter2")
        await ask(app, "/healthz")
    assert "alice" not in str(lines)
    assert "hunter2" not in str(lines)
    seen = [(line["log_level"], line["method"], line["path"], line["status"]) for line in lines]
    assert seen == [
        ("info", "GET", "/admin/v1/things/{thing}", 200),
        ("info", "GET", "unmatched", 404),
        ("debug", "GET", "/healthz", 200),
    ]
    assert all(line["ms"] >= 0 for line in lines)


@pytest.mark.usefixtures("restored_logging")
async def test_lines_of_a_request_name_it_and_its_caller(app: Litestar, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator finds all lines of one request, and whose token it was; never the token."""
    logs.configure(as_json=True)
    await ask(app, "/for/admin", headers=[*bearer("admin"), (b"x-request-id", b"r1")])
    await ask(app, "/for/admin", headers=[*bearer("idp"), (b"x-request-id", b"r2")])
    await asyncio.sleep(0)  # they are written once the loop has come round
    written = capsys.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["request_id"], line["caller"], line["status"]) for line in lines] == [
        ("r1", "the-admin", 200),
        ("r2", "the-idp", 403),
    ]
    assert TOKENS["admin"] not in written


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("/admin/v1/things/a", False),
        ("//admin//v1/things/a", False),
        ("/idp/none", False),
        ("/audit", False),
        ("/auth/connect/register", False),
        ("/healthz", True),
        ("/nowhere", True),
    ],
)
async def test_answers_are_not_sniffed_and_private_ones_not_stored(app: Litestar, path: str, stored: bool) -> None:
    """Proxies keep no personal data and no credentials, not even in errors."""
    answer = await ask(app, path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ("no-store" in answer.headers.get("cache-control", "")) is not stored


async def test_head_is_get_without_the_content(app: Litestar) -> None:
    """Link checkers and `curl -I` are answered as RFC 9110 section 9.3.2 says; where there is no GET, they are not."""
    got = await ask(app, "/healthz")
    head = await ask(app, "/healthz", method="HEAD")
    assert (head.status, head.body, head.headers) == (200, b"", got.headers)
    assert (await ask(app, "/things", method="HEAD")).status == 405
    assert (await ask(app, "/healthz", method="DELETE")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_server_still_knows_that_it_was_asked_for_head() -> None:
    """A server that read GET in its own scope would wait for the content, and reset the caller's connection."""

    async def inner(scope: Any, _: object, send: Any) -> None:
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"content"})

    async def nowhere(_: object) -> None:
        pass

    scope: Any = {"type": "http", "method": "HEAD", "path": "/p", "headers": []}
    app = requests.around(inner, name="test", mint_request_id=lambda: "minted")
    await app(scope, nowhere, nowhere)  # type: ignore[arg-type]  # plain dicts, as servers send
    assert scope["method"] == "HEAD"
