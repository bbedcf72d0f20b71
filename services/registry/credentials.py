"""Client secrets and registration access tokens: minted once, shown once, kept as hashes in a bucket of their own.

They carry 256 random bits (RFC 7591 section 5, RFC 6749 section 10.10), so one SHA-256 is all the stretching that they
need. They are never in an event, a log line or a trace.
"""

import base64
import hashlib
import hmac
from typing import Final

import msgspec
from msgspec import Struct

from registry.buckets import Bucket

SECRET_BYTES: Final = 32


class Credentials(Struct, frozen=True, omit_defaults=True):
    """Hashes (hex SHA-256) of what a client was given. No secret for clients that authenticate otherwise, or not."""

    registration_access_token_sha256: str
    client_secret_sha256: str | None = None


class Issued(Struct, frozen=True):
    """What is shown to the client, this once, and the hashes that are kept."""

    registration_access_token: str
    client_secret: str | None
    kept: Credentials


def issue(random: bytes, *, with_secret: bool) -> Issued:
    """New credentials out of `2 * SECRET_BYTES` random bytes."""
    token = base64.urlsafe_b64encode(random[:SECRET_BYTES]).decode().rstrip("=")
    secret = base64.urlsafe_b64encode(random[SECRET_BYTES:]).decode().rstrip("=") if with_secret else None
    return Issued(token, secret, Credentials(_sha256(token), None if secret is None else _sha256(secret)))


def matches(presented: str, kept_sha256: str | None) -> bool:
    """Whether a presented secret is the one kept, in time that tells nothing. A client without one never matches."""
    expected = kept_sha256 if kept_sha256 is not None else _sha256("")
    return hmac.compare_digest(_sha256(presented), expected) and kept_sha256 is not None


async def keep(bucket: Bucket, client: str, credentials: Credentials) -> None:
    """Keep the hashes of a new client, by its subject token. Before the event: an orphan is harmless."""
    written = await bucket.put(client, msgspec.json.encode(credentials), revision=0)
    if written is None:
        message = "a client id that was just minted has credentials already"
        raise RuntimeError(message)


async def kept(bucket: Bucket, client: str) -> Credentials | None:
    """The hashes of a client, by its subject token, as the leader has them. Raises `Unavailable`."""
    entry = await bucket.get(client)
    if entry is None or entry.value is None:
        return None
    return msgspec.json.decode(entry.value, type=Credentials)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
