"""Cursors of lists: where a page ended, opaque and authenticated, so that nobody can make one up."""

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec
from msgspec import Struct

MAC_BYTES: Final = 16
MAX_CURSOR_CHARACTERS: Final = 4_096


class Place(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last row of a page: of which list in which order, its sorted value as text, and its tie-breaker.

    Or the first one, of a page that the page before it is asked for: `backward`.

    `since` is a moment (RFC 3339) that all pages of the list have in common, for lists that have one.
    """

    order: str
    value: str
    tie: str
    since: str = ""
    backward: bool = False


class InvalidCursor(ValueError):
    """The text is no cursor of ours, or one of another list or order."""


def encode(place: Place, key: bytes) -> str:
    """The cursor that says `place`."""
    body = msgspec.msgpack.encode(place)
    return _text(_mac(body, key) + body)


def decode(cursor: str, key: bytes, *, order: str) -> Place:
    """The place that a cursor says. Raises `InvalidCursor`, and nothing else, whatever the text is."""
    if len(cursor) > MAX_CURSOR_CHARACTERS:
        raise InvalidCursor
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor from error
    if _text(raw) != cursor:  # the same bytes, spelt otherwise (RFC 4648 section 3.5)
        raise InvalidCursor
    mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(body, key)):
        raise InvalidCursor
    place = msgspec.msgpack.decode(body, type=Place)
    if place.order != order:
        raise InvalidCursor
    return place


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()[:MAC_BYTES]
