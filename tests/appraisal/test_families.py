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
    ("uris", "flags", "domains"),
    [
        (("http://localhost:1/cb", "http://[::1]:2/cb"), ["loopback_only"], ["localhost", "::1"]),
        (("http://127.9.9.9/cb",), ["loopback_only"], ["127.9.9.9"]),
        (("https://A.b.Example/cb",), [], ["a.b.example", "b.example", "example"]),
        (("https://b.example./cb", "https://a.b.example"), [], ["b.example", "example", "a.b.example"]),
        (("com.example.app:/cb", "http://127.0.0.1/cb"), ["private_use_scheme"], ["127.0.0.1"]),
        (("https://[broken/cb", "https://x:99999/cb"), [], []),
        (("https://localhost.example/cb",), [], ["localhost.example", "example"]),
        ((), [], []),
    ],
)
def test_flags_and_domains_are_those_of_the_redirects(
    uris: tuple[str, ...], flags: list[str], domains: list[str]
) -> None:
    """Admins: what they filter by is what a browser would go to."""
    said = metadata(redirect_uris=uris)
    assert families.flags(said) == flags
    assert families.redirect_domains(said) == domains
