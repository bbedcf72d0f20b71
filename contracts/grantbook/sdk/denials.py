"""What is denied, in memory: bounded by what was heard of within the longest lifetime of a token."""

import math
from collections import deque
from hashlib import blake2b
from typing import Final, Generic, Literal, TypeVar, assert_never

from grantbook import subjects, wire
from grantbook.events import (
    ActivityRecorded,
    ClientDeleted,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.sdk.log import Raw

APPENDED_WITHIN_SECONDS: Final = 900.0
"""No event is stored later than this after it was decided: its writer gives up after 20 s, and a server that was paused
with the event on its way is not paused for so long."""
SLICES: Final = 64
"""What was heard of within one of so many parts of the time that it is kept leaves together, at the end of the last."""
_DIGEST_BYTES: Final = 16

_Key = TypeVar("_Key", str, bytes)
Denial = Literal["deleted", "suspended", "grant", "user"]


class _Slice(Generic[_Key]):
    """What was heard of within a short time."""

    __slots__ = ("keys", "last", "started")

    def __init__(self, now: float) -> None:
        self.started = now
        self.last = now
        self.keys: list[_Key] = []


class _Remembered(Generic[_Key]):
    """Keys, each with the monotonic time at which it was last heard of. They leave by age, oldest first.

    A key costs one entry of a dict and eight bytes of a list: a million of them fit beside a service's own work.
    """

    def __init__(self, keep_seconds: float) -> None:
        self.since: dict[_Key, float] = {}
        self._keep_seconds = keep_seconds
        self._slices: deque[_Slice[_Key]] = deque()

    def add(self, key: _Key, now: float) -> None:
        """Heard of it now. What is kept for good stays so."""
        if self.since.get(key) == math.inf:
            return
        self.since[key] = now
        if not self._slices or now - self._slices[-1].started > self._keep_seconds / SLICES:
            self._slices.append(_Slice(now))
        newest = self._slices[-1]
        newest.last = now
        newest.keys.append(key)

    def forget(self, now: float) -> list[_Key]:
        """Let go of what was last heard of too long ago, and say what that was."""
        gone = []
        while self._slices and self._slices[0].last + self._keep_seconds < now:
            oldest = self._slices.popleft()
            for key in oldest.keys:
                if self.since.get(key, math.inf) <= oldest.last:
                    del self.since[key]
                    gone.append(key)
        return gone


class Denials:
    """What is denied, by subject token. In memory, bounded by what was heard of within `keep_seconds`.

    Everything leaves so long after it was heard of (and at most a 64th of that later), by a clock that never jumps:
    what was revoked earlier leaves later than it must, and never too early. Tokens of a deleted client, of a revoked
    grant or from before a user's cut-off have expired by then. So have a suspended client's: those from before the
    suspension, for none is issued during it. What was not understood never leaves: nobody knows what it ended, and for
    how long. The grants of a deleted client cost nothing: the deletion denies them all.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._deleted: _Remembered[str] = _Remembered(keep_seconds)
        self._suspended: _Remembered[str] = _Remembered(keep_seconds)
        self._users: _Remembered[str] = _Remembered(keep_seconds)
        self._cutoffs: dict[str, float] = {}
        self._grants: _Remembered[bytes] = _Remembered(keep_seconds)
        self.unknown = 0
        """Events that were not understood, and so denied what they are about."""

    def __len__(self) -> int:
        return sum(len(each.since) for each in (self._deleted, self._suspended, self._users, self._grants))

    def why(self, client: str, grant: str, user: str, issued_at: float | None, skew_seconds: float) -> Denial | None:
        """Why tokens of these, given as subject tokens, issued at a POSIX time, are denied, or None. Constant time."""
        if client in self._deleted.since:
            return "deleted"
        if client in self._suspended.since:
            return "suspended"
        grants = self._grants.since
        if grants and _digest(client, grant) in grants:
            return "grant"
        cutoff = self._cutoffs.get(user)
        # Written so that a time that is no number (NaN) is denied.
        if cutoff is not None and (issued_at is None or not issued_at > cutoff + skew_seconds):
            return "user"
        return None

    def denies(self, client: str, grant: str, user: str, issued_at: float | None, skew_seconds: float) -> bool:
        """Whether they are denied."""
        return self.why(client, grant, user, issued_at, skew_seconds) is not None

    def apply(self, raw: Raw, now: float, *, decided_after: float = -math.inf) -> None:
        """Take a message of the feed into account, heard of `now`, in monotonic seconds.

        What was decided before a POSIX time is passed over: for reading a feed that was made anew, which has all of
        the log.
        """
        cutoff = raw.stored_at.timestamp()
        try:
            event = raw.recorded().event
        except wire.Malformed:
            self._deny_subject(raw.subject)
            return
        if not isinstance(event, wire.Unknown) and event.at.timestamp() < decided_after:
            return
        match event:
            case ClientDeleted():
                self._deleted.add(subjects.token(event.client_id), now)
            case ClientSuspended():
                self._suspended.add(subjects.token(event.client_id), now)
            case ClientResumed():
                self._lift(subjects.token(event.client_id))
            case GrantRevoked():
                client = subjects.token(event.client_id)
                if client not in self._deleted.since:
                    self._grants.add(_digest(client, subjects.token(event.grant_id)), now)
            case UserGrantsRevoked():
                # A feed that was made anew stores old events at the time of that. The log itself stored them, and so
                # ended what they end, no later than APPENDED_WITHIN_SECONDS after they were decided.
                cutoff = min(cutoff, event.at.timestamp() + APPENDED_WITHIN_SECONDS)
                self._users.add(event.user_key, now)
                # Never back: a later cut-off by a writer whose clock is behind ends no less than the one before.
                self._cutoffs[event.user_key] = max(cutoff, self._cutoffs.get(event.user_key, cutoff))
            case (
                wire.Unknown()
                | ClientRegistered()
                | ClientMetadataChanged()
                | GrantIssued()
                | GrantExtended()
                | ActivityRecorded()
            ):
                # The known ones stand on no gate: the feed has them only when somebody changed what it is made of.
                self._deny_subject(raw.subject)
            case _:
                assert_never(event)

    def forget(self, now: float) -> None:
        """Let go of what was heard of so long before `now`, in monotonic seconds, that no token of it lives."""
        self._deleted.forget(now)
        self._suspended.forget(now)
        self._grants.forget(now)
        for user in self._users.forget(now):
            del self._cutoffs[user]

    def _lift(self, client: str) -> None:
        # What was not understood about the client may be graver than a suspension: no resumption lifts it.
        if self._suspended.since.get(client) != math.inf:
            self._suspended.since.pop(client, None)

    def _deny_subject(self, subject: str) -> None:
        self.unknown += 1
        client, grant = subjects.client_token_of(subject), subjects.grant_token_of(subject)
        user = subjects.user_token_of(subject)
        if client is not None and grant is not None:
            self._grants.since[_digest(client, grant)] = math.inf
        elif client is not None:
            self._suspended.since[client] = math.inf
        elif user is not None:
            self._users.since[user] = math.inf
            self._cutoffs[user] = math.inf


def _digest(client: str, grant: str) -> bytes:
    """A grant of a client, in 16 bytes: ids may be long, and there may be a million of them. Tokens have no dots."""
    return blake2b(f"{client}.{grant}".encode(), digest_size=_DIGEST_BYTES).digest()
