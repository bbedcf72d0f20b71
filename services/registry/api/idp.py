"""`/idp/v1`: what the identity provider asks and reports. Every look-up is from the log's leader: never stale."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, structs

from appraisal import flags
from door import docs
from door.direct import DIRECTLY
from door.problems import Problem
from door.ready import ReadyResponse
from door.requests import current_traceparent
from door.roles import Caller, caller_of, requires
from door.times import utc
from grantbook import subjects
from grantbook.events import Actor, ClientMetadataChanged, ClientRegistered, GrantRevoked
from grantbook.fingerprints import metadata_sha256
from registry import activity, clients, credentials, documents, grants, metadata
from registry.api.bodies import MAX_CLIENT_ID_CHARACTERS, ClientId, Id, Moment, Scopes, Username, Why, decoded, why
from registry.api.registration import MAX_BODY_BYTES
from registry.clients import Client, ClientNotFound, Intent
from registry.grants import Grant, Proposal
from registry.metadata import MetadataRefused
from registry.register import Register, register_of
from registry.store import client, holding, user

MAX_ACTIVITY_BYTES: Final = 8 * 1024 * 1024
MAX_SECRET_CHARACTERS: Final = 4_096
_idp: Final = [requires("idp")]


class Authentication(Struct, frozen=True):
    """What a client presented at the token endpoint."""

    client_secret: Annotated[str, Meta(max_length=MAX_SECRET_CHARACTERS)]


class GrantRequest(Struct, frozen=True):
    """A grant that a user gave. Without `grant_id` one is minted."""

    user_id: Id
    username: Username
    scopes: Scopes
    expires_at: Moment
    grant_id: Id | UnsetType = UNSET


class GrantAnswer(Struct, frozen=True, kw_only=True):
    """A grant as it was issued."""

    grant_id: str
    grant_key: str | UnsetType = UNSET
    client_id: str
    user_id: str
    scopes: list[str]
    issued_at: datetime
    expires_at: datetime


class GrantState(Struct, frozen=True, kw_only=True):
    """Whether a grant stands. Everything else is absent when it does not."""

    active: bool
    grant_id: str | UnsetType = UNSET
    client_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    scopes: list[str] | UnsetType = UNSET
    issued_at: datetime | UnsetType = UNSET
    expires_at: datetime | UnsetType = UNSET


class UseReported(Struct, frozen=True):
    """One entry of an activity report."""

    client_id: ClientId
    grant_id: Id
    kind: str
    at: Moment
    count: int = 1
    expires_at: Moment | None = None


class Report(Struct, frozen=True):
    """An activity report. With a `report_id`, sending it again within two minutes counts nothing twice."""

    activity: Annotated[list[UseReported], Meta(max_length=activity.MAX_ENTRIES)]
    report_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class ReportAnswer(Struct, frozen=True):
    """How many entries were recorded, and those that were not."""

    recorded: int
    rejected: list[activity.Rejected]


class MetadataDocument(Struct, frozen=True):
    """A client ID metadata document as the identity provider found it, under the URL that is the client's id."""

    client_id: Annotated[str, Meta(min_length=1, max_length=MAX_CLIENT_ID_CHARACTERS)]
    metadata: Raw


@get("/idp/v1/clients/{client_id:str}", guards=_idp, tags=["identity provider"])
async def get_client(client_id: FromPath[str], register: NamedDependency[Register]) -> dict[str, Any]:
    """The registration as the log has it now. 410 for a deleted client; a suspended one says so in `status`.

    `flags` are what its metadata alone tells: for the page on which a user is asked to consent.
    """
    found, _ = await register.log.load(client(subjects.token_in_path(client_id)), never_stale=True)
    return _shown(clients.existing(found))


@put(
    "/idp/v1/metadata-clients",
    guards=_idp,
    request_max_body_size=MAX_BODY_BYTES,
    opt=docs.takes(MetadataDocument),
    tags=["identity provider"],
)
async def see_metadata_client(
    request: Request[Any, Any, Any], register: NamedDependency[Register], caller: NamedDependency[Caller]
) -> Response[dict[str, Any]]:
    """Record a client that is known by its metadata document, as it was seen at authorize.

    201 for one that is new. 200 for one that is known: what changed in its document is recorded, and the same document
    changes nothing. 410 for a deleted one, which stays deleted; a suspended one says so in `status`.
    """
    seen = decoded(await request.body(), MetadataDocument)
    try:
        said = documents.check(seen.client_id, bytes(seen.metadata), claims=register.statements.claims)
    except MetadataRefused as refusal:
        raise Problem(400, refusal.error, refusal.description) from refusal
    at, by = register.now(), Actor("idp", caller.name)

    def decide(state: Client | None) -> ClientRegistered | ClientMetadataChanged | None:
        if state is None:
            return clients.register(None, client_id=seen.client_id, source="cimd", metadata=said, at=at, by=by)
        return clients.observe(state, metadata=said, at=at, by=by)

    receipt = await register.log.transact(
        client(subjects.token(seen.client_id)), decide, traceparent=current_traceparent()
    )
    before = receipt.state
    found = before or Client(id=seen.client_id, source="cimd", metadata=said, registered_at=at)
    return Response(
        _shown(structs.replace(found, metadata=said)),
        status_code=HTTPStatus.CREATED if before is None else HTTPStatus.OK,
        headers=register.log_position(receipt.position),
    )


def _shown(found: Client) -> dict[str, Any]:
    key = subjects.token(found.id)
    return {
        "client_id": found.id,
        **({"client_key": key} if key != found.id else {}),
        "client_id_issued_at": int(found.registered_at.timestamp()),
        "created_at": found.registered_at,
        "source": found.source,
        "status": found.status,
        "metadata_sha256": metadata_sha256(found.metadata),
        "flags": flags.of_metadata(found.metadata),
        **metadata.render(found.metadata),
    }


@post(
    "/idp/v1/clients/{client_id:str}/authenticate",
    guards=_idp,
    opt=docs.takes(Authentication),
    status_code=HTTPStatus.NO_CONTENT,
    tags=["identity provider"],
)
async def authenticate_client(
    client_id: FromPath[str], request: Request[Any, Any, Any], register: NamedDependency[Register]
) -> None:
    """Check a client's secret (RFC 6749 section 2.3.1). 401 `invalid_client` also for clients not let in."""
    presented = decoded(await request.body(), Authentication).client_secret
    token = subjects.token_in_path(client_id)
    found, _ = await register.log.load(client(token), never_stale=True)
    kept = await credentials.kept(register.credentials, token)
    matches = credentials.matches(presented, None if kept is None else kept.credentials.client_secret_sha256)
    if not matches or found is None or found.status != "active" or not metadata.needs_secret(found.metadata):
        challenge = {"WWW-Authenticate": 'Bearer realm="grantbook"'}
        raise Problem(401, "invalid_client", "The client did not authenticate.", headers=challenge)


@post(
    "/idp/v1/clients/{client_id:str}/grants",
    guards=_idp,
    status_code=HTTPStatus.CREATED,
    opt=DIRECTLY | docs.takes(GrantRequest),
    tags=["identity provider"],
)
async def issue_grant(client_id: FromPath[str], request: Request[Any, Any, Any]) -> ReadyResponse[GrantAnswer]:
    """Record that a user let a client in. 200 when just this grant was recorded before."""
    register, caller = register_of(request), caller_of(request)
    asked = decoded(await request.body(), GrantRequest)
    grant_id = register.new_id() if asked.grant_id is UNSET else asked.grant_id
    aggregate = holding(subjects.token_in_path(client_id), subjects.token(grant_id))
    # Refuse an unknown client before a key is made for a user who never granted anything.
    clients.admitted((await register.log.load(aggregate, never_stale=True))[0].client)
    proposal = Proposal(
        grant_id=grant_id,
        user_id=asked.user_id,
        username=await register.seals.username(asked.user_id, asked.username),
        scopes=tuple(dict.fromkeys(asked.scopes)),
        expires_at=utc("expires_at", asked.expires_at),
        at=register.now(),
        by=Actor("idp", caller.name),
    )
    receipt = await register.log.transact(
        aggregate, lambda state: grants.issue(state, proposal), traceparent=current_traceparent()
    )
    new = receipt.event is not None
    grant = receipt.state.grant if not new else None
    answer = GrantAnswer(
        grant_id=grant_id,
        grant_key=subjects.token(grant_id) if subjects.token(grant_id) != grant_id else UNSET,
        client_id=clients.existing(receipt.state.client).id,
        user_id=proposal.user_id,
        scopes=list(grant.scopes if grant else proposal.scopes),
        issued_at=grant.issued_at if grant else proposal.at,
        expires_at=proposal.expires_at,
    )
    return ReadyResponse(
        msgspec.json.encode(answer),
        status_code=HTTPStatus.CREATED if new else HTTPStatus.OK,
        headers=register.log_position(receipt.position),
    )


@get("/idp/v1/clients/{client_id:str}/grants/{grant_id:str}", guards=_idp, tags=["identity provider"])
async def get_grant(
    client_id: FromPath[str], grant_id: FromPath[str], register: NamedDependency[Register]
) -> GrantState:
    """Whether a grant stands, from its own gate, its client's and its user's, as the leader has them now."""
    state, _ = await register.log.load(
        holding(subjects.token_in_path(client_id), subjects.token_in_path(grant_id)), never_stale=True
    )
    if state.client is None:
        raise ClientNotFound
    grant = grants.existing(state.grant)
    # The user is known only now: two reads.
    cut_off_position, _ = await register.log.load(user(subjects.token(grant.user_id)), never_stale=True)
    active = grants.is_active(state, cut_off_position=cut_off_position, now=register.now())
    return _standing(grant) if active else GrantState(active=False)


@post(
    "/idp/v1/clients/{client_id:str}/grants/{grant_id:str}/revoke",
    guards=_idp,
    opt=docs.takes(Why, optional=True),
    status_code=HTTPStatus.NO_CONTENT,
    tags=["identity provider"],
)
async def revoke_grant(
    client_id: FromPath[str],
    grant_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """End one grant; the reason is `user` unless another is given. Ended already: 204 as well."""
    return await end_grant(client_id, grant_id, request, register, caller, default_reason="user")


async def end_grant(
    client_id: str,
    grant_id: str,
    request: Request[Any, Any, Any],
    register: Register,
    caller: Caller,
    *,
    default_reason: str,
) -> Response[None]:
    """What revoking one grant is, for the identity provider and for admins."""
    intent = await intent_of(request, register, caller, default_reason=default_reason)

    def decide(state: grants.Holding) -> GrantRevoked | None:
        if state.client is None:
            raise ClientNotFound
        return grants.revoke(state, intent)

    receipt = await register.log.transact(
        holding(subjects.token_in_path(client_id), subjects.token_in_path(grant_id)),
        decide,
        traceparent=current_traceparent(),
    )
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=register.log_position(receipt.position))


async def intent_of(
    request: Request[Any, Any, Any], register: Register, caller: Caller, *, default_reason: str | None
) -> Intent:
    """Who acts on a gate, and why: what is personal in it is sealed, and the rest goes to every token service."""
    return await intent_for(await why(request, default=default_reason), register, caller)


async def intent_for(said: Why, register: Register, caller: Caller) -> Intent:
    """The same, where the body said more than why."""
    note = await register.seals.note(caller.role, caller.name, said.detail)
    return Intent(reason=said.reason, note=note, at=register.now(), by=Actor(caller.role))


@post(
    "/idp/v1/activity",
    guards=_idp,
    opt=DIRECTLY | docs.takes(Report),
    status_code=HTTPStatus.ACCEPTED,
    request_max_body_size=MAX_ACTIVITY_BYTES,
    tags=["identity provider"],
)
async def report_activity(request: Request[Any, Any, Any]) -> ReadyResponse[ReportAnswer]:
    """Record use of grants. Unknown grants are rejected one by one; use after a grant's end is evidence, and kept."""
    register, caller = register_of(request), caller_of(request)
    report = decoded(await request.body(), Report)
    recording = await register.activity.record(
        [
            activity.Use(
                client_id=each.client_id,
                grant_id=each.grant_id,
                kind=each.kind,
                at=utc(f"activity[{index}].at", each.at),
                count=each.count,
                expires_at=None if each.expires_at is None else utc(f"activity[{index}].expires_at", each.expires_at),
            )
            for index, each in enumerate(report.activity)
        ],
        reporter=caller.name,
        report_id=report.report_id,
        at=register.now(),
        by=Actor("idp", caller.name),
    )
    answer = ReportAnswer(recording.recorded, list(recording.rejected))
    return ReadyResponse(
        msgspec.json.encode(answer),
        status_code=HTTPStatus.ACCEPTED,
        headers=register.activity_position(recording.position),
    )


def _standing(grant: Grant) -> GrantState:
    return GrantState(
        active=True,
        grant_id=grant.id,
        client_id=grant.client_id,
        user_id=grant.user_id,
        scopes=list(grant.scopes),
        issued_at=grant.issued_at,
        expires_at=grant.expires_at,
    )


ROUTES: Final = [
    get_client,
    see_metadata_client,
    authenticate_client,
    issue_grant,
    get_grant,
    revoke_grant,
    report_activity,
]
