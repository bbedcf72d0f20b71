"""What we read in a URI is what a browser reads in it: the real one, asked."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from appraisal import uris
from appraisal.uris import UriRefused
from tests.appraisal import hostile_uris

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1_800)]

COUNT = int(os.environ.get("GRANTBOOK_URIS", "2000"))
SEED = int(os.environ.get("GRANTBOOK_SEED", "7"))
CHUNK = 2_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
READ = """texts => texts.map(text => {
    try {
        const url = new URL(text);
        return {protocol: url.protocol, hostname: url.hostname, port: url.port, username: url.username};
    } catch (error) { return null; }
})"""
FOLLOW = """texts => Promise.all(texts.map(async text => {
    const link = document.createElement("a");
    link.setAttribute("href", text);
    const protocol = link.protocol;
    if (protocol !== "data:") return {protocol, type: null};
    try {
        const answer = await fetch(link.href);
        return {protocol, type: answer.headers.get("content-type")};
    } catch (error) { return {protocol, type: null}; }
}))"""
"""What following a link would do: by which scheme, and for data of which type."""
LOOPBACK = re.compile(r"localhost|\[::1\]|127(?:\.[0-9]{1,3}){3}")
DEFAULT_PORTS = {"https": 443, "http": 80}
REAL = [
    "https://claude.ai/api/mcp/auth_callback",
    "http://localhost:57470/callback",
    "http://127.0.0.1:33418/",
    "http://[::1]:8080/cb",
    "cursor://anysphere.cursor-mcp/oauth/callback",
    "vscode://vscode.github-authentication/did-authenticate",
    "com.example.app:/oauth2redirect",
    "com.example.app:callback",
    "com.example.app://h:443/cb",
    "myapp://callback",
    "https://vscode.dev/redirect",
    "https://xn--bcher-kva.example/cb",
    "https://xn--fa-hia.example/cb",
    "https://a.xn--90ae/cb",
]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of Chromium that shows nothing."""
    chromium = shutil.which("chromium")
    assert chromium, "these tests need Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser.new_page()
        browser.close()


def ours(text: str) -> uris.Uri | None:
    try:
        return uris.parse(text)
    except UriRefused:
        return None


def differs(uri: uris.Uri, read: dict[str, Any] | None) -> bool:
    """Whether the browser reads another scheme, host or port in it, or nothing at all."""
    if read is None or read["protocol"] != f"{uri.scheme}:" or read["hostname"] != (uri.host or ""):
        return True
    if read["username"]:
        return True
    default = DEFAULT_PORTS.get(uri.scheme)
    port = int(read["port"]) if read["port"] else default
    return port != (default if uri.port is None else uri.port)


def test_whatever_we_accept_a_browser_reads_as_we_do(page: Page) -> None:
    """Users and admins: the host that is shown, flagged and filtered by is the one that the browser goes to."""
    texts = [*REAL, *hostile_uris.uris(COUNT, SEED)]
    accepted = 0
    different: list[str] = []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        for text, read in zip(chunk, page.evaluate(READ, chunk), strict=True):
            uri = ours(text)
            if uri is not None:
                accepted += 1
                if differs(uri, read):
                    different.append(f"{text!a}: {uri} and {read}")
    assert not different, f"{len(different)} of {accepted}, such as {different[:20]}"
    # Where nothing is accepted, or all is, agreement shows nothing.
    assert len(texts) * 0.15 < accepted < len(texts) * 0.9


def test_loopback_is_loopback_to_a_browser(page: Page) -> None:
    """Users: `http` is allowed to their own machine alone, so what we take for it must be it."""
    generated = ((text, ours(text)) for text in hostile_uris.uris(COUNT, SEED + 1))
    texts = [text for text, uri in generated if uri and uri.scheme in DEFAULT_PORTS and uris.is_loopback(uri.host)]
    texts += ["http://localhost/", "http://127.0.0.1/", "http://127.255.255.254:1/", "http://[::1]/"]
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        for text, read in zip(chunk, page.evaluate(READ, chunk), strict=True):
            assert LOOPBACK.fullmatch(read["hostname"]), ascii(text)


def test_every_link_that_would_run_a_script_is_found(page: Page) -> None:
    """Admins: text of a stranger that their console shows as a link does nothing in their name."""
    texts = list(hostile_uris.links(COUNT, SEED))
    running = 0
    missed: list[str] = []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        for text, read in zip(chunk, page.evaluate(FOLLOW, chunk), strict=True):
            # Plain text, which is also what data of no type or a broken one is shown as, runs nothing.
            runs = read["protocol"] in {"javascript:", "vbscript:"} or (
                read["type"] is not None and not read["type"].startswith("text/plain")
            )
            running += runs
            if runs and not uris.runs_script(text):
                missed.append(f"{text!a}: {read}")
    assert not missed, f"{len(missed)} of {running}, such as {missed[:20]}"
    assert len(texts) * 0.05 < running < len(texts) * 0.9


@pytest.mark.parametrize("text", REAL)
def test_real_redirects_are_accepted(text: str) -> None:
    """People whose agent must connect: strictness that refuses them is an outage."""
    assert ours(text) is not None
