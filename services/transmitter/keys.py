"""The transmitter's keys: those that sign SETs, as a JWK Set (RFC 7517), and the one that seals receivers' secrets.

The first key of the set signs. Older ones follow with their public half alone: SETs that they signed stay verifiable
until every receiver has taken them. A key's type says its algorithm: P-256 is ES256, RSA is RS256 (RFC 7518).
"""

import base64
import binascii
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from msgspec import Struct

from grantbook import sealed

MAX_FILE_BYTES: Final = 65_536
MAX_KEYS: Final = 8
"""In one set: the one that signs, and older ones. The oldest leaves when another is put in front."""
MIN_RSA_BITS: Final = 2_048
TYP: Final = "secevent+jwt"
"""Explicit typing of SETs (RFC 8417 section 2.3): nobody takes one for an access token, or the other way round."""

_PUBLIC: Final = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}
"""What a key of this type is, in the order of RFC 7638 section 3.3."""
_ANEW: Final = "Make one: python -m transmitter keys --help"


class KeysRefused(Exception):
    """A key file cannot be used. The message says what to do about it."""


class _JwkSet(Struct, frozen=True):
    keys: tuple[dict[str, Any], ...]


class Signer:
    """Signs SETs with the first of these keys (`kid`, private and public halves as JWKs). Raises `KeysRefused`."""

    def __init__(self, keys: tuple[dict[str, Any], ...], *, where: str = "the key set") -> None:
        if not 0 < len(keys) <= MAX_KEYS:
            raise KeysRefused(f"{where} has {len(keys)} keys; 1 to {MAX_KEYS} were expected. {_ANEW}")
        self._algorithm, self._key = _private(keys[0], where)
        self._kid = kid_of(keys[0], where)
        public = [_public(each, where) for each in keys]
        if len({each["kid"] for each in public}) < len(public):
            raise KeysRefused(f"{where} has two keys with one `kid`. Remove one of them.")
        self.jwks: Final = msgspec.json.encode({"keys": public})
        """The public halves of all, as `jwks_uri` serves them."""

    def sign(self, claims: dict[str, Any]) -> str:
        """The SET with these claims, as a JWS in compact form (RFC 8417 section 2)."""
        return jwt.encode(claims, self._key, algorithm=self._algorithm, headers={"typ": TYP, "kid": self._kid})


def _private(jwk: dict[str, Any], where: str) -> tuple[str, EllipticCurvePrivateKey | RSAPrivateKey]:
    try:
        key = jwt.PyJWK(jwk, algorithm="ES256" if jwk.get("kty") == "EC" else "RS256").key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise KeysRefused(f"The first key of {where} is not understood: {type(error).__name__}. {_ANEW}") from None
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
        return "ES256", key
    if isinstance(key, RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return "RS256", key
    raise KeysRefused(
        f"The first key of {where} must be private, of P-256 or of RSA with {MIN_RSA_BITS} bits or more. {_ANEW}"
    )


def kid_of(jwk: dict[str, Any], where: str = "the key set") -> str:
    """The key's own `kid`, or else its thumbprint (RFC 7638). Raises `KeysRefused`."""
    kid = jwk.get("kid")
    if isinstance(kid, str) and kid:
        return kid
    members = {name: jwk.get(name) for name in _PUBLIC.get(str(jwk.get("kty")), ())}
    if not members or not all(isinstance(value, str) for value in members.values()):
        raise KeysRefused(f"{where} has a key that is neither EC nor RSA, or not whole. {_ANEW}")
    digest = hashlib.sha256(msgspec.json.encode(members)).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _public(jwk: dict[str, Any], where: str) -> dict[str, Any]:
    """The public half alone: of members that we do not know, nobody knows whether they are secret."""
    kid = kid_of(jwk, where)
    names = _PUBLIC.get(str(jwk.get("kty")))
    if names is None or not all(isinstance(jwk.get(name), str) for name in names):
        raise KeysRefused(f"{where} has a key that is neither EC nor RSA, or not whole. {_ANEW}")
    algorithm = "ES256" if jwk["kty"] == "EC" else "RS256"
    return {**{name: jwk[name] for name in names}, "kid": kid, "use": "sig", "alg": algorithm}


def jwk_of(key: EllipticCurvePrivateKey) -> dict[str, Any]:
    """A private P-256 key as a JWK (RFC 7518 section 6.2)."""
    numbers = key.private_numbers()

    def text(number: int) -> str:
        return base64.urlsafe_b64encode(number.to_bytes(32, "big")).decode().rstrip("=")

    public = numbers.public_numbers
    return {"kty": "EC", "crv": "P-256", "x": text(public.x), "y": text(public.y), "d": text(numbers.private_value)}


def read_keys(path: Path) -> tuple[dict[str, Any], ...]:
    """The JWKs of a file that nobody else may read. Raises `KeysRefused`."""
    try:
        return msgspec.json.decode(_read_private(path), type=_JwkSet).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise KeysRefused(f"The key file {path} is no JWK Set. {_ANEW}") from None


def load_signer(path: Path) -> Signer:
    """The signer that a key file holds. Raises `KeysRefused`."""
    return Signer(read_keys(path), where=f"the key file {path}")


def put_in_front(path: Path, jwk: dict[str, Any]) -> None:
    """Let this key sign from the next start on; older ones keep their public half. Raises `KeysRefused`, `OSError`."""
    older = read_keys(path) if path.exists() else ()
    public = [_public(each, f"the key file {path}") for each in older]
    keys = [{**jwk, "kid": kid_of(jwk), "use": "sig", "alg": "ES256"}, *public][:MAX_KEYS]
    Signer(tuple(keys))
    write_private(path, msgspec.json.format(msgspec.json.encode({"keys": keys}), indent=2) + b"\n")


def load_sealing_key(path: Path) -> bytes:
    """The 256-bit key in a file, base64 on one line. Raises `KeysRefused`."""
    try:
        key = base64.b64decode(_read_private(path).strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != sealed.KEY_BYTES:
        raise KeysRefused(f"The key file {path} does not hold {sealed.KEY_BYTES} bytes in base64. {_ANEW}")
    return key


def sealing_key_text(key: bytes) -> bytes:
    """What the file of a sealing key holds."""
    return base64.b64encode(key) + b"\n"


def write_private(path: Path, body: bytes) -> None:
    """Replace a file, readable by its owner alone. A crash leaves the old or the new one, whole. Raises `OSError`."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as temporary:
            temporary.write(body)
            temporary.flush()
            os.fsync(temporary.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            body = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise KeysRefused(f"There is no key file {path}. {_ANEW}") from None
    except OSError as error:
        raise KeysRefused(f"The key file {path} cannot be read: {error.strerror}. Check its path and owner.") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeysRefused(f"The key file {path} is open to other accounts. Close it: chmod 600 {path}")
    if len(body) > MAX_FILE_BYTES:
        raise KeysRefused(f"The key file {path} has more than {MAX_FILE_BYTES} bytes. {_ANEW}")
    return body
