"""Decisions about a client: given its facts, when somebody wants something, then this event, or none, or a refusal."""

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from grantbook.events import Event
from registry import clients
from registry.clients import Client, ClientGone, ClientNotAdmitted, ClientNotFound
from tests.registry.given import BY_ADMIN, CLAUDE, DELETED, NOON, REGISTERED, RESUMED, SUSPENDED


def given(record: Event | None, gate: Event | None = None) -> Client | None:
    return clients.evolve(record, gate)


def test_a_client_that_was_never_registered_is_refused_everywhere() -> None:
    """Admins: a mistyped id is told apart from a client that is gone."""
    for decide in (clients.suspend, clients.resume, clients.delete):
        with pytest.raises(ClientNotFound):
            decide(given(None), BY_ADMIN)


def test_registering_twice_under_one_id_changes_nothing() -> None:
    """Everyone: an id names one client for ever."""
    again = clients.register(
        given(REGISTERED), client_id="c1", source="dcr", metadata=CLAUDE, at=NOON, by=REGISTERED.by
    )
    assert again is None


def test_deleting_a_deleted_client_changes_nothing() -> None:
    """An admin who clicks twice writes one event."""
    assert clients.delete(given(REGISTERED, DELETED), BY_ADMIN) is None


def test_a_suspended_client_can_be_deleted() -> None:
    """Admins: suspension is no shelter."""
    assert clients.delete(given(REGISTERED, SUSPENDED), BY_ADMIN) is not None


def test_a_deleted_client_is_neither_suspended_nor_resumed() -> None:
    """Users: nothing brings a deleted client back."""
    for decide in (clients.suspend, clients.resume):
        with pytest.raises(ClientGone):
            decide(given(REGISTERED, DELETED), BY_ADMIN)


def test_a_suspended_client_is_not_admitted_and_a_resumed_one_is() -> None:
    """Users: a suspended client gets no grant."""
    with pytest.raises(ClientNotAdmitted):
        clients.admitted(given(REGISTERED, SUSPENDED))
    assert clients.admitted(given(REGISTERED, RESUMED)).id == "c1"


@for_all(st.lists(st.sampled_from(["suspend", "resume", "delete"]), max_size=12))
def test_deciding_again_gives_nothing_and_deletion_is_final(commands: list[str]) -> None:
    """Everyone: decide, evolve, decide again changes nothing, whatever came before; no command leaves deletion."""
    gate: Event | None = None
    for command in commands:
        decide = {"suspend": clients.suspend, "resume": clients.resume, "delete": clients.delete}[command]
        deleted = given(REGISTERED, gate) is not None and clients.evolve(REGISTERED, gate).status == "deleted"  # type: ignore[union-attr]
        try:
            event = decide(given(REGISTERED, gate), BY_ADMIN)
        except ClientGone:
            assert deleted
            continue
        assert not (deleted and event is not None)
        if event is not None:
            gate = event
        assert decide(given(REGISTERED, gate), BY_ADMIN) is None
