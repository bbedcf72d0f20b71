"""Software statements (RFC 7591 section 2.3), from issuers that an operator trusts, and from everybody else."""

import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.utils import base64url_encode

from registry import metadata, statements
from registry.metadata import MetadataRefused
from registry.settings import Policy
from registry.statements import Issuer, Statements, StatementsRefused
from tests.registry.over_http import REGISTER, Http

ISSUER = "https://vendor.example"
AUDIENCE = "https://id.example"
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
CLAIMS = {"iss": ISSUER, "software_id": "agent-1", "client_name": "Certified agent"}


def jwk(key: Any, kid: str, algorithm: type[jwt.algorithms.Algorithm]) -> dict[str, Any]:
    public: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return public | {"kid": kid}


EC_JWK = jwk(KEY, "ec", jwt.algorithms.ECAlgorithm)
RSA_JWK = jwk(RSA_KEY, "rsa", jwt.algorithms.RSAAlgorithm)
TRUSTED = Issuer(ISSUER, {"keys": [EC_JWK, RSA_JWK]})
READER = Statements([TRUSTED], audience=AUDIENCE)


def signed(claims: dict[str, Any], *, key: Any = KEY, alg: str = "ES256", **header: Any) -> str:
    # Not `jwt.encode`, which refuses what a careless issuer may say.
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm=alg, headers={"kid": "ec"} | header)


def refusal(statement: Any, reader: Statements = READER) -> str:
    with pytest.raises(MetadataRefused) as refused:
        metadata.check(
            {"redirect_uris": ["https://a.example/cb"], "software_statement": statement}, claims=reader.claims
        )
    assert refused.value.description.isascii()
    return refused.value.error


def test_claims_win_over_the_members_beside_them() -> None:
    """Admins: RFC 7591 section 2.3; what a trusted issuer says is not for the client to change."""
    statement = signed(CLAIMS)
    sent = {
        "redirect_uris": ["https://a.example/cb"],
        "client_name": "Anything",
        "scope": "read",
        "client_name#en": "Anything else",
        "software_statement": statement,
    }
    found = metadata.render(metadata.check(sent, claims=READER.claims))
    assert found["client_name"] == "Certified agent"
    assert found["software_id"] == "agent-1"
    assert found["scope"] == "read"
    assert "client_name#en" not in found
    assert found["software_statement"] == statement


def test_claims_are_checked_like_members() -> None:
    """Everyone: a trusted issuer may be careless too."""
    assert refusal(signed(CLAIMS | {"client_name": "a\u202eb"})) == "invalid_client_metadata"
    assert refusal(signed(CLAIMS | {"redirect_uris": ["javascript:alert(1)"]})) == "invalid_redirect_uri"


@pytest.mark.parametrize(
    "statement",
    [
        signed(CLAIMS | {"exp": int(time.time()) + 600, "aud": AUDIENCE}),
        signed(CLAIMS | {"aud": ["https://other.example", AUDIENCE]}),
        jwt.encode(CLAIMS, KEY, algorithm="ES256"),
        signed(CLAIMS, key=RSA_KEY, alg="PS256", kid="rsa"),
        jwt.encode(CLAIMS, RSA_KEY, algorithm="RS256"),
    ],
    ids=["not expired, for us", "for us too", "without a key id", "RSA", "the second key, without a key id"],
)
def test_statements_of_trusted_issuers_are_approved(statement: str) -> None:
    """Vendors: each way in which a statement may be right."""
    assert READER.claims(statement) == {"software_id": "agent-1", "client_name": "Certified agent"}


PUBLIC_AS_SECRET = json.dumps(EC_JWK).encode()
HEADER_AND_CLAIMS = b".".join(
    base64url_encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "ec"}, CLAIMS)
)
SYMMETRIC = b".".join(
    [HEADER_AND_CLAIMS, base64url_encode(hmac.digest(PUBLIC_AS_SECRET, HEADER_AND_CLAIMS, "sha256"))]
).decode()
UNSIGNED = jwt.encode(CLAIMS, "", algorithm="none", headers={"kid": "ec"})
TAMPERED = signed(CLAIMS)[:-8] + "AAAAAAAA"


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (1, "invalid_software_statement"),
        ("no JWT", "invalid_software_statement"),
        ("a.b.c", "invalid_software_statement"),
        ("a" * 20_000, "invalid_software_statement"),
        (signed({"software_id": "x"}), "invalid_software_statement"),
        (signed(CLAIMS | {"iss": 1}), "invalid_software_statement"),
        (signed(CLAIMS | {"iss": "https://stranger.example"}), "unapproved_software_statement"),
        (signed(CLAIMS, key=OTHER_KEY), "invalid_software_statement"),
        (TAMPERED, "invalid_software_statement"),
        (SYMMETRIC, "invalid_software_statement"),
        (UNSIGNED, "invalid_software_statement"),
        (signed(CLAIMS, kid="unknown"), "invalid_software_statement"),
        (signed(CLAIMS, key=RSA_KEY, alg="RS256"), "invalid_software_statement"),
        (signed(CLAIMS | {"exp": 1}), "invalid_software_statement"),
        (signed(CLAIMS | {"exp": "soon"}), "invalid_software_statement"),
        (signed(CLAIMS | {"exp": float("inf")}), "invalid_software_statement"),
        (signed(CLAIMS | {"nbf": 9_999_999_999}), "invalid_software_statement"),
        (signed(CLAIMS | {"aud": "https://other.example"}), "invalid_software_statement"),
        (signed(CLAIMS, crit=["b64"], b64=True), "invalid_software_statement"),
        (
            signed(CLAIMS, key=OTHER_KEY, jwk=jwk(OTHER_KEY, "ec", jwt.algorithms.ECAlgorithm)),
            "invalid_software_statement",
        ),
        (signed(CLAIMS, key=OTHER_KEY, jku="https://evil.example/jwks"), "invalid_software_statement"),
    ],
)
def test_every_other_statement_is_refused(statement: Any, error: str) -> None:
    """Admins: RFC 7591 section 3.2.2; nothing in a statement chooses how it is checked."""
    assert refusal(statement) == error


def test_an_issuer_may_speak_for_its_own_software_alone() -> None:
    """Admins: a vendor is trusted for what it makes."""
    reader = Statements([Issuer(ISSUER, {"keys": [EC_JWK]}, ("other",))], audience=AUDIENCE)
    assert refusal(signed(CLAIMS), reader) == "unapproved_software_statement"
    assert refusal(signed(CLAIMS | {"software_id": ["other"]}), reader) == "unapproved_software_statement"


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [{"kty": "oct", "k": "AAAA"}],
        [EC_JWK | {"alg": "RS256"}],
        [jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)],
        [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}],
        [{"kty": "EC"}],
    ],
)
def test_a_file_of_issuers_with_unfit_keys_is_refused(tmp_path: Path, keys: list[Any]) -> None:
    """Operators: they hear of it when they start, and not from a vendor."""
    file = tmp_path / "issuers.json"
    file.write_text(json.dumps([{"issuer": ISSUER, "jwks": {"keys": keys}}]))
    with pytest.raises(StatementsRefused, match=r"issuers\.json"):
        statements.load(file, audience=AUDIENCE)


def test_a_file_of_issuers_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Operators: a typing error does not turn statements off."""
    with pytest.raises(StatementsRefused, match="cannot be read"):
        statements.load(tmp_path / "missing.json", audience=AUDIENCE)


class TestOverHttp:
    """A registry that trusts an issuer."""

    @pytest.fixture
    def policy(self, tmp_path: Path) -> Policy:
        file = tmp_path / "issuers.json"
        file.write_text(json.dumps([{"issuer": ISSUER, "jwks": {"keys": [EC_JWK]}}]))
        return Policy(software_statement_issuers=file)

    async def test_the_statement_is_answered_as_it_was_sent(self, http: Http) -> None:
        """Agents: RFC 7591 section 3.2.1: returned unmodified, with the values that were taken from it."""
        statement = signed(CLAIMS)
        sent = {"redirect_uris": ["https://a.example/cb"], "software_statement": statement}
        answer = await http.post(REGISTER, json=sent)
        assert answer.status_code == 201
        assert answer.json()["software_statement"] == statement
        assert answer.json()["client_name"] == "Certified agent"

    async def test_a_statement_of_a_stranger_is_not_approved(self, http: Http) -> None:
        """Admins: and says so by its own error."""
        sent = {"redirect_uris": ["https://a.example/cb"], "software_statement": signed(CLAIMS | {"iss": "x"})}
        answer = await http.post(REGISTER, json=sent)
        assert answer.status_code == 400
        assert answer.json()["error"] == "unapproved_software_statement"
