"""Data keys of people, to open what is sealed in events. A key that is not there any more means: the person was erased.

"Missing" must not look like "erased", so a key is taken for missing only when the bucket's leader says so.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from grantbook import sealed, subjects
from grantbook.sdk.log import LogReader, Raw
from grantbook.sealed import CannotUnseal, Note, Sealed

MAX_REMEMBERED_KEYS: Final = 65_536
"""Some 25 MB. Who lets clients in does it again: each that is asked for is a message."""
REMEMBERED_SECONDS: Final = 60.0
"""For so long an erased key may still open what was sealed with it before."""
OPENED_AT_ONCE: Final = 50
"""Values opened before others in the same process get their turn."""
MAX_ASKED_AT_ONCE: Final = 1_000
MAX_LEADER_READS: Final = 100
"""Leader reads under way at once."""


class Keys:
    """Opens sealed values with keys of the bucket that `reader` reads."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._remembered: OrderedDict[str, bytes] = OrderedDict()
        self._forget_at = 0.0

    async def usernames(self, values: Iterable[Sealed]) -> dict[Sealed, str]:
        """The names that can be opened; those of erased users are not in it. Raises `Unavailable`."""
        now = asyncio.get_running_loop().time()
        if now >= self._forget_at:
            self._remembered.clear()
            self._forget_at = now + REMEMBERED_SECONDS
        wanted = list(values)
        asked = dict.fromkeys(each.key for each in wanted)
        keys = {each: self._remembered[each] for each in asked if each in self._remembered}
        missing = {each: None for each in asked if each not in keys}
        keys |= await self._fetched(missing)
        opened: dict[Sealed, str] = {}
        changed: list[Sealed] = []
        for start in range(0, len(wanted), OPENED_AT_ONCE):
            for value in wanted[start : start + OPENED_AT_ONCE]:
                name = _opened(value, keys.get(value.key))
                if name is not None:
                    opened[value] = name
                elif value.key in keys and value.key not in missing:
                    changed.append(value)
            await asyncio.sleep(0)
        if changed:
            # The user was erased since the key was remembered, and has a new one for what came later.
            anew = await self._fetched(dict.fromkeys(each.key for each in changed))
            for value in changed:
                name = _opened(value, anew.get(value.key))
                if name is not None:
                    opened[value] = name
        while len(self._remembered) > MAX_REMEMBERED_KEYS:
            self._remembered.popitem(last=False)
        return opened

    async def notes(self, values: Iterable[Sealed]) -> dict[Sealed, Note]:
        """The notes that can be opened, by keys read anew: an erased key shuts them at once. Raises `Unavailable`."""
        wanted = dict.fromkeys(values)
        keys = await self._from_leader(dict.fromkeys(each.key for each in wanted))
        opened: dict[Sealed, Note] = {}
        for value in wanted:
            if (key := keys.get(value.key)) is not None:
                try:
                    opened[value] = sealed.unseal_note(value, key)
                except CannotUnseal:
                    continue  # sealed with a key that was erased, and made anew since
        return opened

    async def _fetched(self, key_ids: Mapping[str, None]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        asked = list(key_ids)
        for start in range(0, len(asked), MAX_ASKED_AT_ONCE):
            some = asked[start : start + MAX_ASKED_AT_ONCE]
            by_subject = {_subject(each): each for each in some}
            for subject, raw in (await self._reader.last(list(by_subject))).items():
                if (key := _value(raw)) is not None:
                    found[by_subject[subject]] = key
        # A follower may lag. Only a leader's word makes a key missing.
        found |= await self._from_leader({each: None for each in asked if each not in found})
        self._remembered |= found
        return found

    async def _from_leader(self, key_ids: Mapping[str, None]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        asked = list(key_ids)
        for start in range(0, len(asked), MAX_LEADER_READS):
            by_subject = {_subject(each): each for each in asked[start : start + MAX_LEADER_READS]}
            for subject, raw in (await self._reader.last_on_leader(list(by_subject))).items():
                if (key := _value(raw)) is not None:
                    found[by_subject[subject]] = key
            await asyncio.sleep(0)
        return found


def _subject(key_id: str) -> str:
    return subjects.bucket_key(subjects.USER_KEYS, key_id)


def _value(raw: Raw) -> bytes | None:
    return None if (raw.headers or {}).get("KV-Operation") in {"DEL", "PURGE"} else raw.data


def _opened(value: Sealed, key: bytes | None) -> str | None:
    if key is None:
        return None
    try:
        return sealed.unseal(value, key).decode("utf-8", "replace")
    except CannotUnseal:
        return None
