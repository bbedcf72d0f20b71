"""A client: state, evolve, decisions, refusals. No I/O, no clock, no ids made up.

A decision is pure and total: state and intent give the one event to record, or None where nothing is to be done, or a
refusal. Deciding again after the event gives None.
"""

from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from grantbook.events import (
    Actor,
    ClientDeleted,
    ClientMetadata,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    Event,
)
from grantbook.sealed import Sealed

Status = Literal["active", "suspended", "deleted"]

NEVER_USED: Final = "never_used"
"""The reason of a suspension and a deletion by the register itself: the client is being expired, or was."""


class Refusal(Exception):
    """The register says no. Which answer that becomes is one table, in `registry.api.answers`."""


class ClientNotFound(Refusal):
    """No such client was ever registered."""


class ClientGone(Refusal):
    """The client was deleted, for ever."""


class ClientNotAdmitted(Refusal):
    """The client is suspended."""


class Client(Struct, frozen=True, kw_only=True):
    """What the log says of a client now."""

    id: str
    source: str
    metadata: ClientMetadata
    registered_at: datetime
    status: Status = "active"
    suspended_for: str | None = None
    """The reason of its suspension, where one was given."""

    @property
    def is_held(self) -> bool:
        """Whether it is suspended only for the moment in which it is looked at whether it was ever used."""
        return self.status == "suspended" and self.suspended_for == NEVER_USED


class Intent(Struct, frozen=True, kw_only=True):
    """Why somebody acts on a gate, and who. `note` is the sealed part; `by` has no id here."""

    reason: str | None
    note: Sealed | None
    at: datetime
    by: Actor


def evolve(record: Event | None, gate: Event | None) -> Client | None:
    """The client, from the last event on its record and the last on its gate: each carries the whole state."""
    match record:
        case ClientRegistered():
            registered_at = record.at
        case ClientMetadataChanged():
            registered_at = record.registered_at
        case _:
            return None
    status: Status = "active"
    suspended_for: str | None = None
    match gate:
        case ClientSuspended():
            status, suspended_for = "suspended", gate.reason
        case ClientDeleted():
            status = "deleted"
        case _:
            pass
    return Client(
        id=record.client_id,
        source=record.source,
        metadata=record.metadata,
        registered_at=registered_at,
        status=status,
        suspended_for=suspended_for,
    )


def existing(client: Client | None) -> Client:
    """The client, whether or not it is let in. Refuses one that was never there, and one that is gone."""
    if client is None:
        raise ClientNotFound
    if client.status == "deleted":
        raise ClientGone
    return client


def admitted(client: Client | None) -> Client:
    """The client, where it is let in. Refuses all others."""
    client = existing(client)
    if client.status == "suspended":
        raise ClientNotAdmitted
    return client


def register(
    client: Client | None, *, client_id: str, source: str, metadata: ClientMetadata, at: datetime, by: Actor
) -> ClientRegistered | None:
    """Record a client under an id of its own."""
    if client is not None:
        return None
    return ClientRegistered(client_id=client_id, source=source, metadata=metadata, at=at, by=by)


def update(client: Client | None, *, metadata: ClientMetadata, at: datetime, by: Actor) -> ClientMetadataChanged | None:
    """Replace the metadata, as the client itself asks (RFC 7592 section 2.2). A suspended one may not."""
    return observe(admitted(client), metadata=metadata, at=at, by=by)


def observe(
    client: Client | None, *, metadata: ClientMetadata, at: datetime, by: Actor
) -> ClientMetadataChanged | None:
    """Record that the metadata is another now, whether or not the client is let in. None where it is the same."""
    client = existing(client)
    changed = _changed(client.metadata, metadata)
    if not changed:
        return None
    return ClientMetadataChanged(
        client_id=client.id,
        source=client.source,
        metadata=metadata,
        registered_at=client.registered_at,
        changed=changed,
        at=at,
        by=by,
    )


def _changed(before: ClientMetadata, after: ClientMetadata) -> tuple[str, ...]:
    """Names of the members that differ; those with a language tag under their full name."""
    plain = [
        name
        for name in ClientMetadata.__struct_fields__
        if name != "localized" and getattr(before, name) != getattr(after, name)
    ]
    tagged = sorted(before.localized.keys() | after.localized.keys())
    return (*plain, *(name for name in tagged if before.localized.get(name) != after.localized.get(name)))


def unregister(client: Client | None, *, at: datetime, by: Actor) -> ClientDeleted | None:
    """Delete the client, as it asks itself (RFC 7592 section 2.3). A suspended one may not: its gate is an admin's."""
    client = admitted(client)
    return ClientDeleted(client_id=client.id, at=at, by=by)


def suspend(client: Client | None, intent: Intent) -> ClientSuspended | None:
    """Deny the client's grants until it is resumed."""
    client = existing(client)
    if client.status == "suspended" and not client.is_held:
        return None
    return ClientSuspended(client_id=client.id, reason=intent.reason, note=intent.note, at=intent.at, by=intent.by)


def resume(client: Client | None, intent: Intent) -> ClientResumed | None:
    """Let a suspended client in again, with the grants that it had."""
    client = existing(client)
    if client.status == "active":
        return None
    return ClientResumed(client_id=client.id, reason=intent.reason, note=intent.note, at=intent.at, by=intent.by)


def hold(client: Client | None, intent: Intent) -> ClientSuspended | None:
    """Suspend the client for a moment: from here on no grant can be issued, so whether it has one can be looked at."""
    client = admitted(client)
    return ClientSuspended(client_id=client.id, reason=NEVER_USED, at=intent.at, by=intent.by)


def settle(client: Client | None, intent: Intent, *, used: bool) -> ClientResumed | ClientDeleted | None:
    """End the hold: let the client in again if it was used, else delete it. None where an admin has decided since."""
    if client is None or not client.is_held:
        return None
    outcome = ClientResumed if used else ClientDeleted
    return outcome(client_id=client.id, reason=NEVER_USED, at=intent.at, by=intent.by)


def delete(client: Client | None, intent: Intent) -> ClientDeleted | None:
    """End every grant of the client and admit no other, for ever."""
    if client is None:
        raise ClientNotFound
    if client.status == "deleted":
        return None
    return ClientDeleted(client_id=client.id, reason=intent.reason, note=intent.note, at=intent.at, by=intent.by)
