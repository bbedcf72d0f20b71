"""`/auth/connect/register`: dynamic client registration (RFC 7591), anonymous, open to browsers from anywhere; and its
management (RFC 7592) by the client itself, with the registration access token that it was given.

Errors are RFC 7591's JSON. Nothing that a request names is ever fetched. What is refused leaves no trace.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response, delete, get, post, put, route
from litestar.di import NamedDependency
from litestar.params import FromPath

from door import asked, docs, roles, sources
from door.direct import DIRECTLY
from door.problems import Problem
from door.ready import ReadyResponse
from door.requests import current_traceparent
from grantbook import subjects
from grantbook.events import Actor, ClientMetadata
from registry import clients, credentials, enrolment, metadata
from registry.clients import Client
from registry.credentials import Kept
from registry.enrolment import PATH, Enrolled
from registry.metadata import MetadataRefused
from registry.register import Register, register_of
from registry.store import client

MAX_BODY_BYTES: Final = 65_536
BYTES_A_TOKEN: Final = 1_024
"""A request counts once, and once more for each of so many bytes of its body."""
MAX_TOKENS: Final = 1 + MAX_BODY_BYTES // BYTES_A_TOKEN
"""Of one request."""
NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
HEADERS: Final = NO_STORE | {"Access-Control-Allow-Origin": "*"}
PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, MCP-Protocol-Version",
    "Access-Control-Max-Age": "86400",
    "Cache-Control": "no-store",
    "Allow": "POST, OPTIONS",
}
JSON: Final = "application/json"
MANAGED: Final = PATH + "/{client_id:str}"
"""`registration_client_uri` (RFC 7592 section 3)."""
_OF_THE_SERVER: Final = (
    "registration_access_token",
    "registration_client_uri",
    "client_secret_expires_at",
    "client_id_issued_at",
)
"""What an update must not say (RFC 7592 section 2.2)."""
_TAGS: Final = ["registration"]
_UPDATE: Final = metadata.SCHEMA | {
    "required": ["client_id", *metadata.SCHEMA["required"]],
    "properties": {"client_id": {"type": "string"}} | metadata.SCHEMA["properties"],
}

ERRORS: Final = frozenset(
    {
        "access_denied",
        "invalid_client",
        "invalid_client_metadata",
        "invalid_redirect_uri",
        "invalid_software_statement",
        "invalid_token",
        "temporarily_unavailable",
        "unapproved_software_statement",
    }
)
"""Problem codes that are an `error` here as they stand."""


@post(
    PATH,
    status_code=HTTPStatus.CREATED,
    request_max_body_size=MAX_BODY_BYTES,
    opt=DIRECTLY | docs.takes(metadata.SCHEMA),
    tags=_TAGS,
)
async def register_client(request: Request[Any, Any, Any]) -> ReadyResponse[bytes]:
    """Register a client (RFC 7591 section 3.1). Answers with every registered member at its final value."""
    register = register_of(request)
    limit(request, register)
    said = checked(register, await members_of(request))
    trace = current_traceparent()
    enrolled = None
    if register.policy.idempotent_registration and said.token_endpoint_auth_method == "none":  # noqa: S105  a method
        enrolled = await enrolment.enrol_identical(register, said, traceparent=trace)
    if enrolled is None:
        enrolled = await enrolment.enrol(register, said, source="dcr", by=Actor("agent"), traceparent=trace)
    return answer(HTTPStatus.CREATED, enrolment.information(register, enrolled), HEADERS, register, enrolled.position)


@get(MANAGED, tags=_TAGS)
async def read_registration(
    client_id: FromPath[str], request: Request[Any, Any, Any], register: NamedDependency[Register]
) -> Response[bytes]:
    """Read one's own registration (RFC 7592 section 2.1). The secret is not in it: only its hash is kept."""
    limit(request, register)
    found, _, presented = await _authorized(client_id, request, register)
    information = _unchanged(register, found, presented)
    return Response(msgspec.json.encode(information), media_type=JSON, headers=NO_STORE)


@put(MANAGED, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(_UPDATE), tags=_TAGS)
async def update_registration(
    client_id: FromPath[str], request: Request[Any, Any, Any], register: NamedDependency[Register]
) -> Response[bytes]:
    """Replace one's own registration (RFC 7592 section 2.2). The registration access token is another from then on.

    Members that are left out are removed, or get their defaults. `client_id` must be there, and be the client's; a
    `client_secret` must be the one that it has. By the operator's policy the secret is another from then on, too.
    """
    limit(request, register)
    found, kept, _ = await _authorized(client_id, request, register)
    clients.admitted(found)
    members = await members_of(request)
    _refuse_foreign(members, found, kept)
    said = checked(register, members)
    token = subjects.token(found.id)
    issued = credentials.issue(
        register.random(credentials.RANDOM_BYTES),
        with_secret=metadata.needs_secret(said),
        keep_secret_sha256=None
        if register.policy.rotate_client_secrets or not metadata.needs_secret(found.metadata)
        else kept.credentials.client_secret_sha256,
    )
    claimed = await enrolment.replace_credentials(register, token, kept, issued)
    at = register.now()
    receipt = await register.log.transact(
        client(token),
        lambda state: clients.update(state, metadata=said, at=at, by=Actor("agent")),
        traceparent=current_traceparent(),
    )
    await enrolment.settle_credentials(register, token, claimed, issued)
    enrolled = Enrolled(found.id, found.registered_at, said, receipt.position, issued)
    return answer(HTTPStatus.OK, enrolment.information(register, enrolled), NO_STORE, register, receipt.position)


@delete(MANAGED, status_code=HTTPStatus.NO_CONTENT, tags=_TAGS)
async def delete_registration(
    client_id: FromPath[str], request: Request[Any, Any, Any], register: NamedDependency[Register]
) -> Response[None]:
    """Delete oneself (RFC 7592 section 2.3): every grant of the client has ended from then on, for ever."""
    limit(request, register)
    found, _, _ = await _authorized(client_id, request, register)
    at = register.now()
    receipt = await register.log.transact(
        client(subjects.token(found.id)),
        lambda state: clients.unregister(state, at=at, by=Actor("agent")),
        traceparent=current_traceparent(),
    )
    headers = NO_STORE | register.log_position(receipt.position)
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=headers)


@route(PATH, http_method="OPTIONS", include_in_schema=False)
async def preflight() -> Response[None]:
    """CORS preflight (Fetch standard): agents that run in a browser may register from any origin."""
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=PREFLIGHT_HEADERS)


def limit(request: Request[Any, Any, Any], register: Register) -> None:
    """Refuse a request beyond the limits of its source, or of all: 429 (RFC 6585), before its body is read.

    A large one counts as several: what fills the log is bytes.
    """
    announced = asked.content_length(request)
    if announced is None:
        says_nothing = asked.header(request, b"content-length") is None
        announced = 0 if says_nothing and request.method in {"GET", "DELETE"} else MAX_BODY_BYTES
    tokens = 1 + min(announced, MAX_BODY_BYTES) // BYTES_A_TOKEN
    seconds = register.limits.take(sources.source_of(request, register.policy.proxies), tokens)
    if seconds > 0:
        raise Problem(
            429,
            "too_many_requests",
            "Too many requests; wait as long as Retry-After says",
            headers={"Retry-After": str(max(1, math.ceil(seconds)))},
        )


async def members_of(request: Request[Any, Any, Any]) -> dict[str, object]:
    """The members of a JSON object that is the request's body. Raises problems as RFC 7591 names them."""
    if (asked.header(request, b"content-type") or "").partition(";")[0].strip().lower() != JSON:
        raise Problem(415, "invalid_request", "Send Content-Type: application/json")
    encoding = asked.header(request, b"content-encoding")
    if encoding is not None and encoding.strip().lower() != "identity":
        raise Problem(
            415, "invalid_request", "Send the body as it is, without encoding", headers={"Accept-Encoding": "identity"}
        )
    try:
        return metadata.members_of(await request.body())
    except MetadataRefused as refusal:
        raise refused(refusal) from refusal


def checked(register: Register, members: dict[str, object]) -> ClientMetadata:
    """What the members say, by the one validator. Raises problems as RFC 7591 names them."""
    try:
        return metadata.check(members, claims=register.statements.claims)
    except MetadataRefused as refusal:
        raise refused(refusal) from refusal


def refused(refusal: MetadataRefused) -> Problem:
    """The problem that refused metadata is."""
    return Problem(400, refusal.error, refusal.description)


def answer(
    status: HTTPStatus, information: Mapping[str, object], headers: Mapping[str, str], register: Register, position: int
) -> ReadyResponse[bytes]:
    """Client information, and where in the log it stands."""
    return ReadyResponse(
        msgspec.json.encode(information), status_code=status, headers={**headers, **register.log_position(position)}
    )


async def _authorized(client_id: str, request: Request[Any, Any, Any], register: Register) -> tuple[Client, Kept, str]:
    """The client whose registration access token was presented, and that token (RFC 7592 section 1.1 and 3).

    401 for any other token, and also for a client that is gone or never was: whether it was is told to nobody.
    """
    presented = roles.bearer_token(roles.authorization_of(request) or "") or ""
    token = subjects.token_in_path(client_id)
    kept = await credentials.kept(register.credentials, token)
    matches = credentials.matches(
        presented, None if kept is None else kept.credentials.registration_access_token_sha256
    )
    found, _ = await register.log.load(client(token), never_stale=True)
    if not matches or kept is None or found is None or found.status == "deleted":
        challenge = 'Bearer realm="grantbook", error="invalid_token"' if presented else 'Bearer realm="grantbook"'
        detail = "this needs the client's own registration access token"
        raise Problem(401, "invalid_token", detail, headers={"WWW-Authenticate": challenge})
    return found, kept, presented


def _refuse_foreign(members: Mapping[str, object], found: Client, kept: Kept) -> None:
    """Refuse an update that says what is not the client's to say (RFC 7592 section 2.2)."""
    if members.get("client_id") != found.id:
        raise Problem(400, "invalid_client_metadata", "client_id: the client's own was expected")
    for name in _OF_THE_SERVER:
        if name in members:
            raise Problem(400, "invalid_client_metadata", f"{name}: it is the server's to say")
    secret = members.get("client_secret")
    if "client_secret" in members and not (
        isinstance(secret, str) and credentials.matches(secret, kept.credentials.client_secret_sha256)
    ):
        raise Problem(400, "invalid_client_metadata", "client_secret: it is not the one that was issued")


def _unchanged(register: Register, found: Client, presented: str) -> dict[str, object]:
    issued = credentials.Issued(presented, None, credentials.Credentials())
    return enrolment.information(register, Enrolled(found.id, found.registered_at, found.metadata, 0, issued))


def rendering(problem: Problem, path: str) -> Response[bytes]:
    """A problem as RFC 7591 section 3.2.2 wants it: `error`, and an ASCII `error_description`.

    Open to other origins on the collection alone, not on the registrations below it.
    """
    later = problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR or problem.status == HTTPStatus.TOO_MANY_REQUESTS
    error = problem.code if problem.code in ERRORS else "temporarily_unavailable" if later else "invalid_request"
    if problem.status == HTTPStatus.FORBIDDEN:
        error = "access_denied"
    description = problem.detail.encode("ascii", "replace").decode()
    return Response(
        msgspec.json.encode({"error": error, "error_description": description}),
        status_code=problem.status,
        media_type=JSON,
        headers=(HEADERS if path == PATH else NO_STORE) | problem.headers,
    )


# In this order: Litestar adds an OPTIONS handler of its own to a path that has none yet.
ROUTES: Final = [preflight, register_client, read_registration, update_registration, delete_registration]
