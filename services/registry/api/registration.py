"""`/auth/connect/register`: dynamic client registration (RFC 7591), anonymous, open to browsers from anywhere.

Errors are RFC 7591's JSON. Nothing that a request names is ever fetched. What is refused leaves no trace.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response, post, route
from litestar.di import NamedDependency

from door.problems import Problem
from door.requests import current_traceparent
from grantbook import subjects
from grantbook.events import Actor, ClientRegistered
from registry import credentials, metadata
from registry.metadata import MetadataRefused
from registry.register import Register
from registry.store import LogFull

PATH: Final = "/auth/connect/register"
MAX_BODY_BYTES: Final = 65_536
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


@post(PATH, status_code=HTTPStatus.CREATED, request_max_body_size=MAX_BODY_BYTES, tags=["registration"])
async def register_client(request: Request[Any, Any, Any], register: NamedDependency[Register]) -> Response[bytes]:
    """Register a client (RFC 7591 section 3.1). Answers with every registered member at its final value."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Problem(415, "invalid_request", "Send Content-Type: application/json")
    try:
        registered = metadata.parse(await request.body())
    except MetadataRefused as refusal:
        raise Problem(400, refusal.error, refusal.description) from refusal
    if register.log.only_gates:
        raise LogFull  # before anything is written for it
    client_id = register.new_id()
    issued = credentials.issue(
        register.random(2 * credentials.SECRET_BYTES), with_secret=metadata.needs_secret(registered)
    )
    token = subjects.token(client_id)
    # The hashes before the event that makes them count: an orphan is harmless, a client without its token is not.
    await credentials.keep(register.credentials, token, issued.kept)
    event = ClientRegistered(
        client_id=client_id, source="dcr", metadata=registered, at=register.now(), by=Actor("agent")
    )
    position = await register.log.record_new(event, traceparent=current_traceparent())
    answer: dict[str, object] = {
        "client_id": client_id,
        "client_id_issued_at": int(event.at.timestamp()),
        "registration_access_token": issued.registration_access_token,
        "registration_client_uri": f"{register.base_url}{PATH}/{client_id}",
        **metadata.render(registered),
    }
    if issued.client_secret is not None:
        answer |= {"client_secret": issued.client_secret, "client_secret_expires_at": 0}
    return Response(
        msgspec.json.encode(answer),
        status_code=HTTPStatus.CREATED,
        media_type=JSON,
        headers=HEADERS | register.log_position(position),
    )


@route(PATH, http_method="OPTIONS", include_in_schema=False)
async def preflight() -> Response[None]:
    """CORS preflight (Fetch standard): agents that run in a browser may register from any origin."""
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=PREFLIGHT_HEADERS)


def rendering(problem: Problem, path: str) -> Response[bytes]:
    """A problem as RFC 7591 section 3.2.2 wants it: `error`, and an ASCII `error_description`.

    Open to other origins on the collection alone, not on what may one day stand below it.
    """
    codes = {"invalid_redirect_uri", "invalid_client_metadata", "invalid_software_statement", "invalid_client"}
    codes |= {"unapproved_software_statement", "invalid_token", "temporarily_unavailable"}
    known = problem.code in codes
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        error = problem.code if known else "temporarily_unavailable"
    else:
        error = problem.code if known else "invalid_request"
    description = problem.detail.encode("ascii", "replace").decode()
    return Response(
        msgspec.json.encode({"error": error, "error_description": description}),
        status_code=problem.status,
        media_type=JSON,
        headers=(HEADERS if path == PATH else NO_STORE) | problem.headers,
    )


# In this order: Litestar adds an OPTIONS handler of its own to a path that has none yet.
ROUTES: Final = [preflight, register_client]
