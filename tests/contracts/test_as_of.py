"""A client folded from its events. Times are minutes after noon; positions count the events."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, structs

from grantbook import as_of, wire
from grantbook.admin import ClientAsOf, GrantAsOf
from grantbook.as_of import CannotTell, Moment
from grantbook.events import (
    Actor,
    ClientDeleted,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    Event,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.fingerprints import metadata_sha256
from grantbook.positions import Position
from grantbook.wire import Recorded, Unknown
from tests.contracts.examples import METADATA, NAME

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
BY = Actor("admin")


def minute(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def registered() -> ClientRegistered:
    return ClientRegistered(client_id="c", source="dcr", metadata=METADATA, at=NOON, by=BY)


def issued(grant_id: str = "g", user_id: str = "u", at: float = 1, lifetime: float = 100) -> GrantIssued:
    return GrantIssued(
        client_id="c",
        grant_id=grant_id,
        user_id=user_id,
        username=NAME,
        scopes=("mail.read",),
        expires_at=minute(at + lifetime),
        at=minute(at),
        by=BY,
    )


def extended(to: float, grant_id: str = "g", at: float = 1, lifetime: float = 100) -> GrantExtended:
    first = issued(grant_id, at=at, lifetime=lifetime)
    return GrantExtended(
        client_id="c",
        grant_id=grant_id,
        user_id="u",
        username=NAME,
        scopes=("mail.read",),
        expires_at=minute(to),
        issued_at=first.at,
        issued_expires_at=first.expires_at,
        issued_position=2,
        at=minute(50),
        by=BY,
    )


def revoked(grant_id: str = "g", reason: str = "user") -> GrantRevoked:
    return GrantRevoked(client_id="c", grant_id=grant_id, user_id="u", reason=reason, at=NOON, by=BY)


def suspended() -> ClientSuspended:
    return ClientSuspended(client_id="c", at=NOON, by=BY)


def resumed() -> ClientResumed:
    return ClientResumed(client_id="c", at=NOON, by=BY)


def deleted() -> ClientDeleted:
    return ClientDeleted(client_id="c", at=NOON, by=BY)


def user_revoked(user: str = "u", reason: str | None = None) -> UserGrantsRevoked:
    return UserGrantsRevoked(user_key=user, reason=reason, at=NOON, by=BY)


def fold(*events: Event | Unknown, until: int | None = None, at: float | None = None) -> ClientAsOf | None:
    """The fold of events recorded a minute apart, the first at noon."""
    records = [
        Recorded(place, minute(place - 1), str(place), "type", "subject", event, b"")
        for place, event in enumerate(events, 1)
    ]
    until = len(events) if until is None else until
    moment = Moment(Position("log", "0a1b2c3d", until), minute(until - 1 if at is None else at))
    return as_of.fold(records, moment)


def client(*events: Event, **moment: Any) -> ClientAsOf:
    found = fold(*events, **moment)
    assert found is not None
    return found


def grant(*events: Event, **moment: Any) -> GrantAsOf:
    [found] = client(*events, **moment).grants
    return found


def test_a_grant_tells_the_metadata_that_it_was_given_under() -> None:
    """Users: what they agreed to is told apart from what the client became afterwards."""
    before = metadata_sha256(METADATA)
    renamed = ClientMetadataChanged(
        client_id="c",
        source="dcr",
        metadata=structs.replace(METADATA, client_name="Renamed"),
        registered_at=NOON,
        changed=("client_name",),
        at=NOON,
        by=BY,
    )
    shown = structs.replace(issued(), metadata_sha256=before)
    assert client(registered()).metadata_sha256 == before
    after = client(
        registered(), shown, renamed, structs.replace(extended(200), metadata_sha256=before), issued("older")
    )
    assert after.metadata_sha256 == metadata_sha256(renamed.metadata) != before
    assert [each.metadata_sha256 for each in after.grants] == [before, UNSET]


def said(found: GrantAsOf) -> tuple[str, object, object]:
    return found.status, found.ended_at, found.ended_reason


ACTIVE = ("active", UNSET, UNSET)


def test_a_client_before_its_registration_is_not_there() -> None:
    """Protects the answer "not then" from looking like "never"."""
    assert fold(registered(), until=0) is None
    assert fold() is None


def test_a_client_is_shown_with_all_that_was_registered() -> None:
    """Protects auditors from a summary: the whole registration, localized members under their own names."""
    found = client(registered())
    assert (found.as_of, found.client_id, found.source, found.status) == ("log-0a1b2c3d-1", "c", "dcr", "active")
    assert found.created_at == NOON
    assert found.metadata["client_name#de"] == "Näherer Agent"
    assert found.metadata["redirect_uris"] == list(METADATA.redirect_uris)
    assert "localized" not in found.metadata


def test_a_change_of_metadata_shows_from_there_on() -> None:
    """Protects the question "what did it call itself when I said yes?"."""
    changed = ClientMetadataChanged(
        client_id="c",
        source="dcr",
        metadata=msgspec.structs.replace(METADATA, client_name="Other"),
        registered_at=NOON,
        changed=("client_name",),
        at=minute(1),
        by=BY,
    )
    assert client(registered(), changed).metadata["client_name"] == "Other"
    assert client(registered(), changed).created_at == NOON
    assert client(registered(), changed, until=1).metadata["client_name"] == "Näher Agent"


def test_suspension_suspends_the_grants_and_resuming_gives_them_back() -> None:
    """Protects the difference between cut off and cut off for a while."""
    story = (registered(), issued(), suspended(), resumed())
    assert client(*story, until=3).status == "suspended"
    assert said(grant(*story, until=3)) == ("suspended", UNSET, UNSET)
    assert client(*story).status == "active"
    assert said(grant(*story)) == ACTIVE


def test_deletion_ends_every_grant_and_the_fan_out_changes_nothing() -> None:
    """Protects `ended_at`: it is that of the fact that ended the grant, not of its echo."""
    story = (registered(), issued(), deleted(), revoked(reason="client_deleted"))
    for until in (3, 4):
        assert said(grant(*story, until=until)) == ("revoked", minute(2), "client_deleted")
    assert client(*story).status == "deleted"


def test_the_earliest_fact_that_ended_a_grant_is_told() -> None:
    """Protects the history of one grant from later facts about its client and user."""
    ended = grant(registered(), issued(), revoked(), user_revoked(), deleted())
    assert said(ended) == ("revoked", minute(2), "user")


def test_a_users_cut_off_ends_what_was_issued_before_it_only() -> None:
    """Protects a user who comes back, and other users."""
    found = client(registered(), issued("g1"), issued("g2", "v"), user_revoked(reason="offboarded"), issued("g3"))
    assert [(each.grant_id, each.status, each.ended_reason) for each in found.grants] == [
        ("g1", "revoked", "offboarded"),
        ("g2", "active", UNSET),
        ("g3", "active", UNSET),
    ]
    assert grant(registered(), issued(), user_revoked()).ended_reason == "user_grants_revoked"


@pytest.mark.parametrize(
    ("at", "expected"),
    [(100, ACTIVE), (125.9, ACTIVE), (126, ("expired", minute(101), "expired"))],
)
def test_a_grant_lapses_after_the_grace_of_small_refreshes(at: float, expected: tuple[str, object, object]) -> None:
    """Protects grants that were refreshed by less than the log notes: a quarter of 100 minutes counts as grace."""
    assert said(grant(registered(), issued(), at=at)) == expected


def test_an_extension_moves_the_expiry() -> None:
    """Protects long-lived grants from looking expired."""
    story = (registered(), issued(), extended(to=200))
    assert said(grant(*story, at=190)) == ACTIVE
    assert grant(*story).expires_at == minute(200)
    assert said(grant(*story, at=225)) == ("expired", minute(200), "expired")


def test_what_ended_a_grant_before_it_lapsed_stays_the_reason() -> None:
    """Protects against a revoked grant that turns into a merely expired one with time; and the other way round."""
    assert said(grant(registered(), issued(), revoked(), at=10_000)) == ("revoked", minute(2), "user")
    short = issued(at=1, lifetime=0.2)
    assert said(grant(registered(), short, suspended(), revoked(), at=10)) == ("expired", minute(1.2), "expired")


def test_the_first_issue_of_an_id_counts() -> None:
    """Protects a grant from a second one under its id."""
    found = grant(registered(), issued(user_id="u"), issued(user_id="v", lifetime=500))
    assert (found.user_id, found.expires_at) == ("u", minute(101))


def test_a_grant_without_end_is_no_error() -> None:
    """Protects identity providers that say "never" with the last second there is."""
    endless = msgspec.structs.replace(issued(), expires_at=datetime.max.replace(tzinfo=UTC))
    assert said(grant(registered(), endless, at=1_000_000)) == ACTIVE


def test_an_unknown_type_makes_the_answer_unknown() -> None:
    """Protects from a wrong answer: what we cannot read may have changed the client."""
    with pytest.raises(CannotTell, match=r"position 2 .* 'client.frozen'"):
        fold(registered(), Unknown("client.frozen"))
    assert fold(registered(), Unknown("client.frozen"), until=1) is not None


def test_events_that_refer_to_nothing_change_nothing() -> None:
    """Protects the fold from ends and extensions of grants that were never issued."""
    assert client(registered(), revoked("x"), extended(to=9, grant_id="x"), user_revoked("nobody")).grants == []
    assert wire.rfc3339(client(registered()).created_at) == "2026-03-14T12:00:00Z"
