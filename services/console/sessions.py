"""Sessions: who is signed in, kept here and not in the browser, which holds a random name of its session alone.

They live in this process: when it ends, everybody signs in again. Where several consoles run, a browser must come to
the same one.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from litestar.datastructures import Cookie
from msgspec import Struct

from console.oidc import PENDING_SECONDS, Pending
from grantbook import positions

COOKIE: Final = "__Host-grantbook"
"""RFC 6265bis section 4.1.3.2: Secure, for this host alone, for every path. No neighbour can set it."""
SIGNING_IN_COOKIE: Final = "__Host-grantbook-signing-in"
NAME_BYTES: Final = 32
IDLE_SECONDS: Final = 1_800.0
LONGEST_SECONDS: Final = 43_200.0
"""A session ends twelve hours after sign-in, whatever was done."""
MAX_SIGNED_IN: Final = 1_000
MAX_SPENT: Final = 100_000
"""Sign-ins that came back and are remembered, so that each counts once. Only who was at the provider adds to them."""
NONCE_BYTES: Final = 12
MAX_SEALED_CHARACTERS: Final = 4_096


class Session(Struct):
    """One browser. Seconds are of a monotonic clock."""

    begun_at: float
    seen_at: float
    admin: str
    """The name that actions are recorded under."""
    position: str | None = None
    """Of the last thing done: what is read next is at least as new."""

    def reached(self, position: str | None) -> None:
        """Something was done: it counts where it is later than what is known."""
        self.position = later(self.position, position)


def later(one: str | None, other: str | None) -> str | None:
    """The later of two positions of the log; of two logs the second."""
    if not one or not other:
        return one or other
    try:
        first, second = positions.parse(one), positions.parse(other)
    except positions.InvalidPosition:
        return other
    same = (first.kind, first.identity) == (second.kind, second.identity)
    return one if same and first.sequence > second.sequence else other


class Sessions:
    """All sessions of this process, by the hash of their name: a dump of memory signs nobody in."""

    def __init__(self, *, random: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._signed_in: dict[bytes, Session] = {}

    def find(self, name: str | None, *, used: bool = True) -> Session | None:
        """The session of this name, if it has not ended. A page that looks again by itself is no use of it."""
        if not name:
            return None
        key = _key(name)
        session = self._signed_in.get(key)
        if session is None:
            return None
        now = self._clock()
        if now - session.seen_at > IDLE_SECONDS or now - session.begun_at > LONGEST_SECONDS:
            self._signed_in.pop(key, None)
            return None
        if used:
            session.seen_at = now
        return session

    def begin(self, *, admin: str) -> tuple[str, Session]:
        """A new session and its name, which is told this once. A sign-in always gets a new one."""
        while len(self._signed_in) >= MAX_SIGNED_IN:
            self._signed_in.pop(min(self._signed_in, key=lambda each: self._signed_in[each].seen_at))
        now = self._clock()
        name = base64.urlsafe_b64encode(self._random(NAME_BYTES)).decode().rstrip("=")
        session = Session(begun_at=now, seen_at=now, admin=admin)
        self._signed_in[_key(name)] = session
        return name, session

    def end(self, name: str | None) -> None:
        """End a session."""
        if name:
            self._signed_in.pop(_key(name), None)


class SigningIn:
    """Sign-ins that were begun. Each is kept by its browser, sealed: anybody may begin as many as they like."""

    def __init__(self, *, random: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._key = AESGCM(random(32))
        self._spent: dict[str, float] = {}

    def seal(self, pending: Pending) -> str:
        """The value of its cookie."""
        nonce = self._random(NONCE_BYTES)
        sealed = self._key.encrypt(nonce, msgspec.json.encode(pending), SIGNING_IN_COOKIE.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def take(self, value: str | None) -> Pending | None:
        """The sign-in of a cookie, once, and in time."""
        if not value or len(value) > MAX_SEALED_CHARACTERS:
            return None
        try:
            raw = base64.urlsafe_b64decode(value.encode("ascii") + b"=" * (-len(value) % 4))
            opened = self._key.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], SIGNING_IN_COOKIE.encode())
            pending = msgspec.json.decode(opened, type=Pending)
        except (UnicodeEncodeError, binascii.Error, ValueError, InvalidTag, msgspec.MsgspecError):
            return None
        now = self._clock()
        while self._spent and (
            len(self._spent) >= MAX_SPENT or now - next(iter(self._spent.values())) > PENDING_SECONDS
        ):
            del self._spent[next(iter(self._spent))]
        if pending.state in self._spent or not 0 <= now - pending.begun_at <= PENDING_SECONDS:
            return None
        self._spent[pending.state] = now
        return pending


def cookie(value: str, key: str = COOKIE) -> Cookie:
    """The cookie of a session. `Lax`, so that it comes back along with the identity provider's redirect."""
    return Cookie(key=key, value=value, path="/", secure=True, httponly=True, samesite="lax")


def no_cookie(key: str = COOKIE) -> Cookie:
    """What takes the cookie away."""
    return Cookie(key=key, value="", path="/", secure=True, httponly=True, samesite="lax", max_age=0)


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
