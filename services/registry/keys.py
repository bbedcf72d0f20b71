"""Data keys of people: made when first needed, and used to seal what is personal before it goes into an event."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from grantbook import sealed
from grantbook.sealed import Note, Sealed
from registry.buckets import Bucket

MAX_REMEMBERED_KEYS: Final = 10_000
MAX_TRIES: Final = 5


class Seals:
    """Seals values with the key of their person. `random` gives that many random bytes."""

    def __init__(self, bucket: Bucket, *, random: Callable[[int], bytes]) -> None:
        self._bucket = bucket
        self._random = random
        self._remembered: OrderedDict[str, bytes] = OrderedDict()

    async def username(self, user_id: str, username: str) -> Sealed:
        """A user's name, sealed with that user's key. The key is stored before this returns."""
        key_id = sealed.user_key_id(user_id)
        key = await self._key(key_id)
        return sealed.seal(username.encode(), key_id=key_id, key=key, nonce=self._random(sealed.NONCE_BYTES))

    async def note(self, kind: str, actor_id: str, detail: str | None) -> Sealed:
        """Who acted on a gate, and the free text given, sealed with the key of that actor."""
        key_id = sealed.actor_key_id(kind, actor_id)
        key = await self._key(key_id)
        note = Note(by_id=actor_id, detail=detail)
        return sealed.seal_note(note, key_id=key_id, key=key, nonce=self._random(sealed.NONCE_BYTES))

    async def _key(self, key_id: str) -> bytes:
        key = self._remembered.get(key_id)
        if key is not None:
            self._remembered.move_to_end(key_id)
            return key
        for _ in range(MAX_TRIES):
            entry = await self._bucket.get(key_id)
            if entry is not None and entry.value is not None:
                return self._remember(key_id, entry.value)
            # Never made, or erased: what is sealed from now on is of a new key. What the erased one sealed stays shut.
            made = self._random(sealed.KEY_BYTES)
            if await self._bucket.put(key_id, made, revision=0 if entry is None else entry.revision) is not None:
                return self._remember(key_id, made)
        message = f"data key {key_id} changes all the time"
        raise RuntimeError(message)

    def _remember(self, key_id: str, key: bytes) -> bytes:
        self._remembered[key_id] = key
        if len(self._remembered) > MAX_REMEMBERED_KEYS:
            self._remembered.popitem(last=False)
        return key
