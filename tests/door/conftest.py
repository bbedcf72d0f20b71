"""A small application behind the door, and how it is asked: as a server would, byte for byte."""

import json
import logging
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog
from litestar import Litestar, get, post
from litestar.di import NamedDependency
from litestar.exceptions import ServiceUnavailableException
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.response import Stream

from door import access, front, problems, requests, roles
from door.roles import Caller

TOKENS = {role: roles.new_token(role, bytes([number]) * 32) for number, role in enumerate(roles.ROLES)}
KEYRING = roles.Keyring(tuple(roles.entry(f"the-{role}", role, token) for role, token in TOKENS.items()))


class Refused(Exception):
    """A refusal as rooms have them."""


class Sent(msgspec.Struct):
    count: int
    client_secret: str = ""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Litestar,
    path: str,
    *,
    method: str = "GET",
    headers: list[tuple[bytes, bytes]] | None = None,
    body: bytes = b"",
    query: bytes = b"",
    pieces: Sequence[bytes] = (),
    hangs_up: bool = False,
    root_path: str = "",
    host: bytes = b"test",
) -> Answer:
    """One request as raw ASGI: HTTP clients would refuse to send some of what attackers do.

    Its body is `body`, or arrives in `pieces`; one that `hangs_up` never sends all of it.
    """
    of_body = list(pieces) or [body]
    sent: list[dict[str, Any]] = [{"type": "http.request", "body": each, "more_body": True} for each in of_body]
    sent[-1]["more_body"] = hangs_up
    got: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return sent.pop(0) if sent else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        got.append(message)

    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query,
        "root_path": root_path,
        "headers": [(b"host", host), *(headers or [])],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]  # plain dicts, as servers send
    assert [each["type"] for each in got].count("http.response.start") == 1
    answer_headers = [(name.decode().lower(), value.decode("latin-1")) for name, value in got[0]["headers"]]
    return Answer(got[0]["status"], dict(answer_headers), b"".join(each.get("body", b"") for each in got[1:]))


def bearer(role: roles.Role) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {TOKENS[role]}".encode())]


def _route(role: roles.Role) -> Any:
    @get(f"/for/{role}", guards=[roles.requires(role)])
    async def handler(caller: NamedDependency[Caller]) -> Caller:
        """Says who asks."""
        return caller

    return handler


@get("/admin/v1/things/{thing:str}")
async def thing(thing: FromPath[str], limit: FromQuery[int], to: FromQuery[int | None] = None) -> dict[str, str | None]:
    """A thing."""
    return {
        "thing": thing,
        "request_id": requests.current_request_id(),
        "traceparent": requests.current_traceparent(),
    }


@post("/things", request_max_body_size=100)
async def make(data: JSONBody[Sent]) -> Sent:
    """Make a thing."""
    return data


@post("/nested")
async def nested(data: JSONBody[Sent]) -> Sent:
    """Takes large bodies."""
    return data


@get("/raise/{what:str}")
async def fail(what: FromPath[str]) -> None:
    """Everything that can go wrong."""
    match what:
        case "problem":
            raise problems.Problem(409, "grant_conflict", "taken", headers={"X-Hint": "other id"}, members={"grant": 1})
        case "refusal":
            raise Refused
        case "unavailable":
            raise problems.unavailable("the log cannot be reached", retry_after_seconds=3)
        case "framework":
            raise ServiceUnavailableException("inner words")
        case _:
            raise RuntimeError(f"the secret is {TOKENS['admin']}")


@get("/stream")
async def stream() -> Stream:
    """Breaks in the middle."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("in the middle")

    return Stream(parts())


@get("/oauth/thing")
async def oauth() -> None:
    """Where another standard shapes errors."""
    raise problems.Problem(400, "invalid_redirect_uri", "no")


def make_app(**more: Any) -> Litestar:
    return front.litestar_app(
        [thing, make, nested, fail, stream, oauth, *(_route(role) for role in roles.ROLES)],
        name="test",
        keyring=KEYRING,
        mint_request_id=lambda: "minted",
        answers={Refused: lambda _: problems.Problem(404, "grant_not_found", "none of it")},
        **more,
    )


@pytest.fixture
def app() -> Litestar:
    return make_app()


@contextmanager
def captured() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged meanwhile, as it is given to the chain that writes it: access lines, too."""
    before, access.lines.are_json = access.lines.are_json, False
    try:
        with structlog.testing.capture_logs() as lines:
            yield lines
    finally:
        access.lines.are_json = before


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Tests configure the process's logging; the next ones get it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # An application that was made before may have taken warnings, which pytest took back: then none are taken again.
    logging.captureWarnings(capture=False)
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    access.lines.are_json = False
