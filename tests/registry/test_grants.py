"""Decisions about a grant: given its facts, when somebody wants something, then this event, or none, or a refusal."""

from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from grantbook.events import Event, GrantExtended, UserGrantsRevoked
from registry import clients, grants
from registry.clients import ClientGone, ClientNotAdmitted, ClientNotFound
from registry.grants import GrantConflict, GrantNotFound, Holding
from tests.registry.given import (
    BY_ADMIN,
    DELETED,
    HOUR,
    IDP,
    ISSUED,
    NOON,
    PROPOSED,
    REGISTERED,
    RESUMED,
    REVOKED,
    SUSPENDED,
)

ISSUED_AT = 7
"""Where ISSUED stands in the log of these tests."""


def given(
    client: Event | None = REGISTERED,
    client_gate: Event | None = None,
    grant: Event | None = ISSUED,
    grant_gate: Event | None = None,
) -> Holding:
    return Holding(client=clients.evolve(client, client_gate), grant=grants.evolve(grant, ISSUED_AT, grant_gate))


def test_a_user_lets_a_client_in() -> None:
    """Users: what was granted is recorded as it was said."""
    event = grants.issue(given(grant=None), PROPOSED)
    assert event == ISSUED


def test_issuing_the_same_grant_again_changes_nothing() -> None:
    """Identity providers: a retry after a lost answer writes one grant."""
    assert grants.issue(given(), PROPOSED) is None


def test_the_same_scopes_in_another_order_are_the_same_grant() -> None:
    """Identity providers: scopes are a set (RFC 6749 section 3.3)."""
    assert grants.issue(given(), msgspec.structs.replace(PROPOSED, scopes=("write", "read"))) is None


@pytest.mark.parametrize(
    "change",
    [{"user_id": "bob"}, {"scopes": ("read",)}, {"expires_at": NOON + 9 * HOUR}],
    ids=lambda it: next(iter(it)),
)
def test_the_same_id_with_other_content_is_a_conflict(change: dict[str, object]) -> None:
    """Users: one's grant never becomes another's."""
    with pytest.raises(GrantConflict):
        grants.issue(given(), msgspec.structs.replace(PROPOSED, **change))


@pytest.mark.parametrize(
    ("client", "gate", "refusal"),
    [
        (None, None, ClientNotFound),
        (REGISTERED, DELETED, ClientGone),
        (REGISTERED, SUSPENDED, ClientNotAdmitted),
    ],
)
def test_no_grant_is_issued_to_a_client_that_is_not_let_in(
    client: Event | None, gate: Event | None, refusal: type[Exception]
) -> None:
    """Users: the whole point."""
    with pytest.raises(refusal):
        grants.issue(given(client, gate, grant=None), PROPOSED)


def test_revoking_ends_the_grant_once() -> None:
    """Admins who click twice write one event; an unknown grant is told apart."""
    event = grants.revoke(given(), BY_ADMIN)
    assert event is not None
    assert event.user_id == "ada"
    assert grants.revoke(given(grant_gate=event), BY_ADMIN) is None
    with pytest.raises(GrantNotFound):
        grants.revoke(given(grant=None), BY_ADMIN)


def test_a_far_refresh_is_logged_with_all_that_was_issued() -> None:
    """Everyone who replays: the last record of a grant says where its issuance stands, for a user's cut-off."""
    event = grants.extend(given(), cut_off_position=0, expires_at=NOON + 16 * HOUR, at=NOON + HOUR, by=IDP)
    assert isinstance(event, GrantExtended)
    assert (event.issued_position, event.issued_at, event.issued_expires_at) == (ISSUED_AT, NOON, NOON + 8 * HOUR)
    assert grants.evolve(event, 99, None) == msgspec.structs.replace(
        grants.existing(given().grant), expires_at=NOON + 16 * HOUR
    )


@pytest.mark.parametrize("moved", [timedelta(0), -HOUR, 2 * HOUR - timedelta(seconds=1)])
def test_a_small_refresh_is_not_logged(moved: timedelta) -> None:
    """Operators: a refresh a call would be an event a call. The threshold is a quarter of the lifetime."""
    assert grants.extend(given(), cut_off_position=0, expires_at=ISSUED.expires_at + moved, at=NOON, by=IDP) is None


def test_an_ended_grant_is_never_extended() -> None:
    """Users: use after the end is evidence, not life."""
    far = NOON + 100 * HOUR
    assert grants.extend(given(), cut_off_position=0, expires_at=far, at=NOON + 11 * HOUR, by=IDP) is None
    assert grants.extend(given(grant_gate=REVOKED), cut_off_position=0, expires_at=far, at=NOON, by=IDP) is None
    assert grants.extend(given(client_gate=DELETED), cut_off_position=0, expires_at=far, at=NOON, by=IDP) is None
    assert grants.extend(given(), cut_off_position=ISSUED_AT + 1, expires_at=far, at=NOON, by=IDP) is None
    assert grants.extend(given(), cut_off_position=ISSUED_AT - 1, expires_at=far, at=NOON, by=IDP) is not None


@pytest.mark.parametrize(
    ("holding", "cut_off", "now", "active"),
    [
        (given(), 0, NOON, True),
        (given(client_gate=RESUMED), 0, NOON, True),
        (given(), ISSUED_AT - 1, NOON, True),
        (given(), ISSUED_AT + 1, NOON, False),
        (given(grant_gate=REVOKED), 0, NOON, False),
        (given(client_gate=SUSPENDED), 0, NOON, False),
        (given(client_gate=DELETED), 0, NOON, False),
        (given(), 0, NOON + 10 * HOUR - timedelta(seconds=1), True),
        (given(), 0, NOON + 10 * HOUR, False),
        (given(grant=None), 0, NOON, False),
    ],
    ids=[
        "stands",
        "client resumed",
        "issued after the user's cut-off",
        "issued before the user's cut-off",
        "revoked",
        "client suspended",
        "client deleted",
        "within the grace of small refreshes",
        "expired",
        "never issued",
    ],
)
def test_whether_a_grant_stands_is_computed(holding: Holding, cut_off: int, now: datetime, active: bool) -> None:
    """Token services: each way to end a grant ends it, and no other."""
    assert grants.is_active(holding, cut_off_position=cut_off, now=now) is active


GATES = [None, SUSPENDED, RESUMED, DELETED]


@for_all(st.sampled_from(GATES), st.sampled_from([None, REVOKED]), st.sampled_from([None, ISSUED]))
def test_deciding_again_gives_nothing(gate: Event | None, grant_gate: Event | None, grant: Event | None) -> None:
    """Everyone: decide, evolve, decide again changes nothing, from any state."""
    holding = given(client_gate=gate, grant=grant, grant_gate=grant_gate)
    try:
        issued = grants.issue(holding, PROPOSED)
    except clients.Refusal:
        return
    after = given(client_gate=gate, grant=issued or grant, grant_gate=grant_gate)
    assert grants.issue(after, PROPOSED) is None
    revoked = grants.revoke(after, BY_ADMIN)
    assert (
        grants.revoke(given(client_gate=gate, grant=issued or grant, grant_gate=revoked or grant_gate), BY_ADMIN)
        is None
    )


def test_no_event_of_another_kind_makes_a_grant() -> None:
    """Readers: what stands on the wrong subject is nothing."""
    stray = UserGrantsRevoked(user_key="ada", at=NOON, by=IDP)
    assert grants.evolve(stray, 1, None) is None
