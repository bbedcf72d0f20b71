"""Delivery by poll (RFC 8936), from a real feed."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from nats.aio.client import Client

from deploy.dev.servers import dies_with_parent
from tests.sdk.given import revoked, write
from tests.transmitter.given import (
    RECEIVERS,
    SECONDS,
    Transmitter,
    token_of_receiver,
    transmitting,
    until,
    unverified,
    verified,
)
from transmitter import delivery, sets, transmission

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "shared_signals" / "poll.py"


def grants_of(tokens: dict[str, str]) -> list[str]:
    return [unverified(each)["sub_id"]["session"]["id"] for each in tokens.values()]


async def test_what_is_not_acknowledged_comes_again(log: Client, transmitter: Transmitter) -> None:
    """Receivers that crash before they have stored a SET: the next poll gives it again, and the same."""
    stream = await transmitter.stream()
    assert stream["delivery"]["method"] == "urn:ietf:rfc:8936"
    assert stream["delivery"]["endpoint_url"] == f"{transmitter.url}/ssf/v1/streams/{stream['stream_id']}/poll"
    await write(log, *(revoked("c", f"g{number}") for number in range(5)))
    first = await transmitter.polled(stream["stream_id"], 5)
    again = await transmitter.poll(stream["stream_id"])
    assert again == first
    assert grants_of(first) == [f"g{number}" for number in range(5)]
    jwks = await transmitter.jwks()
    for jti, token in first.items():
        assert verified(token, jwks, audience=stream["aud"], issuer=transmitter.url)["jti"] == jti
    done = list(first)[:2]
    left = await transmitter.poll(stream["stream_id"], ack=done)
    assert list(left) == list(first)[2:]
    assert await transmitter.poll(stream["stream_id"], ack=list(left)) == {}


async def test_the_most_is_kept_to(log: Client, transmitter: Transmitter) -> None:
    """Small receivers: they get as many SETs as they can take, and hear that there are more."""
    stream_id = (await transmitter.stream())["stream_id"]
    await write(log, *(revoked("c", f"g{number}") for number in range(5)))
    await transmitter.polled(stream_id, 5)

    async def poll(**asked: Any) -> Any:
        return (await transmitter.mail.post(f"/ssf/v1/streams/{stream_id}/poll", json=asked)).json()

    part = await poll(maxEvents=3)
    assert (len(part["sets"]), part["moreAvailable"]) == (3, True)
    only = await poll(maxEvents=0, ack=list(part["sets"]))
    assert only["sets"] == {}
    rest = await poll(maxEvents=3)
    assert (len(rest["sets"]), rest.get("moreAvailable")) == (2, None)


async def test_a_poll_waits_for_the_first(log: Client, transmitter: Transmitter) -> None:
    """Users: a receiver that polls hears of a revocation at once, and not when it asks the next time."""
    stream_id = (await transmitter.stream())["stream_id"]
    polling = asyncio.create_task(transmitter.poll(stream_id, returnImmediately=False))
    await until(lambda: transmitter.service.transmission._polls.total() == 1)
    await write(log, revoked("c", "g"))
    assert grants_of(await polling) == ["g"]


async def test_more_than_is_in_hand_gets_through(log: Client, transmitter: Transmitter) -> None:
    """Receivers that were away: however much waits for them, all of it comes, each once when they acknowledge."""
    stream_id = (await transmitter.stream())["stream_id"]
    count = delivery.MAX_HELD + 60
    await write(log, *(revoked("c", f"g{number}") for number in range(count)))
    heard: list[str] = []
    acknowledged: list[str] = []
    async with asyncio.timeout(30):
        while len(heard) < count:
            sets_ = await transmitter.poll(stream_id, ack=acknowledged, returnImmediately=False)
            acknowledged = list(sets_)
            heard += grants_of(sets_)
    assert heard == [f"g{number}" for number in range(count)]


async def test_what_a_receiver_refuses_comes_again_less_often(
    log: Client, transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receivers that cannot digest a SET: it comes again, in case that was passing, and only after hours no more."""
    monkeypatch.setattr(delivery, "MIN_BACKOFF_SECONDS", 0.2)
    stream_id = (await transmitter.stream())["stream_id"]
    await write(log, revoked("c", "bad"), revoked("c", "good"))
    bad, good = await transmitter.polled(stream_id, 2)
    unknown = {bad: {"err": "invalid_key", "description": "unknown kid"}}
    assert set(await transmitter.poll(stream_id, setErrs=unknown)) == {good}
    await transmitter.polled(stream_id, 2)
    monkeypatch.setattr(delivery, "REFUSED_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "MIN_BACKOFF_SECONDS", 0.0)
    for _ in range(2 * delivery.MAX_REFUSALS):  # of our key, and never given up for that
        await transmitter.poll(stream_id, setErrs=unknown)
    await transmitter.polled(stream_id, 2)
    assert set(await transmitter.poll(stream_id, setErrs={bad: {"err": "invalid_request"}})) == {good}


async def test_a_receiver_leaves_polls_for_others(transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers: one that polls again and again, and never waits for an answer, takes its own places alone."""
    monkeypatch.setattr(transmission, "MAX_POLLS_OF_RECEIVER", 0)
    stream_id = (await transmitter.stream())["stream_id"]
    answer = await transmitter.mail.post(f"/ssf/v1/streams/{stream_id}/poll", json={"returnImmediately": True})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_verification_events_are_polled(transmitter: Transmitter) -> None:
    """Receivers that poll: they can see that their stream works, too."""
    stream_id = (await transmitter.stream())["stream_id"]
    await transmitter.mail.post("/ssf/v1/verify", json={"stream_id": stream_id, "state": "x"})
    ((jti, token),) = (await transmitter.polled(stream_id, 1)).items()
    assert unverified(token)["events"] == {sets.VERIFICATION: {"state": "x"}}
    await transmitter.poll(stream_id, ack=[jti])
    async with asyncio.timeout(10):
        while await transmitter.poll(stream_id):
            await asyncio.sleep(0.02)


async def test_a_paused_stream_gives_nothing_until_it_is_enabled(log: Client, transmitter: Transmitter) -> None:
    """Receivers under maintenance: polls are empty, and everything comes afterwards."""
    stream_id = (await transmitter.stream())["stream_id"]
    await write(log, revoked("c", "g1"))
    before = await transmitter.polled(stream_id, 1)
    await transmitter.set_status(stream_id, "paused")
    await until(lambda: not transmitter.service.transmission._at_work)
    await write(log, revoked("c", "g2"))
    assert await transmitter.poll(stream_id) == {}
    polling = asyncio.create_task(transmitter.poll(stream_id, returnImmediately=False))
    await transmitter.set_status(stream_id, "enabled")
    assert await polling
    assert set(await transmitter.polled(stream_id, 2)) > set(before)


async def test_a_restart_loses_nothing_that_was_in_hand(log: Client, nats_url: str, tmp_path: Path) -> None:
    """Receivers: another transmitter gives at once what one before it had in hand, and takes its acknowledgement."""
    async with transmitting(nats_url, tmp_path) as before:
        stream_id = (await before.stream())["stream_id"]
        await write(log, *(revoked("c", f"g{number}") for number in range(4)))
        first = await before.polled(stream_id, 4)
        await before.poll(stream_id, ack=list(first)[1:2])
    async with transmitting(nats_url, tmp_path) as after:
        given = await after.polled(stream_id, 3)
        assert set(given) >= {*list(first)[:1], *list(first)[2:]}
        assert set(given) <= set(first)
        assert await after.poll(stream_id, ack=list(first)) == {}


async def test_polls_end_when_the_transmitter_does(transmitter: Transmitter) -> None:
    """Operators: a restart does not wait for polls that wait."""
    stream_id = (await transmitter.stream())["stream_id"]
    polling = asyncio.create_task(transmitter.poll(stream_id, returnImmediately=False))
    await until(lambda: transmitter.service.transmission._polls.total() == 1)
    transmitter.service.transmission.closing.set()
    async with asyncio.timeout(5):
        assert await polling == {}


async def test_the_example_receives_each_revocation_once(log: Client, transmitter: Transmitter) -> None:
    """Who writes a receiver begins with the example: it makes its stream, verifies, acknowledges, and goes on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        transmitter.url,
        RECEIVERS[0],
        env={**os.environ, "SSF_TOKEN": token_of_receiver(RECEIVERS[0])},
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=dies_with_parent(signal.SIGKILL),
    )
    assert process.stdout is not None
    try:
        await until(lambda: transmitter.service.transmission._polls.total() == 1)
        for grant in ("one", "two"):
            await write(log, revoked("c", grant))
            async with asyncio.timeout(SECONDS):
                told = json.loads(await process.stdout.readline())
            assert told["subject"]["session"] == {"format": "opaque", "id": grant}
            assert list(told["events"]) == [sets.SESSION_REVOKED]
    finally:
        process.kill()
        await process.wait()
