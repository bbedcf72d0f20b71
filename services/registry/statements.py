"""Software statements (RFC 7591 section 2.3): JWTs in which somebody else says what a client is.

An operator names the issuers that are trusted and their keys. Nothing in a statement chooses how it is checked: its
`jku`, `x5u` and `jwk` are not looked at, its algorithm must be one that the configured key is for, and no key is ever
fetched. A statement of nobody whom we know is *unapproved*; one that does not verify is *invalid*.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from msgspec import Struct

from registry.metadata import MetadataRefused

ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
    "Ed448": ("EdDSA",),
}
"""By the configured key's curve, or else its type. Never `none`, and nothing with a shared secret."""
MAX_FILE_BYTES: Final = 1_048_576
LEEWAY_SECONDS: Final = 60
"""How far an issuer's clock may be off for `exp`, `nbf` and `iat`."""

_COMPACT_JWS: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
_ABOUT_ITSELF: Final = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "software_statement"})
"""Claims about the statement: no metadata of the client."""


class Issuer(Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer that is trusted, and its public keys (RFC 7517). With `software_ids`, those statements alone."""

    issuer: str
    jwks: dict[str, Any]
    software_ids: tuple[str, ...] | None = None


class StatementsRefused(Exception):
    """The file of issuers cannot be used. The message says what to do about it."""


class _Key(Struct, frozen=True):
    id: str | None
    algorithms: tuple[str, ...]
    key: Any


class _Trusted(Struct, frozen=True):
    keys: tuple[_Key, ...]
    software_ids: frozenset[str] | None


class Statements:
    """Reads statements of the issuers that are trusted. A statement for an audience must be for `audience`, ours."""

    def __init__(self, issuers: Sequence[Issuer], *, audience: str) -> None:
        self._audience = audience
        self._trusted = {
            each.issuer: _Trusted(_keys(each), None if each.software_ids is None else frozenset(each.software_ids))
            for each in issuers
        }

    def claims(self, statement: str) -> dict[str, object]:
        """What an approved statement says of the client. Raises `MetadataRefused`."""
        if not _COMPACT_JWS.match(statement):
            raise _invalid("a signed JWT was expected")
        try:
            header = jwt.get_unverified_header(statement)
            unverified = jwt.decode(statement, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, ArithmeticError, RecursionError):
            raise _invalid("a signed JWT was expected") from None
        issuer = unverified.get("iss")
        if not isinstance(issuer, str):
            raise _invalid("it names no issuer (RFC 7591 section 2.3)")
        trusted = self._trusted.get(issuer)
        if trusted is None:
            raise _unapproved("its issuer is not trusted here")
        if "crit" in header:
            raise _invalid("its header has extensions that must be understood (RFC 7515 section 4.1.11)")
        claims = self._verified(statement, header.get("kid"), issuer, trusted.keys, has_audience="aud" in unverified)
        software_id = claims.get("software_id")
        known = isinstance(software_id, str) and software_id in (trusted.software_ids or ())
        if trusted.software_ids is not None and not known:
            raise _unapproved("its issuer may not speak for this software here")
        return {name: value for name, value in claims.items() if name not in _ABOUT_ITSELF and value is not None}

    def _verified(
        self, statement: str, key_id: object, issuer: str, keys: Sequence[_Key], *, has_audience: bool
    ) -> dict[str, Any]:
        for key in keys:
            if key_id is not None and key.id is not None and key.id != key_id:
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    statement,
                    key.key,
                    algorithms=list(key.algorithms),
                    issuer=issuer,
                    audience=self._audience if has_audience else None,
                    leeway=LEEWAY_SECONDS,
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue  # another of its keys may be the one
            except (jwt.PyJWTError, ValueError, ArithmeticError, RecursionError) as error:
                raise _invalid(_says(error)) from None
            return claims
        raise _invalid("no key of its issuer verifies it")


def load(file: Path | None, *, audience: str) -> Statements:
    """The statements that a file of issuers makes readable; none without a file. Raises `StatementsRefused`."""
    if file is None:
        return Statements((), audience=audience)
    try:
        with file.open("rb") as opened:
            body = opened.read(MAX_FILE_BYTES + 1)
        issuers = msgspec.json.decode(body, type=list[Issuer])
        return Statements(issuers, audience=audience)
    except OSError as error:
        message = f"The file of issuers {file} cannot be read: {error.strerror}."
        raise StatementsRefused(message) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, jwt.PyJWTError, ValueError, TypeError) as error:
        message = (
            f'The file of issuers {file} is not understood: {error}. It is a list of {{"issuer": "https://...", '
            '"jwks": {"keys": [...]}}, with public keys alone.'
        )
        raise StatementsRefused(message) from None


def _keys(issuer: Issuer) -> tuple[_Key, ...]:
    given = issuer.jwks.get("keys")
    if not isinstance(given, list) or not given:
        message = f"issuer {issuer.issuer} has no keys"
        raise ValueError(message)
    return tuple(_key(each) for each in given)


def _key(jwk: Mapping[str, Any]) -> _Key:
    kind, algorithm = str(jwk.get("crv", jwk.get("kty"))), jwk.get("alg")
    allowed = ALGORITHMS.get(kind, ())
    if not allowed or "d" in jwk:
        message = f"a key is public, and one of {', '.join(ALGORITHMS)}"
        raise ValueError(message)
    if algorithm is not None and algorithm not in allowed:
        message = f"a key of {kind} is not for {algorithm}"
        raise ValueError(message)
    # What the statement's own header says never widens what a key is for.
    key = jwt.PyJWK(dict(jwk), algorithm or allowed[0]).key
    return _Key(jwk.get("kid"), (algorithm,) if algorithm else allowed, key)


def _says(error: Exception) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "it has expired"
        case jwt.ImmatureSignatureError():
            return "it is not valid yet"
        case jwt.InvalidAudienceError():
            return "it is for another audience"
        case _:
            return "it does not verify"


def _invalid(why: str) -> MetadataRefused:
    return MetadataRefused("invalid_software_statement", f"software_statement: {why}")


def _unapproved(why: str) -> MetadataRefused:
    return MetadataRefused("unapproved_software_statement", f"software_statement: {why}")
