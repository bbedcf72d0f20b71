"""The command line of auditors, as a process of its own, on a real log."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from nats.aio.client import Client

from deploy.dev.servers import free_port
from grantbook import positions, subjects, wire
from grantbook.events import ActivityRecorded, Actor, Event, Window
from grantbook.sdk.log import LogReader
from grantbook.sdk.replay import replay as command
from grantbook.sealed import Note, actor_key_id, seal_note
from tests.sdk.given import (
    deleted,
    issued,
    now,
    registered,
    revoked,
    sealed_name,
    suspended,
    user_revoked,
    write,
    write_raw,
)

SECONDS = 30.0


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(each) for each in self.out.splitlines()]


@asynccontextmanager
async def started(url: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "grantbook.sdk.replay",
        *arguments,
        env=os.environ | {"GRANTBOOK_NATS_URL": url, "PYTHONWARNINGS": "error", "COLUMNS": "240"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def replay(url: str, *arguments: str) -> Ended:
    """What the command does, in this process: starting one takes longer than most of what is tested here."""
    runner = CliRunner(env={"GRANTBOOK_NATS_URL": url, "COLUMNS": "240"})
    async with asyncio.timeout(SECONDS):
        done = await asyncio.to_thread(runner.invoke, command, arguments, prog_name="grantbook replay")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ended(done.exit_code, done.stdout, done.stderr)


async def in_a_process(url: str, *arguments: str) -> Ended:
    """The same as its users have it."""
    async with started(url, *arguments) as process, asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def identity(log: Client, stream: str = subjects.LOG) -> str:
    return (await LogReader(log, stream).state()).identity


STORY: tuple[Event, ...] = (
    registered("c", "Näher"),
    issued("c", "g1", "ann"),
    issued("c", "g2", "bob"),
    registered("https://agent.example/client.json"),
    issued("https://agent.example/client.json", "g3", "ann"),
    revoked("c", "g1", "ann"),
    user_revoked("ann"),
    suspended("c"),
    deleted("c"),
)
TYPES = [str(type(each).__struct_config__.tag) for each in STORY]


async def test_a_line_says_all_that_the_log_has(log: Client, nats_url: str) -> None:
    """Protects an auditor who keeps the output: nothing of the log is missing in it."""
    await write(log, *STORY)
    ended = await in_a_process(nats_url)
    assert ended == await replay(nats_url)
    assert (ended.status, ended.err) == (0, "")
    assert [each["type"] for each in ended.lines] == TYPES
    raw = await LogReader(log, subjects.LOG).at_on_leader(2)
    assert raw is not None
    assert raw.headers is not None
    assert ended.lines[1] == {
        "position": f"log-{await identity(log)}-2",
        "id": raw.headers["ce-id"],
        "type": "grant.issued",
        "recorded_at": wire.rfc3339(raw.stored_at),
        "subject": "grantbook.client.c.grant.g1.record",
        "actor": {"kind": "idp"},
        "data": json.loads(raw.data),
    }


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (["--client", "c"], [1, 2, 3, 6, 8, 9]),
        (["--client", "https://agent.example/client.json"], [4, 5]),
        (["--client", subjects.token("https://agent.example/client.json")], [4, 5]),
        (["--grant", "g1"], [2, 6]),
        (["--client", "c", "--grant", "g1"], [2, 6]),
        (["--client", "c", "--grant", "g3"], []),
        (["--user", "ann"], [2, 5, 6, 7]),
        (["--user", "ann", "--client", "c"], [2, 6]),
        (["--type", "client.deleted", "--type", "client.suspended"], [8, 9]),
        (["--after", "{log}-7"], [8, 9]),
        (["--until", "{log}-2"], [1, 2]),
        (["--after", "{log}-1", "--until", "{log}-3", "--user", "bob"], [3]),
        (["--limit", "2", "--user", "ann"], [2, 5]),
        (["--from", "{at3}"], [3, 4, 5, 6, 7, 8, 9]),
        (["--to", "{at3}"], [1, 2]),
        (["--from", "{at3}", "--to", "{at5}", "--client", "c"], [3]),
        (["--from", "2100-01-01"], []),
        (["--to", "2000-01-01T00:00:00+02:00"], []),
    ],
)
async def test_filters_give_what_they_say_and_no_more(
    log: Client, nats_url: str, arguments: list[str], places: list[int]
) -> None:
    """Protects an auditor's conclusions: what a filter leaves out looks as if it had not happened."""
    await write(log, *STORY)
    reader = LogReader(log, subjects.LOG)
    names = {"log": f"log-{await identity(log)}"}
    for place in (3, 5):
        raw = await reader.at_on_leader(place)
        assert raw is not None
        names[f"at{place}"] = wire.rfc3339(raw.stored_at)
    ended = await replay(nats_url, *(each.format(**names) for each in arguments))
    assert (ended.status, ended.err) == (0, "")
    assert [positions.parse(each["position"]).sequence for each in ended.lines] == places


async def test_following_goes_on_until_interrupted(log: Client, nats_url: str) -> None:
    """Protects one who watches: what was there comes first, then what happens, and Ctrl-C ends it without a trace."""
    await write(log, registered("c"), registered("d"))
    async with started(nats_url, "--follow", "--client", "c") as process, asyncio.timeout(SECONDS):
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["type"] == "client.registered"
        await write(log, suspended("d"), suspended("c"))
        line = json.loads(await process.stdout.readline())
        assert (line["type"], line["data"]["client_id"]) == ("client.suspended", "c")
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_a_closed_pipe_ends_it_quietly(log: Client, nats_url: str) -> None:
    """Protects `grantbook replay | head`."""
    await write(log, *(registered(f"c{number}", "x" * 2000) for number in range(200)))
    async with started(nats_url) as process, asyncio.timeout(SECONDS):
        assert process.stdout is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]  # what `head` does
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await process.wait() == 0


async def test_types_from_the_future_are_printed_raw(log: Client, nats_url: str) -> None:
    """Protects an auditor with an older version: what it cannot read is still shown, and filters still find it."""
    body = b'{"by": {"kind": "admin", "id": "kim"},\n "user_id": "ann", "big": 123456789012345678901}'
    await write_raw(log, subjects.client_gate("c"), "client.frozen", body)
    ended = await replay(nats_url, "--client", "c", "--user", "ann")
    assert ended.status == 0
    assert ended.lines[0]["type"] == "client.frozen"
    assert ended.lines[0]["actor"] == {"kind": "admin", "id": "kim"}
    assert ended.lines[0]["data"] == json.loads(body)
    assert (await replay(nats_url, "--user", "bob")).lines == []


async def test_what_is_no_event_is_printed_counted_and_told(log: Client, nats_url: str) -> None:
    """Protects against tampering that hides: garbage in the log shows, whatever the filters, in each format."""
    await write(log, registered("c"))
    await write_raw(log, subjects.client_record("c"), "client.registered", b"\xff\x00garbage")
    await log.jetstream().publish(subjects.client_gate("c"), b"no headers")
    ended = await replay(nats_url, "--type", "client.deleted")
    assert ended.status == 3
    assert [each["body"] for each in ended.lines] == ["/wBnYXJiYWdl", "bm8gaGVhZGVycw=="]
    assert "no CloudEvents headers" in ended.lines[1]["malformed"]
    assert "2 of 2 lines are no events" in ended.err
    columns = await replay(nats_url, "--table")
    assert columns.status == 3
    assert columns.out.count("(no event)") == 2


@pytest.mark.parametrize("how", ["--json", "--table"])
async def test_nothing_that_drives_a_terminal_is_printed(log: Client, nats_url: str, how: str) -> None:
    """Protects the auditor's terminal from names that agents choose for themselves."""
    evil = "a\x1b]0;owned\x07\x9b31m\u202eb\r\n\u2028\x7f\U000e0001c"
    await write(log, registered("c", evil), revoked("c", "g", evil, reason=evil))
    await write_raw(log, subjects.client_gate("c"), "x\x1b[2J", json.dumps({"a": evil}, ensure_ascii=False).encode())
    for arguments in ([how], [how, "--as-of", "2100-01-01", "--client", "c"]):
        ended = await replay(nats_url, *arguments)
        # As-of stops at a type that it does not know; even its complaint is harmless.
        for text in (ended.out, ended.err):
            assert all(each.isprintable() for each in text.splitlines(keepends=False)), text
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    if how == "--json":
        assert (await replay(nats_url)).lines[0]["data"]["metadata"]["client_name"] == evil


async def test_columns_are_readable(log: Client, nats_url: str) -> None:
    """Protects people: who, what and about whom stand on one line."""
    await write(log, *STORY)
    ended = await replay(nats_url, "--table")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["RECORDED AT", "POSITION", "TYPE", "BY", "ABOUT"]
    assert re.search(r"\b6  grant\.revoked +admin +c grant g1 user ann admin$", lines[6])
    assert len(lines) == 1 + len(STORY)


async def test_names_stay_sealed_unless_asked_for(log: Client, nats_url: str) -> None:
    """Protects people's names from whoever reads the log, and says which can never be read again."""
    ann, bob = bytes([1]) * 32, bytes([2]) * 32
    note = seal_note(
        Note(by_id="kim", detail="left the company"), key_id=actor_key_id("admin", "kim"), key=bob, nonce=bytes(12)
    )
    await write(
        log,
        registered("c"),
        issued("c", "g1", "ann", username=sealed_name("ann", "ann@example.com", ann)),
        issued("c", "g2", "bob", username=sealed_name("bob", "bob@example.com", bob)),
        issued("c", "g3", "eve", username=sealed_name("eve", "eve@example.com", bob)),
    )
    cut = user_revoked("ann")
    await write(log, type(cut)(user_key=cut.user_key, user_id="ann", at=cut.at, by=cut.by, note=note))
    js = log.jetstream()
    for key_id, key in (("user.ann", ann), (note.key, bob), ("user.eve", ann), ("user.bob", bob)):
        await js.publish(subjects.bucket_key(subjects.USER_KEYS, key_id), key)
    await js.publish(
        subjects.bucket_key(subjects.USER_KEYS, "user.bob"),
        b"",
        headers={"KV-Operation": "PURGE", "Nats-Rollup": "sub"},
    )
    sealed = await replay(nats_url)
    assert "ann@example.com" not in sealed.out
    assert all("unsealed" not in each for each in sealed.lines)
    opened = (await replay(nats_url, "--unseal")).lines
    assert opened[1]["unsealed"] == {"username": "ann@example.com"}
    assert opened[1]["data"]["username"]["key"] == "user.ann"
    assert [each.get("erased") for each in opened] == [None, None, ["username"], ["username"], None]
    assert opened[4]["unsealed"] == {"note": {"by_id": "kim", "detail": "left the company"}}
    columns = await replay(nats_url, "--unseal", "--table")
    assert "username=ann@example.com" in columns.out
    assert "username=(erased)" in columns.out


async def test_activity_is_replayed_from_its_own_log(log: Client, nats_url: str) -> None:
    """Protects an auditor who looks for the use of one grant."""
    events = [
        ActivityRecorded(
            at=now(),
            by=Actor("idp", "login"),
            windows=(
                Window(client_id=client, grant_id=grant, kind="tool_call", count=2, first_at=now(), last_at=now()),
            ),
        )
        for client, grant in (("c", "g1"), ("c", "g2"), ("d", "g1"))
    ]
    await write(log, *events)
    everything = await replay(nats_url, "--activity")
    assert [each["type"] for each in everything.lines] == ["activity.recorded"] * 3
    assert everything.lines[0]["position"] == f"activity-{await identity(log, subjects.ACTIVITY)}-1"
    one = await replay(nats_url, "--activity", "--client", "c", "--grant", "g1")
    assert len(one.lines) == 1
    refused = await replay(nats_url, "--activity", "--after", f"log-{await identity(log)}-0")
    assert refused.status == 2
    assert "no position of this log" in refused.err


async def test_a_client_is_shown_as_it_was(log: Client, nats_url: str) -> None:
    """Protects the answer to "what was this agent allowed then?", by position and by time."""
    await write(log, *STORY)
    name = f"log-{await identity(log)}"
    then = (await replay(nats_url, "--as-of", f"{name}-3", "--client", "c")).lines[0]
    assert (then["as_of"], then["status"], then["metadata"]["client_name"]) == (f"{name}-3", "active", "Näher")
    assert [(each["grant_id"], each["status"]) for each in then["grants"]] == [("g1", "active"), ("g2", "active")]
    later = (await replay(nats_url, "--as-of", wire.rfc3339(now()), "--client", "c")).lines[0]
    assert later["as_of"] == f"{name}-9"
    assert later["status"] == "deleted"
    assert [(each["grant_id"], each["status"], each["ended_reason"]) for each in later["grants"]] == [
        ("g1", "revoked", "admin"),
        ("g2", "revoked", "client_deleted"),
    ]
    other = await replay(
        nats_url, "--as-of", f"{name}-7", "--client", subjects.token("https://agent.example/client.json")
    )
    assert [(each["status"], each["ended_reason"]) for each in other.lines[0]["grants"]] == [("revoked", "offboarded")]
    columns = await replay(nats_url, "--as-of", f"{name}-9", "--client", "c", "--table")
    assert re.search(r"g2 .*bob .*revoked .*client_deleted", columns.out)
    before = await replay(nats_url, "--as-of", wire.rfc3339(now() - timedelta(days=1)), "--client", "c")
    assert (before.status, before.out) == (1, "")
    assert "no such client was registered then" in before.err
    assert (await replay(nats_url, "--as-of", f"{name}-99", "--client", "c")).status == 2


async def test_an_event_that_it_does_not_know_stops_the_as_of(log: Client, nats_url: str) -> None:
    """Protects from a wrong answer: a type from the future may have changed the client."""
    await write(log, registered("c"))
    await write_raw(log, subjects.client_gate("c"), "client.frozen", b"{}")
    ended = await replay(nats_url, "--as-of", "2100-01-01", "--client", "c")
    assert (ended.status, ended.out) == (1, "")
    assert "unknown type 'client.frozen'" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--after", "42"], "log-0a1b2c3d-42"),
        (["--after", "log-00000000-0"], "no position of this log"),
        (["--from", "yesterday"], "no time"),
        (["--follow", "--to", "2026-01-01"], "--follow"),
        (["--as-of", "2026-01-01"], "--client"),
        (["--activity", "--user", "u"], "--user"),
        (["--limit", "0"], "--limit"),
    ],
)
async def test_wrong_usage_says_what_is_wrong(log: Client, nats_url: str, arguments: list[str], said: str) -> None:
    """Protects people at a terminal from tracebacks and from silent nonsense."""
    ended = await replay(nats_url, *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


async def test_a_server_that_is_away_is_named_without_its_password() -> None:
    """Protects people who wait, and the password in the URL."""
    ended = await replay(f"nats://auditor:hush@127.0.0.1:{free_port()}")
    assert (ended.status, ended.out) == (1, "")
    assert "cannot reach NATS at nats://***@127.0.0.1" in ended.err
    assert "hush" not in ended.err


async def test_a_log_without_events_prints_nothing(log: Client, nats_url: str) -> None:
    """Protects scripts on the first day."""
    assert await replay(nats_url) == Ended(0, "", "")


async def test_help_shows_examples() -> None:
    """Protects people who use it once a year."""
    ended = await replay("nats://nowhere", "--help")
    assert ended.status == 0
    assert "Examples:" in ended.out
    assert "Exit status:" in ended.out
