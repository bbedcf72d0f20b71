"""Opening what is sealed in events, for those who may read the keys."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from nats.aio.client import Client

from grantbook import sealed, subjects
from grantbook.sdk.log import LogReader
from grantbook.sealed import CannotUnseal, Sealed
from grantbook.wire import Recorded

MAX_REMEMBERED_KEYS: Final = 10_000
MAX_ASKED_AT_ONCE: Final = 100


class Opened(msgspec.Struct, frozen=True):
    """Sealed members of an event by name: opened, or erased for ever."""

    values: dict[str, Any]
    erased: list[str]


class Unsealer:
    """Opens with the keys in the bucket `grantbook_user_keys`, asked of its leader: missing means erased."""

    def __init__(self, connection: Client) -> None:
        self._bucket = LogReader(connection, subjects.bucket_stream(subjects.USER_KEYS))
        self._keys: OrderedDict[str, bytes | None] = OrderedDict()

    async def fetch(self, records: Iterable[Recorded]) -> None:
        """Fetch the keys of these records, so that `open` can use them. Raises `Unavailable`."""
        wanted = list({value.key: None for each in records for value in _sealed(each).values()})
        missing = [each for each in wanted if each not in self._keys]
        for start in range(0, len(missing), MAX_ASKED_AT_ONCE):
            some = missing[start : start + MAX_ASKED_AT_ONCE]
            found = await self._bucket.last_on_leader([_subject(each) for each in some])
            for key_id in some:
                raw = found.get(_subject(key_id))
                erased = raw is None or (raw.headers or {}).get("KV-Operation") in {"DEL", "PURGE"}
                self._keys[key_id] = None if raw is None or erased else raw.data
            await asyncio.sleep(0)
        for key_id in wanted:
            self._keys.move_to_end(key_id)
        while len(self._keys) > max(MAX_REMEMBERED_KEYS, len(wanted)):
            self._keys.popitem(last=False)

    def open(self, recorded: Recorded) -> Opened:
        """What is sealed in a record whose keys were fetched."""
        values: dict[str, Any] = {}
        erased = []
        for name, value in _sealed(recorded).items():
            key = self._keys[value.key]
            try:
                if key is None:
                    erased.append(name)
                elif name == "note":
                    values[name] = msgspec.to_builtins(sealed.unseal_note(value, key))
                else:
                    values[name] = sealed.unseal(value, key).decode("utf-8", "replace")
            except CannotUnseal:
                # Sealed with a key that was erased since, and made anew for what the person did later.
                erased.append(name)
        return Opened(values, erased)


def _sealed(recorded: Recorded) -> dict[str, Sealed]:
    members = {name: getattr(recorded.event, name, None) for name in ("username", "note")}
    return {name: value for name, value in members.items() if isinstance(value, Sealed)}


def _subject(key_id: str) -> str:
    return subjects.bucket_key(subjects.USER_KEYS, key_id)
