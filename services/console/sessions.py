"""Sessions: who is signed in, kept here and not in the browser, which holds a random name of its session alone.

They live in this process: when it ends, everybody signs in again. Where several consoles run, a browser must come to
the same one.
"""

import base64
import hashlib
from collections.abc import Callable
from typing import Final

from litestar.datastructures import Cookie
from msgspec import Struct

from console.oidc import Pending

COOKIE: Final = "__Host-grantbook"
"""RFC 6265bis section 4.1.3.2: Secure, for this host alone, for every path. No neighbour can set it."""
NAME_BYTES: Final = 32
IDLE_SECONDS: Final = 1_800.0
LONGEST_SECONDS: Final = 43_200.0
"""A session ends twelve hours after sign-in, whatever was done."""
MAX_SIGNED_IN: Final = 1_000
MAX_SIGNING_IN: Final = 1_000
"""Browsers that are on their way to the identity provider and back. Anybody may begin: the oldest give way."""


class Session(Struct):
    """One browser. Seconds are of a monotonic clock."""

    begun_at: float
    seen_at: float
    admin: str | None = None
    """The name that actions are recorded under. None while signing in."""
    pending: Pending | None = None
    position: str | None = None
    """Of the last thing done: what is read next is at least as new."""


class Sessions:
    """All sessions of this process, by the hash of their name: a dump of memory signs nobody in."""

    def __init__(self, *, random: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._signed_in: dict[bytes, Session] = {}
        self._signing_in: dict[bytes, Session] = {}

    def find(self, name: str | None) -> Session | None:
        """The session of this name, if it has not ended."""
        if not name:
            return None
        key = _key(name)
        session = self._signed_in.get(key) or self._signing_in.get(key)
        if session is None:
            return None
        now = self._clock()
        if now - session.seen_at > IDLE_SECONDS or now - session.begun_at > LONGEST_SECONDS:
            self._drop(key)
            return None
        session.seen_at = now
        return session

    def begin(self, *, admin: str | None, pending: Pending | None = None) -> tuple[str, Session]:
        """A new session and its name, which is told this once. A sign-in always gets a new one."""
        kept, most = (self._signing_in, MAX_SIGNING_IN) if admin is None else (self._signed_in, MAX_SIGNED_IN)
        while len(kept) >= most:
            kept.pop(min(kept, key=lambda each: kept[each].seen_at))
        now = self._clock()
        name = base64.urlsafe_b64encode(self._random(NAME_BYTES)).decode().rstrip("=")
        session = Session(begun_at=now, seen_at=now, admin=admin, pending=pending)
        kept[_key(name)] = session
        return name, session

    def end(self, name: str | None) -> None:
        """End a session."""
        if name:
            self._drop(_key(name))

    def _drop(self, key: bytes) -> None:
        self._signed_in.pop(key, None)
        self._signing_in.pop(key, None)


def cookie(name: str) -> Cookie:
    """The cookie of a session. `Lax`, so that it comes back along with the identity provider's redirect."""
    return Cookie(key=COOKIE, value=name, path="/", secure=True, httponly=True, samesite="lax")


def no_cookie() -> Cookie:
    """What takes the cookie away."""
    return Cookie(key=COOKIE, value="", path="/", secure=True, httponly=True, samesite="lax", max_age=0)


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
