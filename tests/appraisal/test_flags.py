"""Flags: what real agents get, what published attacks get, and each rule by itself."""

import json
import time
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appraisal import flags, products
from grantbook.events import ClientMetadata

AGENTS: Final[list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "agent-registrations.json").read_text()
)
IMPOSTOR: Final = {
    *("known_name_unknown_host", "look_alike_name", "mixed_script_name", "mixed_script_host", "other_site"),
    *("ip_literal_host", "punycode_host"),
}


def said(name: str | None, *redirects: str, **members: Any) -> ClientMetadata:
    return ClientMetadata(
        client_name=name,
        redirect_uris=redirects or ("https://agent.example/cb",),
        token_endpoint_auth_method="none",
        grant_types=("authorization_code",),
        response_types=("code",),
        **members,
    )


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("Claude.ai custom connector", []),
        ("Claude Code", ["loopback_only"]),
        ("Cursor", ["private_use_authority", "private_use_scheme"]),
        ("LM Studio", ["loopback_only"]),
        ("mcp-remote", ["loopback_only"]),
        ("ChatGPT connector", []),
    ],
)
def test_real_agents_are_no_impostors(agent: str, expected: list[str]) -> None:
    """Users of real agents, and admins, who would stop reading flags that are always there."""
    sent = next(each["request"] for each in AGENTS if each["agent"] == agent)
    found = flags.of_metadata(said(sent["client_name"], *sent["redirect_uris"]))
    assert found == expected
    assert IMPOSTOR.isdisjoint(found)


def test_no_real_agent_is_forgotten() -> None:
    """Whoever adds an agent to the fixture: it is judged here too."""
    assert len(AGENTS) == 6


@pytest.mark.parametrize(
    ("name", "redirects"),
    [
        ("Claude", ("https://claude.com/api/mcp/auth_callback", "https://claude.ai/api/mcp/auth_callback")),
        ("Cursor", ("cursor://anysphere.cursor-mcp/oauth/callback", "https://www.cursor.com/agents/mcp/oauth/callback",
                    "http://localhost:8787/callback")),
        ("Visual Studio Code", ("http://127.0.0.1:33418/", "https://vscode.dev/redirect", "http://localhost/")),
        ("Visual Studio Code - Insiders", ("https://insiders.vscode.dev/redirect", "http://127.0.0.1/")),
        ("VS Code Copilot", ("https://vscode.dev/redirect",)),
        ("MCP Inspector", ("http://localhost:6274/oauth/callback",)),
        ("OpenAI Codex", ("http://127.0.0.1:1455/callback",)),
        ("Claude for VS Code", ("vscode://anthropic.claude-code/callback",)),
        ("Microsoft Copilot Studio", ("https://global.consent.azure-apim.net/redirect",)),
        ("Le Chat", ("https://callback.mistral.ai/v1/integrations_auth/oauth2_callback",)),
        ("Perplexity", ("https://www.perplexity.ai/rest/connections/oauth_callback",)),
        ("Raycast", ("com.raycast:/oauth?package_name=Extension",)),
        ("Postman", ("https://oauth.pstmn.io/v1/callback",)),
        ("Warp", ("warp://mcp/oauth2callback",)),
        ("Gemini CLI", ("http://localhost:7777/oauth/callback",)),
        ("Zed", ("http://127.0.0.1:49152/callback",)),
        ("Ein Agent f\u00fcr K\u00f6ln", ("https://agent.example/cb",)),
        ("Claudette", ("https://claudette.example/cb",)),
        ("Cursory", ("https://a.example/cb",)),
        ("Precursor", ("https://a.example/cb",)),
        ("Zed's dead baby", ("https://a.example/cb",)),
        ("Wild goose chase", ("https://a.example/cb",)),
        ("\u30af\u30ed\u30fc\u30c9 Agent \u4eba", ("https://a.example/cb",)),
        ("\u041f\u043e\u043c\u043e\u0449\u043d\u0438\u043a", ("https://a.example/cb",)),
        (None, ("https://a.example/cb",)),
    ],
)  # fmt: skip
def test_honest_names_are_not_flagged(name: str | None, redirects: tuple[str, ...]) -> None:
    """Products of the list at their own addresses, and agents whose names only have some letters of theirs."""
    assert IMPOSTOR.isdisjoint(flags.of_metadata(said(name, *redirects)))


@pytest.mark.parametrize(
    ("name", "redirect", "expected"),
    [
        ("Claude", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("Claude Code (octoperf)", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("CLAUDE-desktop", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("C l a u d e", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("Claude\u2122", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("\u2728Claude\u2728", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("Claude2", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("Claude!", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("The official Claude|Anthropic", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("x " * 90 + "Claude", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("\uff23\uff4c\uff41\uff55\uff44\uff45", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("Claude", "https://claude.ai.evil.example/cb", {"known_name_unknown_host"}),
        ("Claude", "https://evilclaude.ai/cb", {"known_name_unknown_host"}),
        ("Claude", "evil://callback", {"known_name_unknown_host", "private_use_scheme", "private_use_authority"}),
        ("Claude", "cursor:/callback", {"known_name_unknown_host", "private_use_scheme"}),
        ("ChatGPT", "http://localhost:1234/cb", {"known_name_unknown_host", "loopback_only"}),
        ("Postman", "https://evil.mock.pstmn.io/cb", {"known_name_unknown_host"}),
        ("Replit", "https://evil.replit.dev/cb", {"known_name_unknown_host"}),
        ("Zed", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("\u0421laude", "https://evil.example/cb",
         {"known_name_unknown_host", "look_alike_name", "mixed_script_name"}),
        ("\u0421laude", "http://localhost:1/cb", {"look_alike_name", "mixed_script_name", "loopback_only"}),
        ("C1aude", "https://evil.example/cb", {"known_name_unknown_host", "look_alike_name"}),
        ("CIaude Code", "https://claude.ai/cb", {"look_alike_name"}),
        ("Cl\u00e1ude", "https://evil.example/cb", {"known_name_unknown_host", "look_alike_name"}),
        ("\u1d04\u029f\u1d00\u1d1c\u1d05\u1d07", "https://evil.example/cb",
         {"known_name_unknown_host", "look_alike_name"}),
        ("Clau\u0501e", "https://evil.example/cb",
         {"known_name_unknown_host", "look_alike_name", "mixed_script_name"}),
        ("Gernini", "https://evil.example/cb", {"known_name_unknown_host", "look_alike_name"}),
        ("VVindsurf", "https://evil.example/cb", {"known_name_unknown_host", "look_alike_name"}),
        ("Claucle", "https://evil.example/cb", {"known_name_unknown_host", "look_alike_name"}),
        ("Cl\u0430ude", "https://claude.ai/cb", {"look_alike_name", "mixed_script_name"}),
        ("MyClaudeAgent", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("MyMCPClaude", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("cLaUdE", "https://evil.example/cb", {"known_name_unknown_host"}),
        ("Cursor", "vscode://evil/cb", {"known_name_unknown_host", "private_use_scheme", "private_use_authority"}),
        ("\u0397elper", "https://a.example/cb", {"mixed_script_name"}),
        ("Agent", "https://xn--80ak6aa92e.com/cb", {"punycode_host", "mixed_script_host"}),
        ("Agent", "https://xn--pple-43d.com/cb", {"punycode_host", "mixed_script_host"}),
        ("Agent", "https://login.xn--80ak6aa92e.com/cb", {"punycode_host", "mixed_script_host"}),
        ("Agent", "https://xn--bcher-kva.example/cb", {"punycode_host"}),
        ("Agent", "https://xn--fsqu00a.example/cb", {"punycode_host"}),
        ("Agent", "https://a.xn--90ae/cb", {"punycode_host"}),
        ("Agent", "https://203.0.113.7/cb", {"ip_literal_host"}),
        ("Agent", "https://[2001:db8::1]/cb", {"ip_literal_host"}),
        ("Agent", "https://127.0.0.1/cb", {"loopback_only"}),
        ("Agent", "https://[::1]/cb", {"loopback_only"}),
        ("Agent", "com.example.app:/cb", {"private_use_scheme"}),
        ("Agent", "myapp://callback", {"private_use_scheme", "private_use_authority"}),
        ("Agent", "https://agent.example/cb", set()),
    ],
)  # fmt: skip
def test_published_attacks_are_flagged(name: str, redirect: str, expected: set[str]) -> None:
    """Users who would let in a name that they know, and whose code would go elsewhere."""
    assert set(flags.of_metadata(said(name, redirect))) == expected


def test_one_redirect_elsewhere_is_enough() -> None:
    """Users: honest redirects beside the hostile one are no alibi."""
    honest = "https://claude.ai/api/mcp/auth_callback"
    assert flags.of_metadata(said("Claude", honest, "https://evil.example/cb")) == ["known_name_unknown_host"]
    assert flags.of_metadata(said("Agent", honest, "http://localhost/cb")) == []
    assert flags.of_metadata(said("Agent", honest, "https://203.0.113.7/cb")) == ["ip_literal_host"]


def test_names_in_other_languages_are_judged_like_the_name() -> None:
    """Users whose browser asks for another language: the name that they are shown was judged."""
    for tagged in ("Claude", "\u0421laude"):
        assert "known_name_unknown_host" in flags.of_metadata(said("Agent", localized={"client_name#de": tagged}))
    assert "mixed_script_name" in flags.of_metadata(said(None, localized={"client_name#ru": "\u0421laude"}))


@pytest.mark.parametrize(
    ("redirects", "members", "other"),
    [
        (["https://app.agent.example/cb"], {"client_uri": "https://www.agent.example/"}, False),
        (["https://app.agent.example/cb"], {"logo_uri": "https://agent.example/a"}, False),
        (["https://agent.co.uk/cb"], {"client_uri": "https://www.agent.co.uk/"}, False),
        (["https://agent.co.uk/cb"], {"client_uri": "https://other.co.uk/"}, True),
        (["https://me.github.io/cb"], {"client_uri": "https://you.github.io/"}, True),
        (["https://me.vercel.app/cb"], {"logo_uri": "https://vercel.app/"}, True),
        (["https://evil.example/cb"], {"policy_uri": "https://claude.ai/privacy"}, True),
        (["https://evil.example/cb"], {"tos_uri": "https://claude.ai/terms"}, True),
        (["https://evil.example/cb"], {"localized": {"logo_uri#de": "https://claude.ai/logo.png"}}, True),
        (["https://evil.example/cb"], {"localized": {"client_name#de": "https://claude.ai/"}}, False),
        (["https://evil.example/cb", "https://b.example/cb"], {"client_uri": "https://b.example/"}, False),
        (["https://203.0.113.7/cb"], {"client_uri": "https://203.0.113.7/"}, False),
        (["https://203.0.113.7/cb"], {"client_uri": "https://204.0.113.7/"}, True),
        (["http://localhost/cb"], {"client_uri": "https://github.com/a", "logo_uri": "https://b.example/"}, False),
        (["cursor://a/cb"], {"client_uri": "https://github.com/a"}, False),
        (["https://a.example/cb"], {"client_uri": "not a URI", "logo_uri": ""}, False),
    ],
)  # fmt: skip
def test_pages_of_another_site_are_flagged(redirects: list[str], members: dict[str, Any], other: bool) -> None:
    """Users who click on a known product's terms, and then let somebody else in. With no redirect on the web there is
    nothing to compare with.
    """
    assert ("other_site" in flags.of_metadata(said("Agent", *redirects, **members))) is other


def test_uris_of_an_older_log_are_passed_over() -> None:
    """Operators: a log that is older than a rule can still be read, and vouches for nothing that cannot be."""
    broken = ("https://[broken/cb", "https://x:99999/cb", "", "\ud800", "javascript:alert(1)")
    assert flags.of_metadata(said("Agent", *broken)) == []
    assert flags.redirect_hosts(said("Agent", *broken)) == []
    assert flags.of_metadata(said("Agent", "http://localhost/cb", "https://[broken/cb")) == []


def test_hosts_of_redirects_are_those_on_the_web() -> None:
    """Admins who ask which hosts are new: not the user's own machine, and each once."""
    redirects = ("https://B.example/1", "http://localhost:1/", "https://a.example/", "https://b.example/2", "cursor://c/d",
                 "http://127.9.9.9/", "https://[2001:db8::1]/", "http://[::1]/")  # fmt: skip
    assert flags.redirect_hosts(said("Agent", *redirects)) == ["b.example", "a.example", "[2001:db8::1]"]


def test_every_flag_has_a_sentence_and_a_place() -> None:
    """Admins who ask why: there is a sentence, printable anywhere, and lists show flags in one order."""
    assert list(flags.ALL) == list(flags.SENTENCES)
    assert set(flags.FROM_HISTORY) < set(flags.ALL)
    for sentence in flags.SENTENCES.values():
        assert sentence.isascii()
        assert sentence[0].isupper()
        assert sentence.endswith(".")
    everything = said(
        "\u0421laude",
        *("https://xn--80ak6aa92e.com/cb", "https://203.0.113.7/cb", "evil://a/b"),
        client_uri="https://claude.ai/",
    )
    expected = [each for each in flags.ALL if each not in flags.FROM_HISTORY and each != "loopback_only"]
    assert flags.of_metadata(everything) == expected


def test_the_list_of_products_is_in_order() -> None:
    """Whoever extends the list: names once, hosts and schemes as `uris.parse` gives them, no top-level domain."""
    named = [each.name for each in products.KNOWN]
    assert len(set(named)) == len(named)
    for product in products.KNOWN:
        assert product.spellings or product.alone
        assert all(each == each.lower() and "." in each and not each.startswith(".") for each in product.hosts)
        assert all(each == each.lower() for each in product.schemes)
        for spelled in (*product.spellings, *product.alone):
            for written in (spelled, spelled.title(), spelled.upper()):
                claims = {claim.product.name: claim.spelled for claim in products.claimed(written)}
                assert claims[product.name], written


ANY_TEXT = st.text(max_size=30)
ANY_URI = ANY_TEXT | st.builds(
    "{}://{}{}".format,
    st.sampled_from(["https", "http", "cursor", "javascript", ""]),
    st.sampled_from(
        ["claude.ai", "localhost", "127.0.0.1", "[::1]", "xn--", "xn--a.b", "a.co.uk", "1", ".", "co.uk", ""]
    )
    | st.from_regex(r"xn--[a-z0-9-]{0,50}\Z"),
    st.sampled_from(["/cb", "", ":1/", "#"]),
)


@given(
    st.none() | st.text(max_size=60),
    st.lists(ANY_URI, max_size=4),
    st.dictionaries(st.sampled_from(["client_name#de", "client_uri#de", "logo_uri#x", "jwks#y", "#"]), ANY_URI),
    st.none() | ANY_URI,
)
def test_any_metadata_has_its_flags(
    name: str | None, redirects: list[str], localized: dict[str, str], page: str | None
) -> None:
    """The projector, which stops at nothing that is in the log: whatever was stored, flags are known ones, in order."""
    metadata = said(name, *redirects, client_uri=page, localized=localized)
    found = flags.of_metadata(metadata)
    assert found == [each for each in flags.ALL if each in found]
    assert set(found).isdisjoint(flags.FROM_HISTORY)
    assert flags.of_metadata(metadata) == found
    assert set(flags.redirect_hosts(metadata)).isdisjoint({"localhost", "127.0.0.1", "[::1]"})


def test_the_largest_registration_is_judged_in_bounded_time() -> None:
    """The projector, which everyone's changes wait for: no metadata takes it long."""
    redirects = [f"https://{number}.{'xn--80ak6aa92e.' * 16}example/".ljust(2_048, "a") for number in range(32)]
    hostile = ("c\u0421l!1\u0430|\U0001f916\u0301", "Claud ", "\u0640\u0964", "aA", "a1", "\u094d\u200d")
    localized = {
        f"client_name#a-{number}": (str(number) + hostile[number % len(hostile)] * 1_000)[:1_000]
        for number in range(64)
    }
    start = time.process_time()
    assert "known_name_unknown_host" in flags.of_metadata(said("Claude", *redirects, localized=localized))
    assert time.process_time() - start < 1
