"""What is read out of a registration: its family, its flags, its domains."""

import pytest

from appraisal import families
from grantbook.events import ClientMetadata
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
        (metadata("agent", redirect_uris=PLAIN.redirect_uris), False),
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
