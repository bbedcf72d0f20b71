"""A grant: state, evolve, decisions, refusals. No I/O, no clock, no ids made up.

Whether a grant stands is *computed*: from its own gate, its client's gate, its user's gate and the time.
"""

from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from grantbook.events import (
    Actor,
    Event,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
)
from grantbook.fingerprints import metadata_sha256
from grantbook.lifetimes import extension_threshold
from grantbook.sealed import Sealed
from registry.clients import Client, Intent, Refusal, admitted

UNTOLD_REASON: Final = "admin"


class GrantNotFound(Refusal):
    """No such grant was ever issued to the client."""


class GrantConflict(Refusal):
    """The grant's id is taken by a grant with other content."""


class Grant(Struct, frozen=True, kw_only=True):
    """What the log says of a grant now. Times are UTC; `issued_position` is its `grant.issued` in the log."""

    id: str
    client_id: str
    user_id: str
    username: Sealed
    scopes: tuple[str, ...]
    issued_at: datetime
    issued_expires_at: datetime
    issued_position: int
    expires_at: datetime
    metadata_sha256: str | None
    """Of what the client said of itself when the user let it in."""
    revoked: bool = False

    @property
    def threshold(self) -> timedelta:
        """By how much a refresh must move the expiry to be logged, and so the grace that look-ups allow."""
        return extension_threshold(self.issued_at, self.issued_expires_at)

    def has_lapsed(self, now: datetime) -> bool:
        """Whether it has expired at `now`, with the grace."""
        # Subtracted, not added: an expiry may be as late as a date can be.
        return now - self.threshold >= self.expires_at


class Holding(Struct, frozen=True, kw_only=True):
    """A grant and the client that holds it: what decisions about a grant look at."""

    client: Client | None
    grant: Grant | None


class Proposal(Struct, frozen=True, kw_only=True):
    """A grant that the identity provider wants recorded."""

    grant_id: str
    user_id: str
    username: Sealed
    scopes: tuple[str, ...]
    expires_at: datetime
    at: datetime
    by: Actor


def evolve(record: Event | None, record_position: int, gate: Event | None) -> Grant | None:
    """The grant, from the last event on its record, where in the log that stands, and the last on its gate."""
    match record:
        case GrantIssued():
            issued_at, issued_expires_at, issued_position = record.at, record.expires_at, record_position
        case GrantExtended():
            issued_at, issued_expires_at = record.issued_at, record.issued_expires_at
            issued_position = record.issued_position
        case _:
            return None
    return Grant(
        id=record.grant_id,
        client_id=record.client_id,
        user_id=record.user_id,
        username=record.username,
        scopes=record.scopes,
        issued_at=issued_at,
        issued_expires_at=issued_expires_at,
        issued_position=issued_position,
        expires_at=record.expires_at,
        metadata_sha256=record.metadata_sha256,
        revoked=isinstance(gate, GrantRevoked),
    )


def existing(grant: Grant | None) -> Grant:
    """The grant, ended or not. Refuses one that never was."""
    if grant is None:
        raise GrantNotFound
    return grant


def is_active(holding: Holding, *, cut_off_position: int, now: datetime) -> bool:
    """Whether the grant stands at `now`, with the grace of small refreshes that the log does not have.

    `cut_off_position` is where the user's last cut-off stands in the log; 0: there is none.
    """
    client, grant = holding.client, holding.grant
    if client is None or grant is None or client.status != "active" or grant.revoked:
        return False
    if grant.issued_position < cut_off_position:
        return False
    return not grant.has_lapsed(now)


def issue(holding: Holding, proposal: Proposal) -> GrantIssued | None:
    """Record that a user let the client in. None where just this grant was issued before."""
    client, grant = admitted(holding.client), holding.grant
    if grant is not None:
        # The *issued* expiry: a grant that was extended since is still the one that is being issued again.
        said = (grant.user_id, set(grant.scopes), grant.issued_expires_at)
        if said != (proposal.user_id, set(proposal.scopes), proposal.expires_at):
            raise GrantConflict
        return None
    return GrantIssued(
        client_id=client.id,
        grant_id=proposal.grant_id,
        user_id=proposal.user_id,
        username=proposal.username,
        scopes=proposal.scopes,
        expires_at=proposal.expires_at,
        metadata_sha256=metadata_sha256(client.metadata),
        at=proposal.at,
        by=proposal.by,
    )


def extend(
    holding: Holding, *, cut_off_position: int, expires_at: datetime, at: datetime, by: Actor
) -> GrantExtended | None:
    """Record a refresh that moved the expiry far enough. None for smaller moves, and for grants that have ended.

    `cut_off_position` is where the user's last cut-off stands in the log; 0: there is none.
    """
    client, grant = holding.client, existing(holding.grant)
    if client is None or client.status == "deleted" or grant.revoked or grant.issued_position < cut_off_position:
        return None
    if grant.has_lapsed(at):
        return None
    moved = expires_at - grant.expires_at
    if moved <= timedelta(0) or moved < grant.threshold:
        return None
    return GrantExtended(
        client_id=grant.client_id,
        grant_id=grant.id,
        user_id=grant.user_id,
        username=grant.username,
        scopes=grant.scopes,
        expires_at=expires_at,
        issued_at=grant.issued_at,
        issued_expires_at=grant.issued_expires_at,
        issued_position=grant.issued_position,
        metadata_sha256=grant.metadata_sha256,
        at=at,
        by=by,
    )


def revoke(holding: Holding, intent: Intent, *, caused_by: str | None = None) -> GrantRevoked | None:
    """End one grant. Others are untouched."""
    grant = existing(holding.grant)
    if grant.revoked:
        return None
    return GrantRevoked(
        client_id=grant.client_id,
        grant_id=grant.id,
        user_id=grant.user_id,
        reason=intent.reason or UNTOLD_REASON,
        note=intent.note,
        at=intent.at,
        by=intent.by,
        caused_by=caused_by,
    )
