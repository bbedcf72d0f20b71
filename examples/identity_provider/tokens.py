"""Access tokens: JWTs as RFC 9068 has them, signed with a key that is made at the first start."""

import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

ACCESS_SECONDS: Final = 300
"""Short, although a revocation does not wait for it: see the MCP server beside this."""
ALGORITHM: Final = "ES256"


class Signer:
    """Signs access tokens of one issuer."""

    def __init__(self, issuer: str, key_file: Path) -> None:
        self._issuer = issuer
        if not key_file.exists():
            made = ECKey.generate_key("P-256", {"kid": secrets.token_hex(8), "use": "sig", "alg": ALGORITHM})
            with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(json.dumps(made.as_dict(private=True)).encode())
        self._key = ECKey.import_key(json.loads(key_file.read_bytes()))

    def jwks(self) -> dict[str, Any]:
        """The public key as a JWK Set (RFC 7517)."""
        return {"keys": [self._key.as_dict(private=False)]}

    def access_token(
        self, *, client_id: str, grant_id: str, user_id: str, scope: str, audience: str, issued_at: int
    ) -> str:
        """A token. `issued_at` was fixed before the grant's state was looked at."""
        header = {"typ": "at+jwt", "alg": ALGORITHM, "kid": self._key.kid}
        claims = {
            "iss": self._issuer,
            "aud": audience,
            "sub": user_id,
            "client_id": client_id,
            "grant_id": grant_id,
            "scope": scope,
            "iat": issued_at,
            "exp": issued_at + ACCESS_SECONDS,
            "jti": secrets.token_urlsafe(16),
        }
        return jwt.encode(header, claims, self._key, algorithms=[ALGORITHM])

    def claims(self, token: str) -> dict[str, Any] | None:
        """The claims of one of our own tokens, expired or not; None of any other."""
        try:
            found = jwt.decode(token, self._key, algorithms=[ALGORITHM])
        except (JoseError, ValueError):
            return None
        return dict(found.claims) if found.header.get("typ") == "at+jwt" else None
