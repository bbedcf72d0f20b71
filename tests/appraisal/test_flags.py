"""Flags: what an admin should see at a glance, and what honest agents must not be accused of."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appraisal import flags, products
from grantbook.events import ClientMetadata

AGENTS = json.loads(Path("tests/fixtures/agent-registrations.json").read_bytes())
IMPOSTOR = {"known_name_unknown_host", "look_alike_name", "mixed_script_name", "mixed_script_host", "other_site"}


def said(name: str | None = "Agent", *redirects: str, **more: str) -> ClientMetadata:
    return ClientMetadata(
        redirect_uris=redirects or ("https://agent.example/cb",),
        token_endpoint_auth_method="none",
        grant_types=("authorization_code",),
        client_name=name,
        client_uri=more.get("client_uri"),
        logo_uri=more.get("logo_uri"),
        tos_uri=more.get("tos_uri"),
        localized={key: value for key, value in more.items() if "#" in key},
    )


@pytest.mark.parametrize("agent", AGENTS, ids=[each["agent"] for each in AGENTS])
def test_real_agents_are_not_taken_for_impostors(agent: dict[str, dict[str, list[str]]]) -> None:
    """Admins: a flag that honest agents carry is one that nobody looks at."""
    request = agent["request"]
    found = flags.of_metadata(said(str(request["client_name"]), *request["redirect_uris"]))
    assert not IMPOSTOR & set(found)
    assert ("private_use_scheme" in found) is (agent["agent"] == "Cursor")


ATTACKS = [
    (said("Claude", "https://evil.example/cb"), ["known_name_unknown_host"]),
    (said("claude-desktop", "https://claude.ai.evil.example/cb"), ["known_name_unknown_host"]),
    (said("Claude", "https://claude.ai/cb", "https://evil.example/cb"), ["known_name_unknown_host"]),
    (said("Claude", "https://notclaude.ai/cb"), ["known_name_unknown_host"]),
    (said("Cl\u0430ude", "https://claude.ai/cb"), ["look_alike_name", "mixed_script_name"]),
    (said("C1aude", "https://claude.ai/cb"), ["look_alike_name"]),
    (said("C l a u d e", "https://evil.example/cb"), ["known_name_unknown_host"]),
    (said("ChatGPT", "http://localhost:1/cb"), ["known_name_unknown_host", "loopback_only"]),
    (said("Cursor", "vscode://evil/cb"), ["known_name_unknown_host", "private_use_authority", "private_use_scheme"]),
    (said("Agent", "https://xn--80ak6aa92e.com/cb"), ["punycode_host", "mixed_script_host"]),
    (said("Agent", "https://xn--bcher-kva.example/cb"), ["punycode_host"]),
    (said("Agent", "https://203.0.113.7/cb"), ["ip_literal_host"]),
    (said("Agent", "https://[2001:db8::1]/cb"), ["ip_literal_host"]),
    (said("Agent", "com.example.app:/cb"), ["private_use_scheme"]),
    (said("Agent", "http://localhost/cb", "http://[::1]/cb"), ["loopback_only"]),
    (said("Agent", "http://localhost/cb", "https://agent.example/cb"), []),
    (said(client_uri="https://other.example/"), ["other_site"]),
    (said(logo_uri="https://cdn.agent.example/logo.png"), []),
    (said("Agent", "https://a.github.io/cb", client_uri="https://b.github.io/"), ["other_site"]),
    (said("Agent", "http://localhost/cb", client_uri="https://agent.example/"), ["loopback_only"]),
    (said(**{"tos_uri#de": "https://other.example/"}), ["other_site"]),
    (said("Agent", **{"client_name#ru": "Cl\u0430ude"}), ["look_alike_name", "mixed_script_name"]),
    (said("Claudette", "https://evil.example/cb"), []),
    (said("Precursor", "https://evil.example/cb"), []),
    (said(None), []),
]


@pytest.mark.parametrize(("metadata", "expected"), ATTACKS)
def test_what_is_odd_is_flagged(metadata: ClientMetadata, expected: list[str]) -> None:
    """Admins: published attacks, and their honest neighbours."""
    assert flags.of_metadata(metadata) == sorted(expected, key=flags.ALL.index)


def test_every_flag_has_a_sentence() -> None:
    """Admins: "why flagged" is never empty."""
    assert all(re.fullmatch(r"[A-Z0-9].*\.", each) for each in flags.SENTENCES.values())
    assert set(flags.FROM_HISTORY) < set(flags.ALL)


def test_known_products_are_known_at_their_own_hosts() -> None:
    """Whoever extends the list: each product claims its own names, and only by spelling."""
    for product in products.KNOWN:
        for spelling in product.spellings:
            claims = products.claimed(spelling.title())
            assert any(claim.product == product and claim.spelled for claim in claims), spelling
        assert all(host == host.lower() and "/" not in host for host in product.hosts)


def test_hosts_are_those_on_the_web() -> None:
    """Admins: whether a host is new is asked of hosts that somebody else can be at."""
    metadata = said(
        "A", "https://B.example/", "http://localhost/", "cursor://x/", "https://b.example/2", "https://c.example"
    )
    assert flags.redirect_hosts(metadata) == ["b.example", "c.example"]


@given(
    st.text(max_size=100),
    st.lists(st.text(max_size=60) | st.from_regex(r"https?://[a-z.0-9\[\]:@-]{0,30}"), max_size=5),
)
def test_any_metadata_has_flags(name: str, redirects: list[str]) -> None:
    """Operators: a log that is older than a rule is shown all the same."""
    found = flags.of_metadata(said(name, *redirects, client_uri=name))
    assert found == sorted(set(found), key=flags.ALL.index)
