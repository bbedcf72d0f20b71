"""A client and its grants as they were at a moment, folded from the log. Pure.

The rules are those of the read model: whether a grant stands is computed, from its own gate, its client's gate, its
user's cut-offs and the time. A grant that is extended by refreshes too small for the log (see `grantbook.lifetimes`)
counts as active for that long after the expiry that the log knows.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal, assert_never

import msgspec
from msgspec import UNSET, Struct

from grantbook.admin import ClientAsOf, GrantAsOf
from grantbook.events import (
    CLIENT_DELETED,
    ActivityRecorded,
    ClientDeleted,
    ClientMetadata,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.fingerprints import metadata_sha256
from grantbook.lifetimes import extension_threshold
from grantbook.positions import Position
from grantbook.subjects import token
from grantbook.wire import Recorded, Unknown

EXPIRED: Final = "expired"
"""`ended_reason` of a grant that ran out."""
USER_GRANTS_REVOKED: Final = "user_grants_revoked"
"""`ended_reason` of a grant that a cut-off of its user ended, where the cut-off gives no reason."""


class Moment(Struct, frozen=True):
    """A place in the log, and the time (UTC) that expiries are judged by."""

    position: Position
    at: datetime


class CannotTell(Exception):
    """An event of a type that this version does not know may have changed the client: any answer might be wrong."""


class _Grant(Struct, kw_only=True):
    grant_id: str
    user_id: str
    scopes: tuple[str, ...]
    issued_at: datetime
    issued_expires_at: datetime
    expires_at: datetime
    metadata_sha256: str | None
    ended_at: datetime | None = None
    ended_reason: str | None = None

    def end(self, at: datetime, reason: str) -> None:
        """Note the first fact that ended it; expiry is looked at in the end."""
        if self.ended_at is None:
            self.ended_at, self.ended_reason = at, reason

    def as_of(self, at: datetime, *, client_suspended: bool) -> GrantAsOf:
        # Subtracted, not added: an expiry at the end of time has no moment behind it.
        grace = extension_threshold(self.issued_at, self.issued_expires_at)
        ended_at, ended_reason = self.ended_at, self.ended_reason
        status = "revoked"
        if self.expires_at <= at - grace and (ended_at is None or self.expires_at < ended_at - grace):
            status, ended_at, ended_reason = EXPIRED, self.expires_at, EXPIRED
        elif ended_at is None:
            status = "suspended" if client_suspended else "active"
        return GrantAsOf(
            grant_id=self.grant_id,
            user_id=self.user_id,
            scopes=list(self.scopes),
            issued_at=self.issued_at,
            expires_at=self.expires_at,
            status=status,
            ended_at=UNSET if ended_at is None else ended_at,
            ended_reason=UNSET if ended_reason is None else ended_reason,
            metadata_sha256=UNSET if self.metadata_sha256 is None else self.metadata_sha256,
        )


class History:
    """The client so far. Give it recorded events in the order of the log, then ask for the answer.

    It takes the events of one client, of its grants, and of the gates of users; those of other users change nothing.
    """

    def __init__(self) -> None:
        self._registered: ClientRegistered | ClientMetadataChanged | None = None
        self._created_at: datetime | None = None
        self._status: Literal["active", "suspended", "deleted"] = "active"
        self._grants: dict[str, _Grant] = {}
        self._grants_of_user: dict[str, list[_Grant]] = {}

    def apply(self, recorded: Recorded) -> None:  # noqa: C901, PLR0912  one arm a type
        """Take an event into account. Raises `CannotTell`."""
        event, at = recorded.event, recorded.recorded_at
        match event:
            case ClientRegistered():
                if self._registered is None:
                    self._registered, self._created_at = event, event.at
            case ClientMetadataChanged():
                self._registered, self._created_at = event, event.registered_at
            case ClientSuspended():
                self._status = "suspended"
            case ClientResumed():
                self._status = "active"
            case ClientDeleted():
                self._status = "deleted"
                for grant in self._grants.values():
                    grant.end(at, CLIENT_DELETED)
            case GrantIssued():
                self._issued(event)
            case GrantExtended():
                if event.grant_id in self._grants:
                    self._grants[event.grant_id].expires_at = event.expires_at
            case GrantRevoked():
                if event.grant_id in self._grants:
                    self._grants[event.grant_id].end(at, event.reason)
            case UserGrantsRevoked():
                for grant in self._grants_of_user.get(event.user_key, ()):
                    grant.end(at, event.reason or USER_GRANTS_REVOKED)
            case ActivityRecorded():
                pass
            case Unknown():
                raise CannotTell(f"position {recorded.position} has an event of unknown type {event.type[:80]!r}")
            case _:
                assert_never(event)

    def as_of(self, moment: Moment) -> ClientAsOf | None:
        """The client and its grants, in the order of issuing. None where it was not registered yet."""
        if self._registered is None or self._created_at is None:
            return None
        return ClientAsOf(
            as_of=str(moment.position),
            client_id=self._registered.client_id,
            status=self._status,
            source=self._registered.source,
            created_at=self._created_at,
            metadata=registered_members(self._registered.metadata),
            metadata_sha256=metadata_sha256(self._registered.metadata),
            grants=[
                each.as_of(moment.at, client_suspended=self._status == "suspended") for each in self._grants.values()
            ],
        )

    def _issued(self, event: GrantIssued) -> None:
        if event.grant_id in self._grants:
            return
        grant = _Grant(
            grant_id=event.grant_id,
            user_id=event.user_id,
            scopes=event.scopes,
            issued_at=event.at,
            issued_expires_at=event.expires_at,
            expires_at=event.expires_at,
            metadata_sha256=event.metadata_sha256,
        )
        self._grants[event.grant_id] = grant
        self._grants_of_user.setdefault(token(event.user_id), []).append(grant)


def fold(records: Iterable[Recorded], moment: Moment) -> ClientAsOf | None:
    """The client whose events these are, as it was at `moment`; later ones are left out. Raises `CannotTell`."""
    history = History()
    for recorded in records:
        if recorded.position <= moment.position.sequence:
            history.apply(recorded)
    return history.as_of(moment)


def registered_members(metadata: ClientMetadata) -> dict[str, Any]:
    """The members of a registration as RFC 7591 section 2 writes them, `name#language-tag` members among them."""
    members: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(metadata))
    localized: dict[str, Any] = members.pop("localized", {})
    return members | localized
