"""Whatever goes wrong is answered as a problem, and says nothing that it should not."""

import ast
from pathlib import Path

import pytest
from litestar import Litestar, Response

from door import problems
from tests.door.conftest import TOKENS, ask, captured, make_app

JSON = [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("path", "method", "query", "status", "code"),
    [
        ("/nowhere", "GET", b"", 404, "not_found"),
        ("/things", "DELETE", b"", 405, "method_not_allowed"),
        ("/admin/v1/things/a", "GET", b"", 400, "invalid_parameter"),
        ("/admin/v1/things/a", "GET", b"limit=many", 400, "invalid_parameter"),
        ("/raise/problem", "GET", b"", 409, "grant_conflict"),
        ("/raise/refusal", "GET", b"", 404, "grant_not_found"),
        ("/raise/unavailable", "GET", b"", 503, "unavailable"),
        ("/raise/framework", "GET", b"", 500, "internal"),
        ("/raise/bug", "GET", b"", 500, "internal"),
        ("/for/admin", "GET", b"", 401, "not_authenticated"),
    ],
)
async def test_every_error_is_a_problem_with_its_code(
    app: Litestar, path: str, method: str, query: bytes, status: int, code: str
) -> None:
    """Callers who switch on `code` find one in every answer."""
    answer = await ask(app, path, method=method, query=query)
    body = answer.json()
    assert (answer.status, body["status"], body["code"]) == (status, status, code)
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert body["type"] == f"/docs#{code}"
    assert body["title"] == problems.CODES[code].title
    assert body["detail"]


@pytest.mark.parametrize(
    ("query", "named"), [(b"", "limit"), (b"limit=many", "limit"), (b"limit=1&to=x", "to"), (b"limit=&to=1", "limit")]
)
async def test_a_parameter_that_is_not_understood_is_named(app: Litestar, query: bytes, named: str) -> None:
    """An integrator learns which of ten parameters it was; what was sent is not repeated."""
    detail = (await ask(app, "/admin/v1/things/a", query=query)).json()["detail"]
    assert named in detail
    assert "many" not in detail


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"count": "hunter2"}', "count"),
        (b'{"client_secret": ["hunter2"], "count": 1}', "client_secret"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b"", "body"),
        (b"null", "body"),
        (b'{"client_secret": "\xff", "count": 1}', "body"),
        (b"[]", "body"),
        (b'{"client_secret": "\\ud800", "count": 1}', ""),
    ],
)
async def test_a_body_that_does_not_fit_is_a_problem_that_repeats_nothing(
    app: Litestar, body: bytes, named: str
) -> None:
    """A secret in the wrong place of a body is not echoed into logs of clients."""
    answer = await ask(app, "/things", method="POST", headers=JSON, body=body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_parameter")
    assert named in answer.json()["detail"]
    assert b"hunter2" not in answer.body


@pytest.mark.parametrize(
    "body", [b"[" * 50_000, b'{"a":' * 20_000, b'{"count": 1, "more":' + b"[" * 50_000 + b"]" * 50_000 + b"}"]
)
async def test_a_body_nested_without_end_is_the_callers_error(body: bytes) -> None:
    """An attacker who nests JSON until the parser gives up finds no 500, and no bug report in the log."""
    with captured() as lines:
        answer = await ask(make_app(), "/nested", method="POST", headers=JSON, body=body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_parameter")
    assert {line["log_level"] for line in lines} == {"warning", "info"}


async def test_a_method_that_is_not_allowed_is_told_the_ones_that_are(app: Litestar) -> None:
    """RFC 9110 section 15.5.6: 405 carries Allow."""
    assert (await ask(app, "/things", method="PUT")).headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_larger_than_the_route_takes_is_413(app: Litestar, declared: bool) -> None:
    """Memory is not the caller's to fill, whether or not it says the length beforehand."""
    headers = [*JSON, (b"content-length", b"200")] if declared else JSON
    answer = await ask(app, "/things", method="POST", headers=headers, body=b" " * 200)
    assert (answer.status, answer.json()["code"]) == (413, "too_large")


async def test_a_problem_carries_its_headers_and_members(app: Litestar) -> None:
    """Rooms add what a caller can act on."""
    answer = await ask(app, "/raise/problem")
    assert answer.headers["x-hint"] == "other id"
    assert answer.json()["grant"] == 1
    assert (await ask(app, "/raise/unavailable")).headers["retry-after"] == "3"


async def test_an_unexpected_error_shows_nothing_of_itself(app: Litestar) -> None:
    """An attacker who finds a bug does not also find a trace; the operator does, by request id."""
    with captured() as lines:
        answer = await ask(app, "/raise/bug")
    assert b"secret" not in answer.body
    assert TOKENS["admin"].encode() not in answer.body
    assert b"Traceback" not in answer.body
    assert answer.headers["x-request-id"] == "minted"
    assert [line["event"] for line in lines] == ["unexpected error", "request"]


async def test_a_caller_that_hangs_up_is_no_error_of_ours(app: Litestar) -> None:
    """An operator is not woken by a phone that lost its network while it sent."""
    with captured() as lines:
        answer = await ask(app, "/things", method="POST", headers=JSON, body=b'{"count"', hangs_up=True)
    assert answer.status == 400
    assert [line["event"] for line in lines] == ["request"]


async def test_a_stream_that_breaks_is_logged_with_its_status(app: Litestar) -> None:
    """After the first byte there is no other answer; the access line is still written."""
    with captured() as lines, pytest.raises(Exception, match="response started"):
        await ask(app, "/stream")
    assert [line["status"] for line in lines if line["event"] == "request"] == [200]


@pytest.mark.parametrize(
    ("path", "method", "shaped"),
    [
        ("/oauth/thing", "GET", True),
        ("/oauth/thing", "PUT", True),
        ("/oauth/x", "GET", True),
        ("/oauthx", "GET", False),
    ],
)
async def test_a_prefix_may_have_errors_of_another_standard(path: str, method: str, shaped: bool) -> None:
    """OAuth clients parse RFC 7591 errors, also where no handler ran: 404 and 405."""
    app = make_app(
        renderings={"/oauth": lambda problem, _: Response(problem.code.encode(), status_code=problem.status)}
    )
    answer = await ask(app, path, method=method)
    assert answer.headers.get("content-type", "").startswith("application/problem+json") is not shaped


def test_every_code_in_use_is_documented() -> None:
    """The `type` of every problem leads to words about it."""
    used = {
        (path, argument.value)
        for path in Path("services").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) == "Problem"
        for argument in call.args[1:2]
        if isinstance(argument, ast.Constant)
    }
    assert used
    assert {(path, code) for path, code in used if code not in problems.CODES} == set()
