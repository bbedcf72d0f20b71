"""One-time links that sign in whoever holds them: for one's own machine, where there is no identity provider.

A link says until when it is good, and is signed; what makes and what checks it share a key, and nothing else. The
console remembers the links that were used, until they would have ended by themselves.
"""

import base64
import hashlib
import hmac
import re
from typing import Final

LINK_SECONDS: Final = 600
"""For how long a link is good."""
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16
MAX_USED: Final = 10_000
"""Used links remembered. Beyond, no link is taken until some have ended."""
_LINK: Final = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})\Z")


def new_link(key: bytes, random: bytes, now: float) -> str:
    """The secret part of a link, good until `LINK_SECONDS` from `now` (POSIX seconds)."""
    said = f"{int(now) + LINK_SECONDS}.{_text(random[:NONCE_BYTES])}"
    return f"{said}.{_text(_signature(key, said))}"


class Links:
    """Links that may still be used."""

    def __init__(self, key: bytes, *, started_at: float) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"a key of links has {KEY_BYTES} bytes")
        self._key = key
        self._started_at = int(started_at)
        """Links from before may have been used: nobody remembers. POSIX seconds."""
        self._used: dict[str, int] = {}

    def use(self, link: str, now: float) -> bool:
        """Whether the link is one of ours, in time, and used for the first time; from here on it is used."""
        found = _LINK.match(link)
        if found is None:
            return False
        until, nonce = int(found[1]), found[2]
        genuine = hmac.compare_digest(_text(_signature(self._key, f"{found[1]}.{nonce}")), found[3])
        if not genuine or not now < until <= now + LINK_SECONDS + 1 or until - LINK_SECONDS < self._started_at:
            return False
        self._used = {each: ends for each, ends in self._used.items() if ends > now}
        if nonce in self._used or len(self._used) >= MAX_USED:
            return False
        self._used[nonce] = until
        return True


def _signature(key: bytes, said: str) -> bytes:
    return hmac.digest(key, b"grantbook console link\0" + said.encode(), hashlib.sha256)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
