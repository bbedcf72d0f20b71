"""Which URIs get in: a corpus of spellings that broke others, and of those that agents need."""

import string
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appraisal import uris
from appraisal.uris import UriRefused
from registry import metadata
from registry.metadata import MetadataRefused

SECONDS_FOR_LONG_TEXT = 1.0

TAKEN = {
    "https://claude.ai/api/mcp/auth_callback": "web",
    "https://a.example": "web",
    "HTTPS://A.Example/cb": "web",
    "https://a.example:8443/cb?x=1&y[]=%20#".rstrip("#"): "web",
    "https://192.0.2.1/": "web",
    "https://[2001:db8::1]:443/": "web",
    "https://xn--bcher-kva.example/": "web",
    "https://XN--BCHER-KVA.example/": "web",
    "https://xn--fa-hia.example/": "web",
    "https://xn--ls8h.example/": "web",
    "https://xn--fsqu00a.xn--fiqs8s/": "web",
    "https://ab--cd.example/": "web",
    "https://vscode.dev/redirect": "web",
    "https://a_b.example/": "web",
    "https://a.example/u@b": "web",
    "https://localhost/cb": "web",
    "https://oauth.pstmn.io/v1/callback": "web",
    "http://localhost:57470/callback": "native",
    "http://LOCALHOST/": "native",
    "http://127.0.0.1:33418/": "native",
    "http://127.255.255.254/": "native",
    "http://[::1]:8080/cb": "native",
    "cursor://anysphere.cursor-mcp/oauth/callback": "native",
    "vscode://vscode.github-authentication/did-authenticate": "native",
    "http://127.0.0.1/cb": "native",
    "myapp://callback": "native",
    "com.example.app:/oauth2redirect": "native",
    "com.example.app:callback": "native",
    "my-app+x.y://": "refused",
}

REFUSED = [
    # script and document schemes, in odd spellings (Keycloak CVE-2026-9086, Spring CVE-2026-22752)
    *[
        f"{prefix}{scheme}{rest}"
        for scheme in ("javascript", "JaVaScRiPt", "data", "VBSCRIPT", "blob", "file", "about", "mailto", "ws", "wss",
                       "ftp", "view-source", "filesystem", "intent", "jar", "urn")
        for prefix in ("", " ", "\t", "\x00", "\x01")
        for rest in (":alert(1)", "://a.example/%0aalert(1)", "://a.example/cb")
    ],
    *["java\tscript:alert(1)", "java\nscript:alert(1)", "java\x00script:alert(1)", "javascript\t:alert(1)"],
    *["javascript%3Aalert(1)", "java%0ascript:alert(1)", "&#106;avascript:alert(1)", "\u017fcript:x"],
    "javascript\u003a\u200bx",
    # user information and parsers that disagree (Pocket ID CVE-2026-28512)
    *["https://claude.ai@evil.example/", "https://a:b@evil.example/", "https://@evil.example/", "cursor://a@b/"],
    *["https://evil.example\\@claude.ai/", "https:\\\\evil.example", "https:/\\evil.example", "https://evil.example\\.claude.ai/"],
    *["https:evil.example", "https:/evil.example", "https:///evil.example", "https://", "https://:443/", "https://?a", "https://#"],
    *["//evil.example/", "/cb", "cb", "", "?a=b", "#a", ":", "://", "1a://b", "-a:b", "a b:c", "myapp:", "cursor://"],
    # hosts
    *["https://b\u00fccher.example/", "https://\uff45vil.example/", "https://evil\u3002example/", "https://a%2eexample/"],
    *["https://a..example/", "https://.example/", "https://a.example./", "https://-a.example/", "https://a-.example/"],
    *["https://" + "a" * 64 + ".example/", "https://" + "a." * 127 + "aa/", "https://a,b/", "https://a'b/", "https://a!b.example/"],
    *["https://[::1/", "https://::1/", "https://[::g]/", "https://[1.2.3.4]/", "https://[fe80::1%25eth0]/", "https://[]/"],
    *["https://0x7f.1/", "https://127.1/", "https://2130706433/", "https://0177.0.0.1/", "https://0x7f000001/", "https://1.2.3/"],
    *["https://127.0.0.1.5/", "https://127.0.0.256/", "https://127.0.0.01/", "https://a.0x1/", "https://a.1/", "https://0x/"],
    # labels that say they are encoded and are not: nothing, too much, no letters, upper case, blanks, a mark in front
    *[f"https://{each}.example/" for each in ("xn--", "xn--a", "xn--0", "xn--abc-", "xn--99999999999", "xn--xn--a--b")],
    *[
        f"https://xn--{each.encode('punycode').decode()}.example/"
        for each in ("B\u00dc", "\uff43laude", "\u0391", "a\u200bb", "a\u200db", "\u0301a", "u\u0308", "\u2028",
                     "\ue000", "\u202ea")
    ],
    # one address spelled otherwise than browsers show it
    *["https://[::ffff:1.2.3.4]/", "https://[1::1.2.3.4]/", "https://[2001:db8:0:0:0:0:0:1]/", "https://[2001:db8::01]/"],
    # ports
    *["https://a.example:/", "https://a.example:0/", "https://a.example:65536/", "https://a.example:99999999999/"],
    *["https://a.example:-1/", "https://a.example:+80/", "https://a.example:8o/", "https://a.example:080/", "https://a:1:2/"],
    # what only looks like this machine
    *["http://localhost./", "http://localhost.evil.example/", "http://127.0.0.1.evil.example/", "http://127.1/", "http://0/"],
    *["http://0x7f.1/", "http://0.0.0.0/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[0:0:0:0:0:0:0:1]/"],
    *["http://localhost@evil.example/", "http://128.0.0.1/", "http://a.example/", "http://1270.0.0.1/", "http://localhos\u017f/"],
    *["http:localhost/", "http:/localhost/", "http:///localhost/", "http://127.0.0.1\u0660/"],
    # fragments, wildcards, characters
    *["https://a.example/#", "https://a.example/#a", "cursor://a#b", "https://*.example/", "https://a.example/*"],
    "a:/*",
    *[f"https://a.example/{each}" for each in ' \t\n\r\x00\x0b\x7f\x85\xa0"<>\\^`{|}\u00e4\u202e\u2028\ufeff\ud800'],
    *[f"https://a.example/{each}" for each in ("%", "%4", "%zz", "%00", "%0a", "%0D%0aSet-Cookie:x", "%1f", "%7F")],
    *["\ufeffhttps://a.example/", " https://a.example/", "https://a.example/ ", "https://a.example/\n", "ht\ntps://a.example/"],
    "https://a.example/" + "a" * 2_048,
]  # fmt: skip


@pytest.mark.parametrize(("uri", "kind"), TAKEN.items())
def test_redirects_that_agents_need_are_taken(uri: str, kind: str) -> None:
    """Real agents: as they are spelled, and kept so."""
    if kind == "refused":
        with pytest.raises(MetadataRefused):
            metadata.check({"redirect_uris": [uri]})
        return
    found = metadata.check({"redirect_uris": [uri]})
    assert (found.redirect_uris, found.application_type) == ((uri,), kind)


@pytest.mark.parametrize("uri", REFUSED, ids=lambda uri: ascii(uri)[:60])
def test_hostile_redirects_are_refused(uri: str) -> None:
    """Users whose code would go elsewhere, and admins whose console would run it."""
    with pytest.raises(MetadataRefused) as refused:
        metadata.check({"redirect_uris": ["https://a.example/", uri]})
    assert refused.value.error == "invalid_redirect_uri"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("HTTPS://A.Example:443/cb", "a.example", 443),
        ("http://[::1]:8080/", "[::1]", 8080),
        ("cursor://Anysphere.cursor-mcp:1/x", "Anysphere.cursor-mcp", 1),
        ("com.example.app:callback", None, None),
        ("com.example.app:///callback", None, None),
    ],
)
def test_host_and_port_are_as_browsers_show_them(text: str, host: str | None, port: int | None) -> None:
    """Admins: what they filter by is spelled as their browser spells it; an app's host keeps its case."""
    uri = uris.parse(text)
    assert (uri.host, uri.port) == (host, port)


@pytest.mark.parametrize("length", [2_048, 2_049])
def test_a_uri_has_at_most_2048_characters(length: int) -> None:
    """The limit is where the contract says."""
    uri = "https://a.example/".ljust(length, "a")
    if length > uris.MAX_URI_CHARACTERS:
        with pytest.raises(UriRefused):
            uris.parse(uri)
    else:
        assert uris.parse(uri).host == "a.example"


@pytest.mark.parametrize("scheme", sorted(uris.FOREIGN_SCHEMES))
def test_schemes_of_browsers_and_protocols_are_no_apps(scheme: str) -> None:
    """One list, each of it refused in both cases."""
    for spelled in (scheme, scheme.upper()):
        with pytest.raises(MetadataRefused):
            metadata.check({"redirect_uris": [f"{spelled}://a/b"]})


AUTHORITY = st.text(alphabet="ab.:@[]0127xX/\\?#-_%*" + string.whitespace + "\u3002\uff0e", max_size=14)


@given(
    st.sampled_from(["https:", "http:", "HTTPS:", "https"]), st.sampled_from(["//", "/", "", "///", "\\\\"]), AUTHORITY
)
def test_the_host_that_is_decided_on_is_the_host_that_others_read(scheme: str, slashes: str, rest: str) -> None:
    """No URI gets in whose host another parser reads differently: not Python's, which strips and splits leniently."""
    text = f"{scheme}{slashes}{rest}"
    try:
        uri = uris.parse(text)
    except UriRefused:
        return
    if uri.scheme in {"http", "https"}:
        split = urlsplit(text)
        assert split.username is None
        assert split.hostname == (uri.host or "").strip("[]")
        assert split.scheme == uri.scheme
        assert text.lower().startswith(f"{uri.scheme}://{uri.host}")


@pytest.mark.parametrize("unit", ["data:", "\u00a0", "data: ", "a/", "%25", "java\t", "data:\u2028"])
def test_text_of_any_kind_is_judged_quickly(unit: str) -> None:
    """Operators: no text makes the pattern try for long. A second is far from what it takes."""
    started = time.perf_counter()
    for start in ("", "data:", "data:a/"):
        uris.runs_script(start + unit * (100_000 // len(unit)))
    assert time.perf_counter() - started < SECONDS_FOR_LONG_TEXT


@given(st.text(max_size=40))
def test_any_text_is_a_uri_or_refused(text: str) -> None:
    """Nothing but the refusal is ever raised, and what is taken holds ASCII alone."""
    with suppress(UriRefused):
        uris.parse(text)
        assert text.isascii()
        assert text.isprintable()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("[::1]", True), (None, False), ("127.1", False),
     ("128.0.0.1", False), ("localhost.a", False), ("127.0.0.1.a", False), ("[::2]", False), ("127.0.0.1\n", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str | None, loopback: bool) -> None:
    """RFC 8252 section 7.3: http is for what never leaves the machine."""
    assert uris.is_loopback(host) is loopback


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " \x01javascript:alert(1)",
        "java\tscript:alert(1)",
        "java\r\nscript:alert(1)",
        "javascript :alert(1)",
        "%6aavascript:alert(1)",
        "javascript%3aalert(1)",
        "%256aavascript:alert(1)",
        "vbscript:x",
        "livescript:x",
        "data:text/html,<script>",
        "DATA:text/html;base64,AAAA",
        "data:,x",
        "data:image/svg+xml,<svg/>",
        "data:x-a/b_c+xml;base64,AAAA",
        "data: text/html ,x",
        "data:\u00e9/x+xml,x",
        "data:\n/x+xml,x",
        "data://a/b+xml,x",
        "blob:https://a.example/1",
        "filesystem:https://a.example/temporary/x",
        "\u00a0\ufeffjavascript:alert(1)",
    ],
)
def test_text_that_would_run_as_a_link_is_found(text: str) -> None:
    """Admins: contacts and names end up as links on somebody's page."""
    assert uris.runs_script(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ops@agent.example",
        "mailto:a@b.example",
        "data:read",
        "data:files/read",
        "file:read",
        "Data: Explorer",
        "blob:read",
        "blob:file_read",
        "scope:javascript:x",
        "About: us",
        "JavaScript agent",
        "100%",
    ],
)
def test_other_text_is_not(text: str) -> None:
    """People whose agent must connect: scopes and names have colons, too."""
    assert not uris.runs_script(text)


@pytest.mark.parametrize(
    "text",
    [
        "data:" + " " * 65_000 + "x%252525",
        "data:" + "/" * 65_000,
        "data:" + " /" * 32_000,
        "data" + " " * 65_000,
        "javascript" + " " * 65_000,
        "blob:" + " " * 65_000,
        "\ufeff " * 32_000,
        "%25" * 21_000,
    ],
    ids=range(8),
)
def test_looking_for_scripts_takes_time_by_length_alone(text: str) -> None:
    """Operators: one request must not hold up all others. What was quadratic took 42 s."""
    started = time.process_time()
    uris.runs_script(text)
    assert time.process_time() - started < 0.5
