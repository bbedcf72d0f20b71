"""Problem details (RFC 9457): every refusal that leaves the house, in one shape.

An answer says `type`, `title`, `status`, `detail` and a stable machine word in `code`. It never shows a trace, and
never repeats what the caller sent: details name the parameter and what was expected of it.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException, InternalServerException, SerializationException
from litestar.types import ExceptionHandlersMap
from msgspec import Struct

MEDIA_TYPE: Final = "application/problem+json"
_BODY: Final = "body: JSON in UTF-8 was expected, not nested too deeply"
MAX_NAMED_PARAMETERS: Final = 8
"""A 400 names at most so many of the parameters that were wrong."""

log = structlog.get_logger("door")


class CodeNote(Struct, frozen=True):
    """What a code means: its title, and a sentence on what to do."""

    title: str
    text: str


CODES: Final[dict[str, CodeNote]] = {
    "client_deleted": CodeNote(
        "The client was deleted", "Its grants have ended for ever. The agent may register anew."
    ),
    "client_not_found": CodeNote("There is no such client", "No client was ever registered under this id."),
    "client_suspended": CodeNote(
        "The client is suspended", "An admin may resume it; until then its grants are denied."
    ),
    "family_not_found": CodeNote("There is no such family", "No client of this family was ever registered."),
    "feed_behind_log": CodeNote(
        "The revocation feed does not belong to the log",
        "The log was restored while the feed was kept. Rebuild the feed: `python -m registry ensure-streams "
        "--rebuild-feed`.",
    ),
    "grant_conflict": CodeNote(
        "The grant id is taken", "A grant of this id exists with another user, scopes or expiry. Choose another id."
    ),
    "grant_ended": CodeNote("The grant has ended", "It was revoked or has expired; the user must consent again."),
    "grant_not_found": CodeNote("There is no such grant", "The client has no grant of this id."),
    "internal": CodeNote(
        "Something went wrong here", "It is our fault, and logged under the `X-Request-Id` of the answer."
    ),
    "invalid_client": CodeNote("The client did not authenticate", "The secret is wrong, or the client is not let in."),
    "invalid_client_metadata": CodeNote(
        "The metadata is refused", "RFC 7591 section 3.2.2; the detail says which member."
    ),
    "invalid_parameter": CodeNote(
        "A parameter cannot be understood", "The detail names it: of the path, the query or the body."
    ),
    "invalid_software_statement": CodeNote(
        "The software statement is refused", "It does not verify; RFC 7591 section 3.2.2."
    ),
    "unapproved_software_statement": CodeNote(
        "The software statement is not approved here", "Its issuer is not trusted here; RFC 7591 section 3.2.2."
    ),
    "invalid_redirect_uri": CodeNote("A redirect URI is refused", "RFC 7591 section 3.2.2; the detail says why."),
    "invalid_request": CodeNote("The request cannot be understood", "The detail says what was expected."),
    "invalid_token": CodeNote(
        "The registration access token is not the client's", "RFC 7592; the client may also be gone. Register anew."
    ),
    "job_not_found": CodeNote("There is no such job", "It ended long ago, or the console was started anew since."),
    "list_too_old": CodeNote(
        "The list is too old", "Too much happened since it was made, or the log is another. Make the list again."
    ),
    "log_full": CodeNote("The log is nearly full", "Only revocations and deletions are accepted until it has room."),
    "method_not_allowed": CodeNote("The method is not allowed here", "The `Allow` header lists those that are."),
    "not_authenticated": CodeNote("A bearer token is needed", "Send `Authorization: Bearer <token>` (RFC 6750)."),
    "not_found": CodeNote("There is nothing here", "The path is none of ours; see the list of operations above."),
    "not_from_here": CodeNote(
        "The request is from elsewhere", "The console's pages are used from the console's pages, under its own name."
    ),
    "not_permitted": CodeNote("The token's role may not do this", "Each path prefix has a role of its own."),
    "not_signed_in": CodeNote("Nobody is signed in", "Sign in to the console first."),
    "not_yet_applied": CodeNote(
        "The read model has not come that far", "The position in `at_least` was not applied in time. Try again shortly."
    ),
    "revocation_not_found": CodeNote(
        "There is no such revocation", "Nothing was revoked up to that position, or the feed keeps it no longer."
    ),
    "subscriber_not_found": CodeNote("There is no such subscriber", "It ended in good order, or never reported."),
    "too_large": CodeNote("The body is too large", "Send less in one request."),
    "too_many_requests": CodeNote("Too many requests", "Wait as long as `Retry-After` says."),
    "too_many_streams": CodeNote("Too many streams are open", "Close one, or try again as `Retry-After` says."),
    "too_many_subscribers": CodeNote("Too many subscribers report", "An admin can forget those that are gone."),
    "unavailable": CodeNote("Not available right now", "A server that this needs cannot be reached. Try again."),
    "unsupported_media_type": CodeNote("Another content type is needed", "Send `Content-Type: application/json`."),
}
"""Every code with its documentation, shown at `/docs#<code>`."""

_CODE_OF_STATUS: Final = {
    400: "invalid_request",
    401: "not_authenticated",
    403: "not_permitted",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
    500: "internal",
    503: "unavailable",
}


class Problem(Exception):
    """A refusal and the answer that it becomes.

    `code` is one of `CODES`, which also gives the title unless another is given. `members` are more top-level members.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(status, code, detail)
        self.status: Final = status
        self.code: Final = code
        self.detail: Final = detail
        self.title: Final = title if title is not None else _title(status, code)
        self.headers: Final = dict(headers or {})
        self.members: Final = dict(members or {})


type_of_code: Final = "/docs#{}".format
"""The problem type of a code: where its documentation stands."""


def _title(status: int, code: str) -> str:
    return CODES[code].title if code in CODES else HTTPStatus(status).phrase


def invalid_parameter(name: str, expected: str) -> Problem:
    """400: the parameter `name` is not what was expected. Neither may hold what the caller sent."""
    return Problem(400, "invalid_parameter", f"{name}: {expected}")


def unavailable(detail: str, *, code: str = "unavailable", retry_after_seconds: int = 1) -> Problem:
    """503: not now, try again after so many seconds."""
    return Problem(503, code, detail, headers={"Retry-After": str(retry_after_seconds)})


Rendering = Callable[[Problem, str], Response[bytes]]
"""How a problem looks at a path: problem details, or the error JSON of another standard."""


def render(problem: Problem) -> Response[bytes]:
    """The problem as `application/problem+json`."""
    body = {
        "type": type_of_code(problem.code),
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        **problem.members,
    }
    return Response(
        msgspec.json.encode(body), status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers
    )


def handlers(
    answers: Mapping[type[Exception], Callable[[Exception], Problem]], renderings: Mapping[str, Rendering]
) -> ExceptionHandlersMap:
    """Exception handlers of an application: whatever is raised becomes a `Problem`, and that an answer.

    `answers` says which problem a refusal of a room becomes. `renderings` says, by path prefix, how problems look there
    where it is not as problem details.
    """

    def shown(request: Request[object, object, State], problem: Problem) -> Response[bytes]:
        path = str(request.scope.get("path", ""))
        for prefix, rendering in renderings.items():
            if path == prefix or path.startswith(f"{prefix}/"):
                return rendering(problem, path)
        return render(problem)

    def answering(answer: Callable[[Exception], Problem]) -> Callable[..., Response[bytes]]:
        def handler(request: Request[object, object, State], exception: Exception) -> Response[bytes]:
            return shown(request, answer(exception))

        return handler

    return {
        Problem: shown,
        HTTPException: answering(_of_framework),
        RecursionError: answering(_unreadable),
        UnicodeDecodeError: answering(_unreadable),
        Exception: answering(_unexpected),
        **{refusal: answering(answer) for refusal, answer in answers.items()},
    }


def _unexpected(exception: Exception) -> Problem:
    # The request id and the caller are added to every line by `door.logs`.
    log.error("unexpected error", exc_info=exception)
    return Problem(500, "internal", "The error was logged under the request id of this answer.")


def _unreadable(exception: Exception) -> Problem:
    """Litestar lets through what msgspec raises for JSON nested too deeply, and for strings that are not UTF-8."""
    # A caller can cause this at will, so it is no error; it is logged in case it was ours after all.
    log.warning("body not readable", exc_info=exception)
    return Problem(400, "invalid_parameter", _BODY)


def _of_framework(exception: Exception) -> Problem:
    """What Litestar raises on its own: no route, wrong method, parameters that do not parse, bodies too large."""
    assert isinstance(exception, HTTPException)
    status = exception.status_code
    if isinstance(exception, InternalServerException) and "disconnected" in exception.detail:
        # The caller hung up while sending its body: nobody reads this answer, and it is no error of ours.
        return Problem(400, "invalid_request", "the connection was closed before the body had arrived")
    if status >= 500:
        return _unexpected(exception)
    if status == 400:
        return _bad_request(exception)
    allow = (exception.headers or {}).get("allow")
    headers = {} if allow is None else {"Allow": _allowed(allow)}
    code = _CODE_OF_STATUS.get(status, "invalid_request")
    return Problem(status, code, CODES[code].text, headers=headers)


def _allowed(allow: str) -> str:
    methods = set(allow.split(", "))
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def _bad_request(exception: HTTPException) -> Problem:
    named = exception.extra if isinstance(exception.extra, list) else []
    found = [each for each in named if isinstance(each, dict) and each.get("key")][:MAX_NAMED_PARAMETERS]
    if found:
        return Problem(400, "invalid_parameter", "; ".join(_named(each) for each in found))
    if exception.detail.startswith("Missing required"):
        # Litestar's words: "Missing required query parameter 'name' for path /p"; the path may hold what was sent.
        return Problem(400, "invalid_parameter", exception.detail.split(" for ", 1)[0])
    if isinstance(exception.__cause__, SerializationException):
        return Problem(400, "invalid_parameter", _BODY)
    return Problem(400, "invalid_parameter", "request: it is malformed, or a parameter of it is")


def _named(wrong: Mapping[str, object]) -> str:
    # msgspec's "Expected `int`, got `str`" names types alone; its other messages may repeat a value, so they stay here.
    message = str(wrong.get("message", ""))
    says_types = message.startswith(("Expected", "Missing", "Object missing"))
    # The argument that takes a body is called `data` in handlers; callers know it as the body.
    name = "body" if wrong["key"] == "data" and wrong.get("source") == "body" else wrong["key"]
    return f"{name}: {message.split(' - at ', 1)[0] if says_types else 'refused'}"
