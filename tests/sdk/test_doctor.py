"""`grantbook doctor`: what is wrong with an installation, and what to do about it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from grantbook.sdk.cli import main
from grantbook.sdk.doctor import metadata_addresses

Reply = tuple[int, list[tuple[str, str]], bytes]
REFUSED = b'{"error":"invalid_redirect_uri","error_description":"x"}'
OPEN = ("Access-Control-Allow-Origin", "*")
JSON = ("Content-Type", "application/json")
GOOD = [JSON, OPEN, ("Cache-Control", "no-store")]


@contextmanager
def answering(reply: Callable[[str, str, bytes], Reply]) -> Iterator[str]:
    """A web server that answers as told, given method, path and body; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, headers, content = reply(self.command, self.path, body)
            self.send_response(status)
            for name, value in [*headers, ("Content-Length", str(len(content)))]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_OPTIONS = do_DELETE = answer  # noqa: N815  what the standard library calls them

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # who looks stops reading when it has seen enough

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def look(*arguments: str) -> tuple[Result, dict[str, dict[str, str]]]:
    """The result, and the findings by check."""
    result = CliRunner().invoke(main, ["doctor", *arguments, "--json"])
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return result, {each["check"]: each for each in found}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("doctor")) as servers:
        yield servers


@pytest.fixture(scope="module")
def url(product: Product) -> Iterator[str]:
    """A real registry, which knows where it is reached."""
    service = Service(product, "registry", "serve")
    service.environment["GRANTBOOK_URL"] = f"http://127.0.0.1:{service.port}"
    service.start()
    service.wait_ready()
    yield service.environment["GRANTBOOK_URL"]
    service.stop()


def metadata(issuer_: str, url: str, **more: Any) -> bytes:
    said = {
        "issuer": issuer_,
        "registration_endpoint": f"{url}/auth/connect/register",
        "authorization_endpoint": f"{issuer_}/authorize",
        "token_endpoint": f"{issuer_}/token",
        "code_challenge_methods_supported": ["S256"],
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["none"],
    }
    return json.dumps({key: value for key, value in (said | more).items() if value is not None}).encode()


def test_an_installation_that_is_well_has_no_problem(url: str) -> None:
    """Operators: all is green when it is, with an issuer that has a path, and a client that comes and goes."""
    issuer = ""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if path == "/.well-known/oauth-authorization-server/tenant1":
            return 200, [JSON, OPEN], metadata(issuer, url)
        return 404, [], b""

    with answering(reply) as host:
        issuer = f"{host}/tenant1"
        result, found = look("--url", url, "--issuer", issuer, "--register")
    assert result.exit_code == 0, result.output
    assert {each["level"] for each in found.values()} == {"ok"}
    assert {"registration", "CORS preflight", "metadata", "PKCE", "closed /idp/v1/clients/x", "ready", "manage"} <= set(
        found
    )


def test_without_register_nothing_is_stored(url: str, product: Product) -> None:
    """Operators: looking changes nothing."""
    result, found = look("--url", url)
    assert "register" not in found
    assert result.exit_code == 1  # there is no authorization server's metadata there
    assert "RFC 8414" in found["metadata"]["remedy"]


def test_what_is_handed_out_must_begin_with_the_address(product: Product) -> None:
    """Operators who moved behind another name: clients would be sent to the old one."""
    with processes.service(product, "registry", "serve") as port:
        _, found = look("--url", f"http://127.0.0.1:{port}", "--register")
    assert "GRANTBOOK_URL" in found["address handed out"]["remedy"]
    assert found["manage"]["level"] == "ok"


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        ((404, [("Content-Type", "text/html")], b"<h1>not found</h1>"), "location /auth/connect/register"),
        ((301, [("Location", "https://elsewhere.example/")], b""), "redirects"),
        ((308, [("Location", "https://elsewhere.example/")], b""), "redirects"),
        ((401, [("WWW-Authenticate", "Basic")], b""), "asks for a login"),
        ((403, [], b"blocked"), "firewall"),
        ((405, [], b""), "POST"),
        ((413, [], b""), "limits"),
        ((502, [], b"bad gateway"), "cannot reach the registry"),
        ((200, [("Content-Type", "text/html")], b"<html>app</html>"), "web application"),
        ((400, [JSON], b'{"message": "no"}'), "Something else"),
    ],
)
def test_each_way_in_which_a_proxy_is_in_the_way_has_a_remedy(reply: Reply, remedy: str) -> None:
    """Operators: not just that it does not work, but what to change."""
    with answering(lambda *_: reply) as url:
        result, found = look("--url", url)
    assert result.exit_code == 1
    assert found["registration"]["level"] == "problem"
    assert remedy in found["registration"]["remedy"]


def test_a_server_that_is_not_there_is_said_so() -> None:
    """Operators: a name that does not resolve, a port that nobody listens on."""
    result, found = look("--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert found["reachable"]["level"] == "problem"
    assert list(found) == ["address", "reachable"]


@pytest.mark.parametrize("url", ["grantbook.example.com", "ftp://a.example", "https://"])
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    """Operators: a typing error is told before anything is sent."""
    assert CliRunner().invoke(main, ["doctor", "--url", url]).exit_code == 2


def registrations(method: str, path: str, body: bytes) -> Reply | None:
    if path != "/auth/connect/register":
        return None
    if method == "OPTIONS":
        allow = [
            ("Access-Control-Allow-Methods", "POST"),
            ("Access-Control-Allow-Headers", "content-type, mcp-protocol-version"),
        ]
        return 204, [OPEN, *allow], b""
    if method == "GET":
        return 405, [("Allow", "POST")], b""
    return 400, GOOD, REFUSED


@pytest.mark.parametrize(
    ("changed", "check", "level"),
    [
        ({("POST", "/auth/connect/register"): (400, [JSON, OPEN], REFUSED)}, "not cached", "problem"),
        ({("POST", "/auth/connect/register"): (400, [*GOOD, OPEN], REFUSED)}, "CORS answers", "problem"),
        ({("OPTIONS", "/auth/connect/register"): (204, [], b"")}, "CORS preflight", "problem"),
        ({("OPTIONS", "/auth/connect/register"): (403, [], b"")}, "CORS preflight", "problem"),
        ({("OPTIONS", "/auth/connect/register"): (204, [OPEN], b"")}, "CORS preflight", "problem"),
        ({("GET", "/auth/connect/register"): (200, [], b"hello")}, "other methods", "warning"),
        ({("GET", "/admin/v1/clients"): (200, [JSON], b"{}")}, "closed /admin/v1/clients", "problem"),
        ({("GET", "/idp/v1/clients/x"): (401, [OPEN], b"")}, "closed /idp/v1/clients/x", "problem"),
        ({("GET", "/readyz"): (503, [JSON], b'{"status":"unready","reasons":{"log":"away"}}')}, "ready", "problem"),
    ],
)
def test_what_else_a_proxy_may_do_is_found(changed: dict[tuple[str, str], Reply], check: str, level: str) -> None:
    """Operators: agents in browsers, caches, and what must not be open."""

    def reply(method: str, path: str, body: bytes) -> Reply:
        return changed.get((method, path)) or registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        _, found = look("--url", url)
    assert found[check]["level"] == level
    assert found[check]["remedy"]


def test_a_proxy_that_takes_small_bodies_alone_is_found() -> None:
    """Operators: a registration with keys may have 64 KiB."""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if len(body) > 10_000:
            return 413, [("Content-Type", "text/html")], b"<h1>413</h1>"
        return registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        _, found = look("--url", url)
    assert "client_max_body_size" in found["large bodies"]["remedy"]


@pytest.mark.parametrize(
    ("more", "check"),
    [
        ({"issuer": "https://other.example"}, "issuer"),
        ({"registration_endpoint": None}, "registration endpoint"),
        ({"registration_endpoint": "https://idp.example/register"}, "registration endpoint"),
        ({"code_challenge_methods_supported": None}, "PKCE"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"response_types_supported": ["token"]}, "response types"),
        ({"grant_types_supported": ["implicit"]}, "grant types"),
        ({"token_endpoint_auth_methods_supported": ["client_secret_basic"]}, "public clients"),
        ({"token_endpoint": "http://idp.example/token"}, "token endpoint"),
        ({"authorization_endpoint": 7}, "authorization endpoint"),
    ],
)
def test_what_agents_need_of_the_metadata_is_found_missing(more: dict[str, Any], check: str) -> None:
    """Operators of the identity provider: RFC 8414, and what agents that follow MCP refuse to go on without."""
    here = ""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if path == "/.well-known/openid-configuration/t":
            return 200, [JSON], metadata(f"{here}/t", here, **more)
        return registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        here = url
        _, found = look("--url", url, "--issuer", f"{url}/t")
    assert found[check]["level"] in {"problem", "warning"}
    assert found[check]["remedy"]
    assert found["metadata"]["level"] == "warning"  # found, but not where RFC 8414 has it
    assert found["metadata CORS"]["level"] == "warning"


@pytest.mark.parametrize(
    ("issuer", "first"),
    [
        ("https://idp.example", "https://idp.example/.well-known/oauth-authorization-server"),
        ("https://idp.example/", "https://idp.example/.well-known/oauth-authorization-server"),
        ("https://idp.example/a/b", "https://idp.example/.well-known/oauth-authorization-server/a/b"),
    ],
)
def test_metadata_is_looked_for_between_host_and_path(issuer: str, first: str) -> None:
    """Operators with an issuer that has a path: RFC 8414 section 3.1."""
    assert metadata_addresses(issuer)[0] == first


def test_hostile_answers_are_shown_and_not_obeyed() -> None:
    """Operators: what a server says does not write on their terminal, and is not read for ever."""
    answer = b"\x1b[2J\x07" + b"a" * 10_000_000
    with answering(lambda *_: (500, [("Content-Type", "text/\x1b[31m")], answer)) as url:
        result = CliRunner().invoke(main, ["doctor", "--url", url])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert len(result.output) < 5_000
