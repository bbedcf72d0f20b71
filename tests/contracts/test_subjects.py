import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grantbook import subjects, wire
from grantbook.events import EVENT_TYPES
from tests.contracts.examples import EXAMPLES

TOKEN = re.compile(r"~?[A-Za-z0-9_-]+\Z")
ANY_TEXT = st.text(st.characters(), max_size=200)
HOSTILE = [
    "",
    "*",
    ">",
    "a.b",
    "a b",
    "a\n",
    "\x00",
    "é",
    "~" + "a" * 43,
    "$JS",
    "a" * 65,
    "https://x.example/y",
    "\ud800",
]


@given(ANY_TEXT | st.sampled_from(HOSTILE))
def test_any_id_gives_a_token_that_breaks_no_subject(id_: str) -> None:
    """Protects every filter and permission from ids with dots, wildcards, spaces and line breaks in them."""
    token = subjects.token(id_)
    assert TOKEN.match(token)
    assert len(token) <= 64
    assert subjects.is_key(token) == (token != id_)


@given(st.lists(ANY_TEXT | st.sampled_from(HOSTILE), unique=True, min_size=2, max_size=20))
def test_two_ids_never_share_a_token(ids: list[str]) -> None:
    """Protects a client from the revocations of another, and from nobody's."""
    assert len({subjects.token(each) for each in ids}) == len(ids)


def test_an_id_that_looks_like_a_key_is_not_taken_for_one() -> None:
    """Protects the client behind a key from one who registers the key as an id."""
    key = subjects.token("https://agent.example/client.json")
    assert subjects.token(key) != key
    assert subjects.token_in_path(key) == key
    assert subjects.token_in_path("https://agent.example/client.json") == key
    assert subjects.token_in_path("plain") == "plain"


@given(ANY_TEXT, ANY_TEXT)
def test_tokens_are_read_back_from_subjects(client: str, grant: str) -> None:
    """Protects readers that know a message by its subject alone."""
    client, grant = subjects.token(client), subjects.token(grant)
    for subject in (subjects.grant_record(client, grant), subjects.grant_gate(client, grant)):
        assert subjects.client_token_of(subject) == client
        assert subjects.grant_token_of(subject) == grant
        assert subjects.user_token_of(subject) is None
    for subject in (subjects.client_record(client), subjects.client_gate(client)):
        assert subjects.client_token_of(subject) == client
        assert subjects.grant_token_of(subject) is None
    gate = subjects.user_gate(client)
    assert subjects.user_token_of(gate) == client
    assert (subjects.client_token_of(gate), subjects.grant_token_of(gate)) == (None, None)


def matches(subject: str, pattern: str) -> bool:
    """As NATS matches: `*` is one token, `>` all that is left."""
    parts, wanted = subject.split("."), pattern.split(".")
    for place, each in enumerate(wanted):
        if each == ">":
            return len(parts) > place
        if place >= len(parts) or each not in ("*", parts[place]):
            return False
    return len(parts) == len(wanted)


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_every_event_stands_in_one_log_and_its_verdicts_on_a_gate(type_: str) -> None:
    """Protects token services, who hear of gates alone, and the streams, which must not overlap."""
    subject = wire.subject_of(EXAMPLES[type_])
    in_log = [each for each in subjects.LOG_SUBJECTS if matches(subject, each)]
    in_activity = [each for each in subjects.ACTIVITY_SUBJECTS if matches(subject, each)]
    assert len(in_log) + len(in_activity) == 1
    is_gate = type_ in {
        "client.suspended",
        "client.resumed",
        "client.deleted",
        "grant.revoked",
        "user.grants_revoked",
    }
    assert any(matches(subject, each) for each in subjects.GATES) == is_gate


def test_filters_of_a_client_and_of_a_grant_take_just_those() -> None:
    """Protects auditors who look at one client from those whose id begins alike."""
    client = subjects.everything_of_client("c")
    assert matches(subjects.client_gate("c"), client)
    assert matches(subjects.grant_record("c", "g"), client)
    assert not matches(subjects.client_gate("c2"), client)
    grant = subjects.everything_of_grant("g")
    assert matches(subjects.grant_gate("any", "g"), grant)
    assert not matches(subjects.grant_gate("any", "g2"), grant)
    assert not matches(subjects.client_gate("g"), grant)


@given(ANY_TEXT)
def test_keys_of_buckets_are_keys_that_nats_takes(id_: str) -> None:
    """Protects the buckets from ids that NATS clients refuse as keys."""
    key = subjects.bucket_key(subjects.USER_KEYS, f"user.{subjects.token(id_)}").removeprefix(
        "$KV.grantbook_user_keys."
    )
    assert re.fullmatch(r"[-/_=.a-zA-Z0-9]+", key)
