"""What agents may register: clause by clause, and against hostile input."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grantbook.events import ClientMetadata
from registry import metadata
from registry.metadata import MetadataRefused
from registry.statements import Statements

AGENTS = {
    each["agent"]: each["request"] for each in json.loads(Path("tests/fixtures/agent-registrations.json").read_bytes())
}
REDIRECTS = ["https://agent.example/cb"]
MINIMAL = {
    "redirect_uris": REDIRECTS,
    "token_endpoint_auth_method": "client_secret_basic",
    "grant_types": ["authorization_code"],
    "response_types": ["code"],
    "application_type": "web",
}
RSA = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}
EC = {
    "kty": "EC",
    "crv": "P-256",
    "x": "AA",
    "y": "BB",
    "kid": "1",
    "use": "sig",
    "alg": "ES256",
    "key_ops": ["verify"],
}
JWS = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln"


def parse(body: bytes) -> ClientMetadata:
    """As registration does, with no issuer trusted."""
    return metadata.check(metadata.members_of(body), claims=Statements((), audience="https://id.example").claims)


def registered(**members: Any) -> dict[str, object]:
    """What a client that sends these members, and a redirect URI, is answered."""
    return metadata.render(parse(json.dumps({"redirect_uris": REDIRECTS} | members).encode()))


def refusal(body: bytes) -> MetadataRefused:
    with pytest.raises(MetadataRefused) as refused:
        parse(body)
    assert refused.value.description.isascii()
    assert refused.value.description.isprintable()
    return refused.value


def error_of(**members: Any) -> str:
    return refusal(json.dumps({"redirect_uris": REDIRECTS} | members).encode()).error


NATIVE = {"application_type": "native"}
FINAL = {
    "Claude.ai custom connector": {"application_type": "web"},
    "Claude Code": NATIVE,
    "Cursor": NATIVE,
    "LM Studio": NATIVE
    | {
        "token_endpoint_auth_method": "client_secret_basic",
        "grant_types": ["authorization_code"],
        "response_types": ["code"],
    },
    "mcp-remote": NATIVE,
    "ChatGPT connector": {"application_type": "web"},
}


@pytest.mark.parametrize("agent", AGENTS)
def test_real_agents_are_registered_as_they_asked(agent: str) -> None:
    """People whose agent must connect: each value as sent, and nothing added but the defaults."""
    sent = AGENTS[agent]
    found = parse(json.dumps(sent).encode())
    assert metadata.render(found) == sent | FINAL[agent]
    assert metadata.needs_secret(found) is (agent == "LM Studio")


LONG = "a" * 2_048
CLAUSES_TAKEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("RFC 7591 2: defaults", {}, {}),
    ("RFC 7591 2: null is as absent", dict.fromkeys(("client_name", "grant_types", "jwks", "contacts", "scope")), {}),
    (
        "an empty string is as absent",
        dict.fromkeys(("client_name", "grant_types", "jwks_uri", "scope", "contacts"), ""),
        {},
    ),
    ("no contacts are as absent", {"contacts": []}, {}),
    (
        "RFC 7591 2: refresh tokens",
        {"grant_types": ["authorization_code", "refresh_token"]},
        {"grant_types": ["authorization_code", "refresh_token"]},
    ),
    ("a repeated grant type counts once", {"grant_types": ["authorization_code"] * 2}, {}),
    ("RFC 7591 2: public client", {"token_endpoint_auth_method": "none"}, {"token_endpoint_auth_method": "none"}),
    (
        "RFC 7591 2: secret in the body",
        {"token_endpoint_auth_method": "client_secret_post"},
        {"token_endpoint_auth_method": "client_secret_post"},
    ),
    (
        "RFC 7591 2: jwks",
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [RSA, EC], "more": 1}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [RSA, EC]}},
    ),
    (
        "RFC 7591 2: jwks_uri",
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://a.example/k", "jwks": None},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://a.example/k"},
    ),
    (
        "RFC 7517 4: unknown members of keys are dropped, and URLs in keys",
        {"jwks": {"keys": [RSA | {"x5u": "https://a.example", "z": {"d": 1}, "kid": ""}]}},
        {"jwks": {"keys": [RSA]}},
    ),
    ("RFC 7591 2: name", {"client_name": "a" * 200}, {"client_name": "a" * 200}),
    (
        "a name in any script",
        {"client_name": "Agent \u05d0 \U0001f916"},
        {"client_name": "Agent \u05d0 \U0001f916"},
    ),
    ("a name is kept in NFC", {"client_name": "Cafe\u0301"}, {"client_name": "Caf\u00e9"}),
    ("RFC 6749 3.3: scope", {"scope": "a b:c !#[]~"}, {"scope": "a b:c !#[]~"}),
    ("RFC 7591 2: contacts", {"contacts": ["a@b.example", ""]}, {"contacts": ["a@b.example"]}),
    (
        "RFC 7591 2: software",
        {"software_id": "4NRB1", "software_version": "2.2"},
        {"software_id": "4NRB1", "software_version": "2.2"},
    ),
    (
        "RFC 7591 2.2: languages, as sent",
        {
            "client_name#ja-Jpan-JP": "\u30af",
            "tos_uri#fr": "http://f.example/",
            "client_name#de": "",
            "logo_uri#x": None,
        },
        {"client_name#ja-Jpan-JP": "\u30af", "tos_uri#fr": "http://f.example/"},
    ),
    (
        "RFC 7591 2: pages of the client, on any host",
        {name: f"http://other.example/{name}?a=1#b" for name in ("client_uri", "logo_uri", "tos_uri", "policy_uri")},
        {name: f"http://other.example/{name}?a=1#b" for name in ("client_uri", "logo_uri", "tos_uri", "policy_uri")},
    ),
    (
        "members of the server and unknown ones are ignored",
        {
            "client_id": "mine",
            "client_id_issued_at": 1,
            "client_secret": "x",
            "client_secret_expires_at": 0,
            "registration_access_token": "x",
            "registration_client_uri": "x",
            "source": "manual",
            "status": "active",
            "localized": {"a": "b"},
            "trusted": True,
            "id_token_signed_response_alg": "none",
            "client_id#en": "x",
        },
        {},
    ),
    ("OpenID: native by choice", {"application_type": "native"}, {"application_type": "native"}),
    (
        "web beside a loopback redirect is derived",
        {"application_type": "web", "redirect_uris": [*REDIRECTS, "http://127.0.0.1/cb"]},
        {"application_type": "native", "redirect_uris": [*REDIRECTS, "http://127.0.0.1/cb"]},
    ),
    (
        "32 redirects",
        {"redirect_uris": [f"https://a.example/{number}" for number in range(32)]},
        {"redirect_uris": [f"https://a.example/{number}" for number in range(32)]},
    ),
]


@pytest.mark.parametrize(("sent", "final"), [row[1:] for row in CLAUSES_TAKEN], ids=[row[0] for row in CLAUSES_TAKEN])
def test_what_the_standard_allows_is_registered(sent: dict[str, Any], final: dict[str, Any]) -> None:
    """Agents get what RFC 7591 promises, and read it from the answer."""
    assert registered(**sent) == MINIMAL | final


def _any(*values: Any) -> tuple[Any, ...]:
    return values


METADATA = "invalid_client_metadata"
REDIRECT = "invalid_redirect_uri"
CLAUSES_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *[(f"redirect_uris {value!r:.20}", {"redirect_uris": value}, REDIRECT)
      for value in _any(None, "", [], "https://a.example", {}, [None], [1], [""], [[]], REDIRECTS * 33)],
    *[(f"grant_types {value!r}", {"grant_types": value}, METADATA)
      for value in _any([], ["refresh_token"], ["implicit"], ["authorization_code", "client_credentials"], ["password"],
                    "authorization_code", {"authorization_code": 1}, [None], [["authorization_code"]], 1,
                    ["authorization_code "], ["Authorization_Code"], ["authorization_code"] * 17)],
    *[(f"response_types {value!r}", {"response_types": value}, METADATA)
      for value in _any([], ["token"], ["code", "id_token"], ["code token"], "code", [None], ["none"], {})],
    *[(f"token_endpoint_auth_method {value!r}", {"token_endpoint_auth_method": value}, METADATA)
      for value in _any("client_secret_jwt", "tls_client_auth", "NONE", 1, ["none"], {}, True, "private_key_jwt")],
    *[(f"application_type {value!r}", {"application_type": value}, METADATA) for value in _any("service", 1, ["web"])],
    ("RFC 7591 2: jwks and jwks_uri", {"jwks": {"keys": [RSA]}, "jwks_uri": "https://a.example/"}, METADATA),
    *[(f"jwks {value!r:.40}", {"jwks": value}, METADATA)
      for value in _any([], "{}", 1, {}, {"keys": []}, {"keys": {}}, {"keys": [RSA] * 21}, {"keys": [1]},
                         {"keys": [[]]})],
    *[(f"jwk {value!r:.40}", {"jwks": {"keys": [value]}}, METADATA)
      for value in _any({}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": "AA"}, {"kty": ["RSA"]}, {"kty": "XYZ"},
                    RSA | {"n": ""}, RSA | {"n": "+/="}, RSA | {"n": 5}, RSA | {"n": "A" * 4_097}, RSA | {"kid": {}},
                    RSA | {"key_ops": "verify"}, RSA | {"x5c": ["A"] * 9}, RSA | {"x5c": [[]]}, {"kty": "oct"},
                    {"kty": "oct", "k": "AA"}, EC | {"crv": "P-999"}, EC | {"crv": "Ed25519"}, RSA | {"alg": "none"},
                    RSA | {"alg": "HS256"}, RSA | {"alg": "A128KW"})],
    *[(f"private member {name}", {"jwks": {"keys": [RSA, RSA | {name: "AA"}]}}, METADATA)
      for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv")],
    *[(f"{name} {value!r:.30}", {name: value}, METADATA)
      for name in ("client_name", "software_id", "software_version", "scope")
      for value in _any(1, True, [], ["a"], {"a": "b"}, 1.5, "a" * 4_097, "a\n", "a\x00", "\x1b[2J", "a\x7f", "a\x9b",
                         "javascript:alert(1)", "JavaScript:x")],
    *[(f"client_name {value!a}", {"client_name": value}, METADATA)
      for value in _any("a" * 201, "\u202eedualC", "a\u2066b", "a\u202a", "a\u2028b")],
    *[(f"RFC 6749 3.3: scope {value!a}", {"scope": value}, METADATA)
      for value in _any('a"b', "a\\b", "\u00e4", " a", "a ", "a  b", " ")],
    *[(f"contacts {value!r:.30}", {"contacts": value}, METADATA)
      for value in _any("a@b.example", {}, [1], [["a"]], ["a"] * 11, ["a" * 321], ["a\n"])],
    *[(f"{name} {value!r:.40}", {name: value}, METADATA)
      for name in ("client_uri", "logo_uri", "tos_uri", "policy_uri", "jwks_uri", "client_uri#en")
      for value in _any(1, [], {}, "a.example", "/a", "//a.example", "javascript:alert(1)", "data:text/html,x",
                    "ftp://a.example", "https://u@a.example/", "https://a.example/\n", "cursor://a", "https://",
                    "https://a.example/" + LONG)],
    *[(f"jwks_uri {value}", {"jwks_uri": value}, METADATA) for value in _any("http://a.example/", "https://a.example/#k")],
    *[(f"RFC 7591 2.2: {name}", {name: "a"}, METADATA)
      for name in ("client_name#", "client_name#<b>", "client_name#en#de", "client_name#" + "a-" * 33 + "a")],
    ("RFC 7591 2.2: name too long", {"client_name#en": "a" * 201}, METADATA),
    ("RFC 7591 2.2: too many", {f"client_name#en-a{number}": "a" for number in range(65)}, METADATA),
    ("RFC 7591 2.3: an issuer not trusted", {"software_statement": JWS}, "unapproved_software_statement"),
    *[(f"RFC 7591 2.3: {value!r}", {"software_statement": value}, "invalid_software_statement")
      for value in _any("x", 1, {}, ["a.b.c"], "a.b.", "a.b.c.d", "a.b.c\n")],
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "error"), [row[1:] for row in CLAUSES_REFUSED], ids=[row[0] for row in CLAUSES_REFUSED]
)
def test_what_does_not_fit_is_refused_with_its_code(sent: dict[str, Any], error: str) -> None:
    """A developer learns which member it was; nothing is fixed up behind the agent's back."""
    assert error_of(**sent) == error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "invalid_request"),
        (b"not json", "invalid_request"),
        (b"\xff{}", "invalid_request"),
        (b'{"client_name": "\xc3"}', "invalid_request"),
        (b'{"client_name": "\\ud800"}', "invalid_request"),
        (b'{"a": NaN}', "invalid_request"),
        (b'{"a": 1}{', "invalid_request"),
        (b"[" * 65_536, "invalid_request"),
        (b'{"a":' * 10_000, "invalid_request"),
        (b"1" * 65_536, "invalid_request"),
        (b"[]", METADATA),
        (b"null", METADATA),
        (b'"{}"', METADATA),
        (b"1e999", METADATA),
        (b'{"redirect_uris": ' + b"9" * 4_000 + b"}", REDIRECT),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_body_that_is_no_registration_is_refused(body: bytes, error: str) -> None:
    """Whatever arrives is an answer of RFC 7591, never a crash."""
    assert refusal(body).error == error


def test_a_lone_surrogate_from_elsewhere_is_refused_too() -> None:
    """A document that another parser read may hold one, and could never be written to the log."""
    with pytest.raises(MetadataRefused):
        metadata.check({"redirect_uris": REDIRECTS, "client_name": "\ud800"})


@pytest.mark.parametrize(
    "body",
    [
        b'{"redirect_uris": ["javascript:x"], "redirect_uris": ["https://a.example/"]}',
        b'{"redirect_uris": ["https://a.example/"], "redirect_uris": ["https://a.example/"]}',
        b'{"redirect_uris": ["https://a.example/"], "unknown": {"a": 1, "\\u0061": 2}}',
    ],
)
def test_a_member_sent_twice_is_refused(body: bytes) -> None:
    """Everyone behind us: which of the two counts is what two parsers differ on (RFC 8259 section 4)."""
    assert refusal(body).error == "invalid_request"


def test_very_many_members_are_refused() -> None:
    """Operators: unknown members are ignored, and so many of them are no registration."""
    members = {str(number): 1 for number in range(metadata.MAX_MEMBERS - 1)}
    assert registered(**members) == MINIMAL
    assert error_of(**members, more=1) == METADATA


def test_a_refusal_repeats_nothing_that_was_sent() -> None:
    """Error descriptions end up in pages and logs of others."""
    for member in (
        "redirect_uris",
        "client_name",
        "scope",
        "jwks_uri",
        "client_name#en",
        "client_name#<hunter2>",
        "jwks",
    ):
        for value in _any("hunter2\x00", ["javascript:hunter2"], {"keys": [{"kty": "hunter2"}]}):
            body = json.dumps({"redirect_uris": REDIRECTS, member: value}).encode()
            assert "hunter2" not in refusal(body).description


JSONISH: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [*ClientMetadata.__struct_fields__, "client_name#en", "tos_uri#de-AT", "client_id", "client_name#"]
)
PLAUSIBLE = st.sampled_from([
    "https://a.example/cb", "http://localhost:1/cb", "http://127.0.0.1/", "com.example:/cb", "cursor://x/y", "", None,
    ["https://a.example/cb", "http://[::1]:8/x"], ["code"], ["authorization_code", "refresh_token"], "none",
    "client_secret_post", "private_key_jwt", {"keys": [RSA]}, {"keys": [EC, RSA]}, "native", "web", "a b",
    ["a@b.example"],
])  # fmt: skip


@given(st.binary(max_size=200) | JSONISH.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_registered_or_refused(body: bytes) -> None:
    """Anonymous callers cannot make a server error."""
    with suppress(MetadataRefused):
        parse(body)


@given(st.dictionaries(NAMES, JSONISH | PLAUSIBLE), st.booleans())
def test_what_is_registered_reads_back_as_itself(members: dict[str, Any], usable: bool) -> None:
    """A client that sends back what it was answered changes nothing (RFC 7592 section 2.2)."""
    if usable:
        members["redirect_uris"] = REDIRECTS
    try:
        found = metadata.check(members)
    except MetadataRefused:
        return
    rendered = metadata.render(found)
    assert parse(msgspec.json.encode(rendered)) == found
    assert not [name for name, value in rendered.items() if value is None or value == ""]
    assert set(rendered) <= {*members, *MINIMAL}
