"""What is read out of a registration: its family, and its domains."""

import json

import pytest

from appraisal import families
from grantbook.events import ClientMetadata
from registry import documents
from registry import metadata as registered
from registry.statements import Statements
from tests.projector.given import metadata

PLAIN = metadata("Agent", redirect_uris=("http://127.0.0.1:3000/cb", "https://agent.example/cb"))


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (metadata("Agent", redirect_uris=("https://agent.example/cb", "http://127.0.0.1:3000/cb")), True),
        (metadata("Agent", redirect_uris=("http://127.0.0.1:61234/cb", "https://agent.example/cb")), True),
        (metadata("Agent", redirect_uris=("http://127.0.0.1/cb", "https://agent.example/cb")), True),
        (metadata("Agent", redirect_uris=("http://127.0.0.1/other", "https://agent.example/cb")), False),
        (metadata("Agent", redirect_uris=("http://127.0.0.1/cb", "https://agent.example:8443/cb")), False),
        (metadata("AGENT", redirect_uris=PLAIN.redirect_uris), True),
        (metadata("Agents", redirect_uris=PLAIN.redirect_uris), False),
        (metadata(None, redirect_uris=PLAIN.redirect_uris), False),
        (metadata("Agent", redirect_uris=PLAIN.redirect_uris, application_type="web"), False),
        (metadata("Agent", redirect_uris=PLAIN.redirect_uris, response_types=()), False),
        (metadata("Agent", redirect_uris=PLAIN.redirect_uris, client_uri="https://agent.example/"), True),
        (metadata("Agent", redirect_uris=PLAIN.redirect_uris, software_id="x"), False),
        (metadata("Agent", redirect_uris=PLAIN.redirect_uris, software_version="2"), True),
        (metadata("Agent", redirect_uris=PLAIN.redirect_uris, token_endpoint_auth_method="private_key_jwt"), False),
    ],
)
def test_what_says_the_same_is_one_family(other: ClientMetadata, alike: bool) -> None:
    """Admins: installations of one agent are one family, and nobody else's agent slips into it."""
    assert (families.family(PLAIN) == families.family(other)) is alike


@pytest.mark.parametrize(
    ("uris", "domains"),
    [
        (("http://localhost:1/cb", "http://[::1]:2/cb"), ["localhost", "::1"]),
        (("http://127.9.9.9/cb",), ["127.9.9.9"]),
        (("https://A.b.Example/cb",), ["a.b.example", "b.example", "example"]),
        (("https://b.example/cb", "https://a.b.example"), ["b.example", "example", "a.b.example"]),
        (("com.example.app:/cb", "http://127.0.0.1/cb"), ["127.0.0.1"]),
        (("https://[broken/cb", "https://x:99999/cb", "https://u@evil.example/"), []),
        (("https://" + ".".join("abcdefghijklmno") + "/",), None),
        ((), []),
    ],
)
def test_domains_are_those_of_the_redirects(uris: tuple[str, ...], domains: list[str] | None) -> None:
    """Admins: what they filter by is what a browser would go to. Operators: a row stays small."""
    found = families.redirect_domains(metadata(redirect_uris=uris))
    if domains is None:
        assert len(found) == 1 + families.MAX_PARENT_DOMAINS
    else:
        assert found == domains


def test_a_redirect_that_no_longer_parses_is_in_the_family_as_it_stands() -> None:
    """Operators: a log that is older than a rule is read all the same."""
    odd = [metadata("A", redirect_uris=(each,)) for each in ("http://u@localhost:1/", "http://u@localhost:2/")]
    assert families.family(odd[0]) != families.family(odd[1])


def test_a_name_is_one_name_however_it_is_encoded() -> None:
    """Admins: a log that is older than the rule that names are kept in NFC splits no family."""
    spelled = ("B\u00fccher", "Bu\u0308cher", "B\u00dcCHER", "BU\u0308CHER")
    assert len({families.family(metadata(each)) for each in spelled}) == 1


def test_a_port_in_an_apps_own_uri_counts() -> None:
    """Admins: only a port of this machine's is a matter of chance; what an app of another scheme reads there is not."""
    odd = [metadata("A", redirect_uris=(each,)) for each in ("app://localhost:1/", "app://localhost:2/")]
    assert families.family(odd[0]) != families.family(odd[1])


def test_how_a_client_became_known_makes_no_other_family() -> None:
    """Admins: one agent is one family, whether it registered itself or stands under a URL of its own."""
    client_id = "https://agent.example/client.json"
    members = {
        "client_name": "Agent",
        "redirect_uris": ["http://localhost:3000/cb"],
        "grant_types": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_method": "none",
    }
    document = json.dumps(members | {"client_id": client_id}).encode()
    claims = Statements((), audience="https://id.example").claims
    found = documents.check(client_id, document, claims=claims)
    assert families.family(found) == families.family(registered.check(members))
