"""An issuer of access tokens: keys, a JWK Set, and tokens as they should and should not be."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://idp.example"
AUDIENCE = "https://mcp.example/mcp"
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65_537, 2_048)
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, algorithm: str, kid: str, **more: Any) -> dict[str, Any]:
    """The public JWK of a key."""
    algorithms = jwt.get_algorithm_by_name(algorithm)
    made: dict[str, Any] = json.loads(algorithms.to_jwk(key.public_key()))
    return made | {"kid": kid} | more


KEYS: dict[str, Any] = {
    "keys": [
        public(EC, "ES256", "ec", alg="ES256", use="sig"),
        public(RSA, "RS256", "rsa"),
        public(ED, "EdDSA", "ed"),
        public(OTHER, "ES256", "enc", use="enc"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"},
        "no key at all",
    ]
}


def claims(**more: Any) -> dict[str, Any]:
    """Claims of a good token; None leaves one out."""
    now = int(time.time())
    all_ = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "client_id": "c",
        "grant_id": "g",
        "iat": now,
        "exp": now + 300,
        "scope": "read write",
        "jti": "1",
    } | more
    return {name: value for name, value in all_.items() if value is not None}


def token(key: Any = EC, algorithm: str = "ES256", kid: str | None = "ec", typ: str = "at+jwt", **more: Any) -> str:
    """A token; `header_...` members go into its header."""
    header = {name.removeprefix("header_"): more.pop(name) for name in list(more) if name.startswith("header_")}
    if kid is not None:
        header["kid"] = kid
    return jwt.encode(claims(**more), key, algorithm, headers=header | {"typ": typ})
