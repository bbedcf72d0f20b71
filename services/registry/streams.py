"""The streams and buckets of the register: what they must be, making them, and refusing others.

A stream whose settings differ from ours may forget events, let somebody delete one, or accept an append that should
have been refused. So a registry that finds one does not start.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook import subjects, wire
from grantbook.sdk.log import REQUEST_SECONDS, LogReader, Unavailable

DAY_SECONDS: Final = 86_400
LOG_MAX_BYTES: Final = 8 * 1024**3
"""Default size of the log, about 15 million events; the server sets it aside. See `FULL_SHARE` for its end."""
ACTIVITY_MAX_AGE_DAYS: Final = 90
REVOCATIONS_MAX_AGE_DAYS: Final = 90
DUPLICATE_WINDOW_SECONDS: Final = 120
WARN_SHARE: Final = 0.8
"""Share of `max_bytes` from which `/readyz` warns."""
FULL_SHARE: Final = 0.9
"""Share of `max_bytes` from which nothing but gates is appended, so that a full log never blocks a revocation."""

_NANOSECONDS: Final = 1_000_000_000
_NOT_FOUND: Final = 10_059

Config = dict[str, Any]


class UnsafeStreams(Exception):
    """A stream is missing, differs from what it must be, or its feed is of another log. Says what to do."""


def configs(*, replicas: int, log_max_bytes: int) -> list[Config]:
    """Every stream of the register as JetStream's API takes it (ADR-8 for the buckets)."""
    kept = {"storage": "file", "retention": "limits", "num_replicas": replicas, "allow_direct": True}
    log = kept | {
        "name": subjects.LOG,
        "subjects": list(subjects.LOG_SUBJECTS),
        "discard": "new",
        "max_bytes": log_max_bytes,
        "deny_delete": True,
        "deny_purge": True,
        "allow_atomic": True,
        "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
    }
    activity = kept | {
        "name": subjects.ACTIVITY,
        "subjects": list(subjects.ACTIVITY_SUBJECTS),
        "discard": "old",
        "max_age": ACTIVITY_MAX_AGE_DAYS * DAY_SECONDS * _NANOSECONDS,
        "deny_delete": True,
        "deny_purge": True,
        "allow_atomic": True,
        "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
    }
    revocations = kept | {
        "name": subjects.REVOCATIONS,
        "discard": "old",
        "max_age": REVOCATIONS_MAX_AGE_DAYS * DAY_SECONDS * _NANOSECONDS,
        "deny_delete": True,
        "deny_purge": True,
        "sources": [
            {"name": subjects.LOG, "subject_transforms": [{"src": gate, "dest": ""} for gate in subjects.GATES]}
        ],
    }
    buckets = [
        kept
        | {
            "name": subjects.bucket_stream(bucket),
            "subjects": [subjects.bucket_subjects(bucket)],
            "discard": "new",
            "max_msgs_per_subject": 1,
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "allow_atomic": True,
            "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
        }
        # Marks of receipts that were taken away go by themselves.
        | ({"allow_msg_ttl": True} if bucket == subjects.SUBSCRIBERS else {})
        for bucket in (subjects.CREDENTIALS, subjects.USER_KEYS, subjects.FANOUT, subjects.SUBSCRIBERS)
    ]
    return [log, activity, revocations, *buckets]


async def ensure(connection: Client, *, replicas: int = 1, log_max_bytes: int = LOG_MAX_BYTES) -> list[str]:
    """Make what is missing, and check what is there. Names of the streams that were made.

    Raises `UnsafeStreams` for a stream with other settings: it is never changed behind an operator's back.
    """
    made = []
    for config in configs(replicas=replicas, log_max_bytes=log_max_bytes):
        found = await _found(connection, config["name"])
        if found is None:
            answer = await _ask(connection, f"$JS.API.STREAM.CREATE.{config['name']}", config)
            if "error" in answer:
                message = f"cannot create stream {config['name']}: {answer['error'].get('description')}"
                raise UnsafeStreams(message)
            made.append(config["name"])
        else:
            await _add_new_settings(connection, config, found)
            _refuse_other(config, found)
    return made


async def _add_new_settings(connection: Client, wanted: Config, found: Config) -> None:
    """What earlier versions did not ask for, and takes nothing away from anybody, is added to a stream of theirs."""
    missing = {name: wanted[name] for name in _ADDED_SINCE if name in wanted and not found.get(name)}
    if missing:
        found |= missing
        answer = await _ask(connection, f"$JS.API.STREAM.UPDATE.{wanted['name']}", found)
        if "error" in answer:
            message = f"cannot update stream {wanted['name']}: {answer['error'].get('description')}"
            raise UnsafeStreams(message)


async def check(connection: Client) -> None:
    """Refuse to go on with streams that are missing or differ. Raises `UnsafeStreams`.

    Replicas, `max_bytes` and the ages are the operator's to choose; everything else is not.
    """
    for config in configs(replicas=1, log_max_bytes=LOG_MAX_BYTES):
        found = await _found(connection, config["name"])
        if found is None:
            message = f"stream {config['name']} does not exist: run `python -m registry ensure-streams`"
            raise UnsafeStreams(message)
        _refuse_other(config, found)


async def check_feed(log: LogReader, feed: LogReader) -> None:
    """Refuse a feed that was sourced from another past of the log. Raises `UnsafeStreams`.

    When the log was restored to an earlier point while its feed was kept, new gates never reach the feed, and it looks
    complete: its last message must stand in the log, at the place it names, with the same event id.
    """
    state = await feed.state()
    if state.last == 0:
        return
    last = await feed.at_on_leader(state.last)
    if last is None:
        # Everything in it has aged out; what it continues from can only be seen by what its source says.
        return
    headers = last.headers or {}
    position = wire.position_in_log(headers.get(wire.STREAM_SOURCE_HEADER, ""))
    original = await log.at_on_leader(position)
    if original is None or (original.headers or {}).get("ce-id") != headers.get("ce-id"):
        message = (
            f"{subjects.REVOCATIONS} follows another past of {subjects.LOG}: its last event, of position {position}, "
            "is not in the log. Was the log restored? Run `python -m registry ensure-streams --rebuild-feed`"
        )
        raise UnsafeStreams(message)


async def rebuild_feed(connection: Client, *, replicas: int = 1) -> None:
    """Delete the feed and make it anew from the log. Token services treat it as a restart, and deny meanwhile."""
    await _ask(connection, f"$JS.API.STREAM.DELETE.{subjects.REVOCATIONS}", {})
    config = next(
        each for each in configs(replicas=replicas, log_max_bytes=LOG_MAX_BYTES) if each["name"] == subjects.REVOCATIONS
    )
    answer = await _ask(connection, f"$JS.API.STREAM.CREATE.{subjects.REVOCATIONS}", config)
    if "error" in answer:
        message = f"cannot create stream {subjects.REVOCATIONS}: {answer['error'].get('description')}"
        raise UnsafeStreams(message)


_ADDED_SINCE: Final = ("allow_msg_ttl",)
_OPERATORS_CHOICE: Final = {"num_replicas", "max_bytes", "max_age", "name"}


def _refuse_other(wanted: Config, found: Config) -> None:
    differences = [
        f"{name} is {found.get(name)!r} and must be {value!r}"
        for name, value in wanted.items()
        if name not in _OPERATORS_CHOICE and _comparable(found.get(name)) != _comparable(value)
    ]
    if wanted["name"] == subjects.LOG and found.get("max_age"):
        differences.append("max_age must be 0: the log is kept for ever")
    if differences:
        message = (
            f"stream {wanted['name']} is not safe to use: {'; '.join(differences)}. "
            "Change it with `nats stream edit`, or let `python -m registry ensure-streams` make a new one"
        )
        raise UnsafeStreams(message)


def _comparable(value: object) -> object:
    """Members that the server leaves out when they are false, and an empty `dest`, are equal to what we ask for."""
    if isinstance(value, Mapping):
        return {name: _comparable(each) for name, each in value.items() if each not in ("", None, False, 0)}
    if isinstance(value, list):
        return [_comparable(each) for each in value]
    return value or None


async def _found(connection: Client, stream: str) -> Config | None:
    answer = await _ask(connection, f"$JS.API.STREAM.INFO.{stream}", {})
    if "error" in answer:
        if answer["error"].get("err_code") == _NOT_FOUND:
            return None
        message = f"stream {stream}: {answer['error'].get('description')}"
        raise UnsafeStreams(message)
    config: Config = answer["config"]
    return config


async def _ask(connection: Client, subject: str, request: Config) -> dict[str, Any]:
    try:
        answer = await connection.request(subject, msgspec.json.encode(request), timeout=REQUEST_SECONDS * 2)
        decoded: dict[str, Any] = msgspec.json.decode(answer.data)
    except (TimeoutError, NatsError, OSError) as error:
        message = f"no answer from NATS to {subject}: is JetStream on, and may this user use its API?"
        raise Unavailable(message) from error
    return decoded
