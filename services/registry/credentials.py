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
RANDOM_BYTES: Final = 2 * SECRET_BYTES
"""Of which new credentials are made."""


class Credentials(Struct, frozen=True, omit_defaults=True):
    """Hashes (hex SHA-256) of what a client was given. No secret for clients that authenticate otherwise, or not.

    Without a registration access token nobody manages the client over RFC 7592: it is one of many identical ones.
    """

    registration_access_token_sha256: str | None = None
    client_secret_sha256: str | None = None
    next: "Credentials | None" = None
    """What replaces these once the update that they belong to is in the log. Until then nobody was shown it."""


class Issued(Struct, frozen=True):
    """What is shown to the client, this once, and the hashes that are kept."""

    registration_access_token: str
    client_secret: str | None
    kept: Credentials


class Kept(Struct, frozen=True):
    """What is kept of a client, and the bucket's revision of it."""

    credentials: Credentials
    revision: int


def issue(random: bytes, *, with_secret: bool, keep_secret_sha256: str | None = None) -> Issued:
    """New credentials out of `RANDOM_BYTES` random bytes.

    Where a secret is to be kept (its hash is given), none is made: nobody can show it again.
    """
    token = base64.urlsafe_b64encode(random[:SECRET_BYTES]).decode().rstrip("=")
    if not with_secret:
        return Issued(token, None, Credentials(_sha256(token)))
    if keep_secret_sha256 is not None:
        return Issued(token, None, Credentials(_sha256(token), keep_secret_sha256))
    secret = base64.urlsafe_b64encode(random[SECRET_BYTES:]).decode().rstrip("=")
    return Issued(token, secret, Credentials(_sha256(token), _sha256(secret)))


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


async def kept(bucket: Bucket, client: str) -> Kept | None:
    """What is kept of a client, by its subject token, as the leader has it. Raises `Unavailable`."""
    entry = await bucket.get(client)
    if entry is None or entry.value is None:
        return None
    return Kept(msgspec.json.decode(entry.value, type=Credentials), entry.revision)


async def replace(bucket: Bucket, client: str, credentials: Credentials, *, revision: int) -> int | None:
    """Keep other credentials in the place of those of `revision`. The new revision; None when others were faster."""
    return await bucket.put(client, msgspec.json.encode(credentials), revision=revision)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
