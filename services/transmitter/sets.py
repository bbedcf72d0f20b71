"""What a security event token (RFC 8417) says of an event of the feed: claims, made of facts alone.

The same event on the same stream always gives the same claims, `jti` included. So what is sent again, after a crash or
for want of an acknowledgement, is the same SET, and a receiver that remembers `jti`s takes it once.

As SSF 1.0 section 4 wants it: one event in a SET, the subject in `sub_id` at the top, neither `sub` nor `exp`, and the
type `secevent+jwt`. `txn` is the id of the event in the log, the same on every stream: what an auditor looks for.
"""

import base64
import hashlib
import math
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from msgspec import Struct

from grantbook import wire
from grantbook.events import CLIENT_DELETED as DELETED_WITH_CLIENT
from grantbook.events import (
    Actor,
    ClientDeleted,
    ClientResumed,
    ClientSuspended,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.sdk.denials import APPENDED_WITHIN_SECONDS
from transmitter.identifiers import complex_of, iss_sub, opaque

SESSION_REVOKED: Final = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
"""CAEP 1.0 section 3.1."""
VERIFICATION: Final = "https://schemas.openid.net/secevent/ssf/event-type/verification"
"""SSF 1.0 section 8.1.4.1."""
CLIENT_DELETED: Final = "urn:grantbook:secevent:event-type:client-deleted"
CLIENT_SUSPENDED: Final = "urn:grantbook:secevent:event-type:client-suspended"
CLIENT_RESUMED: Final = "urn:grantbook:secevent:event-type:client-resumed"
"""Ours: no standard has events of OAuth clients. The same for every installation, so that receivers can know them."""
SUPPORTED: Final = (SESSION_REVOKED, CLIENT_DELETED, CLIENT_SUSPENDED, CLIENT_RESUMED)

Initiator = Literal["admin", "user", "policy", "system"]

_REASONS: Final[dict[str, tuple[str, Initiator | None]]] = {
    "user": ("the user ended it", "user"),
    "admin": ("an administrator ended it", "admin"),
    "reuse_detected": ("a token that was used up was used again", "policy"),
    "token_revoked": ("the token was revoked", None),
    "offboarded": ("the user left", None),
    "policy": ("a policy does not allow it", "policy"),
    DELETED_WITH_CLIENT: ("the client was deleted", "system"),
}
_INITIATORS: Final[dict[str, Initiator]] = {"admin": "admin", "user": "user", "agent": "user"}
"""By `kind` of the actor; an agent that deletes its registration (RFC 7592) acts for its user. Others: the system."""


class Parties(Struct, frozen=True):
    """Who speaks, and whose users it speaks of: the transmitter's issuer, and the identity provider's."""

    issuer: str
    subject_issuer: str


def jti_of(stream_id: str, event_id: str) -> str:
    """The SET's id (RFC 8417 section 2.2): of one event on one stream, however often it is sent."""
    digest = hashlib.sha256(f"{stream_id} {event_id}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def claims_of(
    recorded: wire.Recorded, *, stream_id: str, audience: str, delivered: tuple[str, ...], parties: Parties
) -> dict[str, Any] | None:
    """Claims of the SET for an event of the feed; None where none of the event types `delivered` can say it.

    `recorded_at` is the feed's time.
    """
    said = _said(recorded, frozenset(delivered), parties)
    if said is None or isinstance(recorded.event, wire.Unknown):
        return None
    event_type, subject, details = said
    return {
        "iss": parties.issuer,
        "jti": jti_of(stream_id, recorded.id),
        "iat": int(recorded.event.at.timestamp()),
        "aud": audience,
        "txn": recorded.id,
        "sub_id": subject,
        "events": {event_type: details},
    }


def verification_claims(
    *, stream_id: str, audience: str, verification_id: str, asked_at: datetime, state: str | None, issuer: str
) -> dict[str, Any]:
    """Claims of a verification SET (SSF 1.0 section 8.1.4.1): its subject is the stream itself."""
    return {
        "iss": issuer,
        "jti": jti_of(stream_id, verification_id),
        "iat": int(asked_at.timestamp()),
        "aud": audience,
        "sub_id": opaque(stream_id),
        "events": {VERIFICATION: {} if state is None else {"state": state}},
    }


def _said(
    recorded: wire.Recorded, delivered: frozenset[str], parties: Parties
) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Event type, subject and details."""
    choices: tuple[str, ...]
    match recorded.event:
        case GrantRevoked() as event:
            # A grant is what CAEP calls a session: access that was given once, and can be ended by itself.
            subject = complex_of(
                user=iss_sub(parties.subject_issuer, event.user_id),
                application=opaque(event.client_id),
                session=opaque(event.grant_id),
            )
            choices, when = (SESSION_REVOKED,), event.at
        case UserGrantsRevoked() as event:
            # Without the id its key stands for it, which receivers can compute: `~` and its base64url SHA-256.
            subject = iss_sub(parties.subject_issuer, event.user_id or event.user_key)
            # The log's time, not the registry's: a grant that was issued before the cut-off is never later than it. A
            # feed that was made anew tells its own making as the time, so the event's own, with a margin, bounds it.
            when = min(recorded.recorded_at, event.at + timedelta(seconds=APPENDED_WITHIN_SECONDS))
            choices = (SESSION_REVOKED,)
        case ClientDeleted() as event:
            # A receiver that does not know our events need not wait until each grant has been written as revoked.
            subject = complex_of(application=opaque(event.client_id))
            choices, when = (CLIENT_DELETED, SESSION_REVOKED), event.at
        case ClientSuspended() as event:
            # Never a revoked session: those end for good, and this may be taken back.
            subject = complex_of(application=opaque(event.client_id))
            choices, when = (CLIENT_SUSPENDED,), event.at
        case ClientResumed() as event:
            subject = complex_of(application=opaque(event.client_id))
            choices, when = (CLIENT_RESUMED,), event.at
        case _:
            return None
    chosen = next((each for each in choices if each in delivered), None)
    return None if chosen is None else (chosen, subject, _details(when, event.by, event.reason))


def _details(when: datetime, by: Actor, reason: str | None) -> dict[str, Any]:
    """CAEP 1.0 section 2: when, by whom, why. In whole seconds, rounded up, so that it is never before it happened."""
    sentence, initiator = _REASONS.get(reason or "", ("no reason was given", None))
    return {
        "event_timestamp": math.ceil(when.timestamp()),
        "initiating_entity": initiator or _INITIATORS.get(by.kind, "system"),
        "reason_admin": {"en": f"{reason}: {sentence}" if reason in _REASONS else reason or sentence},
    }
