"""Handlers that are called directly answer as the framework would have them answer."""

from functools import cache
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from litestar import Litestar, Request, get, post
from litestar.params import FromPath, FromQuery

from door import direct, front, problems, requests, roles
from door.asked import header
from door.ready import ReadyResponse
from tests.door.conftest import KEYRING, Answer, Refused, ask, bearer, captured

LARGEST = 100


def made(*, directly: bool) -> Litestar:
    opt: dict[str, Any] = direct.DIRECTLY if directly else {}

    @post("/things", status_code=201, request_max_body_size=LARGEST, opt=opt)
    async def make(request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
        """Gives the body back, or goes wrong as it says."""
        match await request.body():
            case b"problem":
                raise problems.Problem(409, "grant_conflict", "taken", headers={"X-Hint": "other id"})
            case b"refusal":
                raise Refused
            case b"bug":
                raise RuntimeError("the secret is hunter2")
            case body:
                return ReadyResponse(body + await request.body(), status_code=201, headers={"X-Said": "it"})

    @post("/idp/v1/things/{thing:str}/parts/{part:str}", guards=[roles.requires("idp")], opt=opt)
    async def part(thing: FromPath[str], part: FromPath[str], request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
        """Says who asks for what."""
        said = [thing, part, roles.caller_of(request).name, requests.current_caller(), request.url.path]
        return ReadyResponse(repr(said).encode(), status_code=201, headers={"X-Agent": header(request, b"x") or ""})

    @get("/things", opt={})
    async def things() -> dict[str, str]:
        """Beside it, at the same path."""
        return {}

    return front.litestar_app(
        [make, part, things],
        name="test",
        keyring=KEYRING,
        mint_request_id=lambda: "minted",
        answers={Refused: lambda _: problems.Problem(404, "grant_not_found", "none of it")},
    )


@cache
def both_ways() -> tuple[Litestar, Litestar]:
    """Called directly, and by the framework."""
    return made(directly=True), made(directly=False)


POSTED = {"path": "/things", "method": "POST"}
PART = {"path": "/idp/v1/things/t/parts/p", "method": "POST"}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "a body": ({**POSTED, "body": b"ping"}, 201),
    "no body": (POSTED, 201),
    "a body in pieces": ({**POSTED, "pieces": [b"a", b"", b"b"]}, 201),
    "a body in pieces whose length is said": (
        {**POSTED, "pieces": [b"a", b"b"], "headers": [(b"content-length", b"2")]},
        201,
    ),
    "a body whose length is said": ({**POSTED, "body": b"ping", "headers": [(b"content-length", b"4")]}, 201),
    "the largest body": ({**POSTED, "body": b"x" * LARGEST, "headers": [(b"content-length", b"100")]}, 201),
    "a body that is too large": ({**POSTED, "body": b"x" * (LARGEST + 1)}, 413),
    "a body that says that it is too large": ({**POSTED, "headers": [(b"content-length", b"101")]}, 413),
    "a body that says that it is small": (
        {**POSTED, "body": b"x" * (LARGEST + 1), "headers": [(b"content-length", b"1")]},
        413,
    ),
    "pieces that are too large together": (
        {**POSTED, "pieces": [b"x" * LARGEST, b"x"], "headers": [(b"content-length", b"1")]},
        413,
    ),
    "a length that is none": ({**POSTED, "headers": [(b"content-length", b"many")]}, 400),
    "a length without end": ({**POSTED, "headers": [(b"content-length", b"9" * 5_000)]}, 400),
    "a caller that hangs up": ({**POSTED, "body": b"pi", "hangs_up": True}, 400),
    "one that hangs up and said how much": (
        {**POSTED, "body": b"pi", "hangs_up": True, "headers": [(b"content-length", b"4")]},
        400,
    ),
    "a problem": ({**POSTED, "body": b"problem"}, 409),
    "a refusal of a room": ({**POSTED, "body": b"refusal"}, 404),
    "an unexpected error": ({**POSTED, "body": b"bug"}, 500),
    "another method": ({"path": "/things", "method": "PUT"}, 405),
    "another handler of the path": ({"path": "/things"}, 200),
    "its head": ({"path": "/things", "method": "HEAD"}, 200),
    "its options": ({"path": "/things", "method": "OPTIONS"}, 204),
    "a slash at the end": ({"path": "/things/", "method": "POST"}, 201),
    "two slashes": ({"path": "//things", "method": "POST"}, 201),
    "a root of the server's": ({"path": "/below/things", "method": "POST", "root_path": "/below"}, 201),
    "a host that is none": ({**POSTED, "host": b"a b"}, 400),
    "a host without a name": ({**POSTED, "host": b""}, 201),
    "parameters": ({**PART, "headers": [*bearer("idp"), (b"x", b"\xe4")]}, 201),
    "strange parameters": (
        {"path": "/idp/v1/things/~\n .%2F\ud800/parts/é", "method": "POST", "headers": bearer("idp")},
        201,
    ),
    "a parameter too few": ({"path": "/idp/v1/things//parts/p", "method": "POST", "headers": bearer("idp")}, 404),
    "a parameter too many": ({"path": "/idp/v1/things/t/u/parts/p", "method": "POST", "headers": bearer("idp")}, 404),
    "no token": (PART, 401),
    "two tokens": ({**PART, "headers": [*bearer("idp"), *bearer("idp")]}, 401),
    "a token of another role": ({**PART, "headers": bearer("admin")}, 403),
    "neither": ({"path": "/nowhere", "method": "POST"}, 404),
}


async def both(asked: dict[str, Any]) -> tuple[list[Answer], list[list[Any]]]:
    answers, lines = [], []
    for app in both_ways():
        with captured() as written:
            answers.append(await ask(app, **asked))
        lines.append([(line["event"], line.get("path"), line.get("status"), line["log_level"]) for line in written])
    return answers, lines


@pytest.mark.parametrize("name", CASES)
async def test_it_answers_as_the_framework_does(name: str) -> None:
    """Agents and identity providers: which way a request took is to be seen by nobody, nor in the access line."""
    asked, status = CASES[name]
    (directly, framework), lines = await both(asked)
    assert directly == framework
    assert directly.status == status
    assert lines[0] == lines[1]
    assert b"hunter2" not in directly.body


PIECES = ["", "/", "//", "x", ".", "..", "%2F", "\n", "é", "/parts", "THINGS"]


@st.composite
def paths(draw: st.DrawFn) -> str:
    """One of the paths that are called directly, as it is or with something cut out or put in."""
    path = draw(st.sampled_from(["/things", "/idp/v1/things/t/parts/p", "/idp/v1/things/~k/parts/p-1"]))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(path)))
        path = path[:at] + draw(st.sampled_from(PIECES)) + path[at + draw(st.integers(0, 1)) :]
    return path or "/"


@given(
    path=paths(),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "HEAD", "post"]),
    headers=st.sampled_from([[], bearer("idp"), bearer("admin")]),
)
async def test_whatever_the_path_it_answers_as_the_framework_does(
    path: str, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    """An attacker who writes a path in another way gets past no guard that the framework would have asked."""
    (directly, framework), lines = await both({"path": path, "method": method, "headers": headers})
    assert directly == framework
    assert lines[0] == lines[1]
    event(f"{method} {directly.status}")


def _of(**more: Any) -> Any:
    @post("/p/{a:str}", opt=direct.DIRECTLY, **more)
    async def handler(a: FromPath[str], request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
        """Fine by itself."""
        return ReadyResponse(a.encode(), status_code=201, headers={})

    return handler


@post("/p/{a:int}", opt=direct.DIRECTLY)
async def of_a_number(a: FromPath[int], request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
    """The framework would make a number of it."""
    return ReadyResponse(str(a).encode(), status_code=201, headers={})


@post("/p", opt=direct.DIRECTLY)
async def of_a_query(a: FromQuery[str], request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
    """The framework would look into the query."""
    return ReadyResponse(a.encode(), status_code=201, headers={})


@post("/p", opt=direct.DIRECTLY)
async def of_a_dictionary(request: Request[Any, Any, Any]) -> dict[str, str]:
    """The framework would make JSON of it."""
    return {}


@post("/p", opt=direct.DIRECTLY, sync_to_thread=False)
def of_a_function(request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
    """The framework would call it without waiting."""
    return ReadyResponse(b"", status_code=201, headers={})


@get("/p/fixed", guards=[roles.requires("admin")])
async def beside_it() -> None:
    """Another handler, whose path is like the other's."""


async def nothing(_: object) -> None:
    """Is done before or after a request."""


@pytest.mark.parametrize(
    ("handlers", "why"),
    [
        ([of_a_number], "are text"),
        ([of_a_query], "coroutine function of request"),
        ([of_a_dictionary], "gives a ReadyResponse"),
        ([of_a_function], "coroutine function of request"),
        ([_of(before_request=nothing)], "cannot have before_request"),
        ([_of(after_response=nothing)], "cannot have after_response"),
        ([_of(cache=True)], "cannot have cache"),
        ([_of(response_headers={"X": "it"})], "cannot have response_headers"),
        ([_of(), beside_it], "would hide /p/fixed"),
    ],
)
def test_what_only_the_framework_does_is_not_called_directly(handlers: list[Any], why: str) -> None:
    """Whoever adds a handler: what it declares is done, or the application does not start."""
    with pytest.raises(TypeError, match=why):
        front.litestar_app(handlers, name="test", keyring=KEYRING, mint_request_id=lambda: "minted")


def test_by_itself_it_is_called_directly() -> None:
    """The same, where nothing is wrong with it."""
    front.litestar_app([_of()], name="test", keyring=KEYRING, mint_request_id=lambda: "minted")


@pytest.mark.parametrize(("name", "routed"), [("a body", False), ("parameters", False), ("two slashes", True)])
async def test_the_framework_is_asked_for_the_rest_alone(
    name: str, routed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators: that what comes by the thousand takes the short way is what makes it fast."""
    app, seen = made(directly=True), []

    def routing(**which: Any) -> Any:
        seen.append(which["path"])
        return app.asgi_router._handle_routing(**which)

    monkeypatch.setattr(app.asgi_router, "handle_routing", routing)
    await ask(app, **CASES[name][0])
    assert bool(seen) is routed
