"""Reports of use become windows: nothing is lost, nothing is too large for an event."""

from datetime import UTC, datetime, timedelta

from hypothesis import given as for_all
from hypothesis import strategies as st

from grantbook import wire
from grantbook.events import MAX_WINDOWS, ActivityRecorded, Actor, Window
from registry.activity import Use, chunks, coalesce
from registry.commit import MAX_MESSAGE_BYTES

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

USES = st.lists(
    st.builds(
        Use,
        client_id=st.sampled_from(["c1", "c2"]),
        grant_id=st.sampled_from(["g1", "g2", "g3"]),
        kind=st.sampled_from(["tool_call", "refresh"]),
        at=st.integers(0, 1_000).map(lambda seconds: NOON + timedelta(seconds=seconds)),
        count=st.integers(1, 50),
        expires_at=st.none() | st.integers(0, 1_000).map(lambda hours: NOON + timedelta(hours=hours)),
    ),
    max_size=30,
)


@for_all(USES)
def test_coalescing_keeps_counts_and_the_first_and_last_time(uses: list[Use]) -> None:
    """Auditors: a window says no less than its calls did."""
    windows = {(each.client_id, each.grant_id, each.kind): each for each in coalesce(uses)}
    for key, window in windows.items():
        mine = [each for each in uses if (each.client_id, each.grant_id, each.kind) == key]
        assert window.count == sum(each.count for each in mine)
        assert window.first_at == min(each.at for each in mine)
        assert window.last_at == max(each.at for each in mine)
        assert window.expires_at == max(
            (each.expires_at for each in mine if each.expires_at and each.kind == "refresh"), default=None
        )
    assert len(windows) == len({(each.client_id, each.grant_id, each.kind) for each in uses})


def test_the_longest_ids_still_fit_into_an_event() -> None:
    """Token services: a report of nothing but long ids is recorded, in more events."""
    windows = [
        Window(
            client_id="\x01" * 2_048,
            grant_id=f"{number:0512}",
            kind="tool_call",
            count=1,
            first_at=NOON,
            last_at=NOON,
        )
        for number in range(1_000)
    ]
    together = list(chunks(windows))
    assert [each for chunk in together for each in chunk] == windows
    for chunk in together:
        event = ActivityRecorded(windows=tuple(chunk), at=NOON, by=Actor("idp", "x" * 200))
        assert len(chunk) <= MAX_WINDOWS
        assert len(wire.encode(event, event_id="0").body) < MAX_MESSAGE_BYTES
