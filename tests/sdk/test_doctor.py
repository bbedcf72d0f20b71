"""`grantbook doctor`: what is wrong with an installation, and what to do about it."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from click.testing import CliRunner, Result

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from grantbook import subjects
from grantbook.sdk.cli import main
from grantbook.sdk.findings import REGISTER, address_finding, causes_of, metadata_addresses, unreachable_remedy
from tests.certificates import self_signed

Reply = tuple[int, list[tuple[str, str]], bytes]
REFUSED = b'{"error":"invalid_redirect_uri","error_description":"x"}'
OPEN = ("Access-Control-Allow-Origin", "*")
JSON = ("Content-Type", "application/json")
GOOD = [JSON, OPEN, ("Cache-Control", "no-store")]
SECRET = "one-that-nobody-may-see"
PATIENCE_SECONDS = 10.0


@contextmanager
def answering(reply: Callable[[str, str, bytes], Reply], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A web server that answers as told, given method, path and body; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, headers, content = reply(self.command, self.path, body)
            if not status:
                return  # as who hangs up
            self.send_response(status)
            for name, value in [*headers, ("Content-Length", str(len(content)))]:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_OPTIONS = do_DELETE = answer  # noqa: N815  what the standard library calls them

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # who looks stops reading when it has seen enough

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http{'' if tls is None else 's'}://127.0.0.1:{server.server_port}"
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


def nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


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
    """Operators: looking changes nothing, in no stream and no bucket."""

    async def stored() -> dict[str | None, int]:
        connection = await nats.connect(product.nats_url)
        try:
            return {each.config.name: each.state.last_seq for each in await connection.jetstream().streams_info()}
        finally:
            await connection.close()

    before = asyncio.run(stored())
    result, found = look("--url", url)
    assert "register" not in found
    assert result.exit_code == 1  # there is no authorization server's metadata there
    assert "RFC 8414" in found["metadata"]["remedy"]
    assert subjects.LOG in before
    assert asyncio.run(stored()) == before


def test_people_read_marks_and_a_summary(url: str) -> None:
    """Operators who see no colours: the level is a word, the remedy below what was seen."""
    result = CliRunner().invoke(main, ["doctor", "--url", f"{url}/"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert f"      ok  address: {url}" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith(" PROBLEM  metadata: "))
    assert lines[at + 1].startswith("          Have the identity provider serve it at ")
    assert lines[-1] == "problems: 1, warnings: 0"


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
        ((400, [("Content-Type", "text/html")], REFUSED), "changes Content-Type"),
        ((201, [JSON], b'{"client_id": "x"}'), "Something else"),
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
    """Operators: a port that nobody listens on is no installation with problems, it could not be looked at."""
    result, found = look("--url", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert found["reachable"]["level"] == "problem"
    assert "Nothing listens" in found["reachable"]["remedy"]
    assert list(found) == ["address", "reachable"]


def test_a_certificate_that_nobody_trusts_is_said_so(tmp_path: Path) -> None:
    """Operators whose chain is incomplete: browsers may forgive it, agents do not."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(self_signed(tmp_path / "both.pem"))
    with answering(lambda *_: (400, GOOD, REFUSED), tls) as url:
        result, found = look("--url", url)
    assert result.exit_code == 2
    assert "fullchain.pem" in found["reachable"]["remedy"]


def test_a_port_that_speaks_no_tls_is_said_so() -> None:
    """Operators: https to a port of http."""
    with answering(lambda *_: (400, GOOD, REFUSED)) as url:
        _, found = look("--url", url.replace("http:", "https:"))
    assert "no TLS" in found["reachable"]["remedy"]


def test_a_name_that_does_not_resolve_is_said_so() -> None:
    """Operators before their DNS is there."""
    error = httpx.ConnectError("no")
    error.__cause__ = socket.gaierror(-2, "Name or service not known")
    assert "does not resolve" in unreachable_remedy(list(causes_of(error)))


def test_who_never_finishes_is_not_waited_for() -> None:
    """Operators: a server that sends a byte now and then holds nobody up."""

    def drip(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100000\r\n\r\n")
                    while True:
                        connection.sendall(b"a")
                        time.sleep(0.02)
            except ConnectionError:
                continue
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        started = time.monotonic()
        result, found = look("--url", f"http://127.0.0.1:{listener.getsockname()[1]}", "--timeout", "0.3")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert result.exit_code == 2
    assert "--timeout" in found["reachable"]["remedy"]
    assert time.monotonic() - started < PATIENCE_SECONDS


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "grantbook.example.com"),
        ("--url", "ftp://a.example"),
        ("--url", "https://"),
        ("--url", "http://["),
        ("--url", "http://a.example:port"),
        ("--url", "http://127.0.0.1:1", "--issuer", "tenant1"),
        ("--url", "http://127.0.0.1:1", "--origin", "inspector"),
        ("--url", "http://127.0.0.1:1", "--origin", "https://é.example"),
        ("--url", "http://127.0.0.1:1", "--timeout", "0"),
        ("--url", "http://127.0.0.1:1", "--timeout", "nan"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Operators: a typing error is told before anything is sent."""
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert result.exit_code == 2
    assert "Error: " in result.output


@pytest.mark.parametrize("junk", ["/auth/connect/register", "/?a=b", "?", "#", "#here"])
def test_more_than_a_base_url_is_not_looked_at(junk: str) -> None:
    """Operators who gave the endpoint itself: one clear finding, not one for each path below it."""
    result, found = look("--url", f"http://127.0.0.1:1{junk}")
    assert result.exit_code == 2
    assert list(found) == ["address"]


def test_a_password_in_the_address_is_not_shown() -> None:
    """Operators who paste output into a ticket."""
    result, found = look("--url", f"http://me:{SECRET}@127.0.0.1:1")
    assert list(found) == ["address"]
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("https://grantbook.example.com", "ok"),
        ("http://grantbook.example.com", "problem"),
        ("http://127.0.0.1.example.com", "problem"),
        ("http://localhost:8080", "ok"),
        ("http://127.8.8.8", "ok"),
        ("http://[::1]:8080", "ok"),
    ],
)
def test_plain_http_is_for_this_machine_alone(url: str, level: str) -> None:
    """Agents: they refuse to register over what anybody can read."""
    assert address_finding(url).level == level


def registrations(method: str, path: str, body: bytes) -> Reply | None:
    if path != "/auth/connect/register":
        return None
    if method == "OPTIONS":
        allow = [
            ("Access-Control-Allow-Methods", "POST"),
            ("Access-Control-Allow-Headers", "content-type, mcp-protocol-version"),
        ]
        return 204, [OPEN, *allow], b""
    if method in {"GET", "HEAD"}:
        return 405, [("Allow", "POST, OPTIONS")], b""
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
        ({("HEAD", "/auth/connect/register"): (502, [], b"")}, "other methods", "warning"),
        ({("HEAD", "/auth/connect/register"): (0, [], b"")}, "other methods", "problem"),
        ({("OPTIONS", "/auth/connect/register"): (0, [], b"")}, "cross origin", "problem"),
        ({("GET", "/admin/v1/clients"): (200, [JSON], b"{}")}, "closed /admin/v1/clients", "problem"),
        ({("GET", "/idp/v1/clients/x"): (401, [OPEN], b"")}, "closed /idp/v1/clients/x", "problem"),
        ({("GET", "/audit/v1/events"): (206, [JSON], b"{}")}, "closed /audit/v1/events", "problem"),
        ({("GET", "/revocations/v1/stream"): (200, [], b":" * 9_000_000)}, "closed /revocations/v1/stream", "problem"),
        ({("GET", "/metrics"): (200, [], b"up 1")}, "closed /metrics", "problem"),
        ({("GET", "/metrics"): (502, [], b"")}, "closed /metrics", "warning"),
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


@pytest.mark.parametrize("status", [413, 0])
def test_a_proxy_that_takes_small_bodies_alone_is_found(status: int) -> None:
    """Operators: a registration with keys may have 64 KiB; some proxies refuse it, some hang up."""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if len(body) > 10_000:
            return status, [("Content-Type", "text/html")], b"<h1>413</h1>"
        return registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        _, found = look("--url", url)
    assert found["large bodies"]["level"] == "problem"
    assert ("client_max_body_size" in found["large bodies"]["remedy"]) == (status == 413)
    assert "CORS preflight" in found


@pytest.mark.parametrize("readable", [True, False])
def test_a_probe_that_cannot_be_deleted_is_told_without_its_token(readable: bool) -> None:
    """Operators: which client is left, and nothing in the output that manages it; deleting is tried in any case."""
    asked: list[tuple[str, str]] = []
    here = ""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if b"grantbook doctor" in body:
            uri = f"{here}{REGISTER}/probe-7"
            said = {"registration_access_token": SECRET, "client_id": "probe-7", "registration_client_uri": uri}
            return 201, GOOD, json.dumps(said).encode()
        if path.startswith(f"{REGISTER}/"):
            asked.append((method, path))
            said = {"registration_access_token": SECRET}
            return (200, GOOD, json.dumps(said).encode()) if readable else (0, [], b"")
        return registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        here = url
        result, found = look("--url", url, "--register")
    assert found["manage"]["level"] == "problem"
    assert "probe-7 is still registered" in found["manage"]["remedy"]
    assert SECRET not in result.output
    assert asked == [(method, f"{REGISTER}/probe-7") for method in ("GET", "DELETE")]


def test_the_token_goes_to_no_other_address() -> None:
    """Operators of a register that answers with somebody else's address: the token stays here."""
    elsewhere: list[str] = []

    def steal(method: str, path: str, body: bytes) -> Reply:
        elsewhere.append(path)
        return 200, [], b""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if b"grantbook doctor" in body:
            said = {"registration_access_token": "t", "client_id": "../?x", "registration_client_uri": f"{thief}/a"}
            return 201, GOOD, json.dumps(said).encode()
        if path == f"{REGISTER}/..%2F%3Fx":
            return (200 if method == "GET" else 204), [], b""
        return registrations(method, path, body) or (404, [], b"")

    with answering(steal) as thief, answering(reply) as url:
        _, found = look("--url", url, "--issuer", url, "--register")
    assert found["address handed out"]["level"] == "problem"
    assert found["manage"]["level"] == "ok"
    assert elsewhere == []


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
        ({"authorization_endpoint": "http://["}, "authorization endpoint"),
        ({"token_endpoint": "https://"}, "token endpoint"),
        ({"code_challenge_methods_supported": {"S256": True}}, "PKCE"),
        ({"issuer": nested(900)}, "issuer"),
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


def test_places_that_contradict_each_other_are_found() -> None:
    """Agents, which read one or the other: they would register elsewhere."""
    here = ""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if path == "/.well-known/oauth-authorization-server":
            return 200, [("Content-Type", "text/plain"), OPEN], metadata(here, here)
        if path == "/.well-known/openid-configuration":
            return 200, [JSON, OPEN], metadata(here, here, registration_endpoint="https://idp.example/register")
        return registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        here = url
        result, found = look("--url", url)
    assert "registration_endpoint" in found["metadata agrees"]["seen"]
    assert found["metadata type"]["level"] == "warning"
    assert found["registration endpoint"]["level"] == "ok"
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ((301, [("Location", "https://elsewhere.example/")], b""), "(301)"),
        ((200, [("Content-Type", "text/html")], b"<html>"), "no JSON object"),
        ((200, [JSON], b"[" * 50_000), "no JSON object"),
        ((0, [], b""), "no answer"),
    ],
)
def test_metadata_that_no_agent_can_read_is_found(answer: Reply, seen: str) -> None:
    """Operators: what stands where the metadata should be, and the rest is looked at all the same."""
    with answering(lambda *_: answer) as issuer, answering(lambda *each: registrations(*each) or (404, [], b"")) as url:
        _, found = look("--url", url, "--issuer", f"{issuer}/t")
    assert found["metadata"]["level"] == "problem"
    assert seen in found["metadata"]["seen"]
    assert found["closed /metrics"]["level"] == "ok"


def test_an_issuer_is_compared_to_the_slash() -> None:
    """Agents: RFC 8414 section 3.3 has them refuse what differs, so an issuer is what the operator says it is."""
    here = ""

    def reply(method: str, path: str, body: bytes) -> Reply:
        if path == "/.well-known/oauth-authorization-server":
            return 200, [JSON, OPEN], metadata(here, here, issuer=f"{here}/")
        return registrations(method, path, body) or (404, [], b"")

    with answering(reply) as url:
        here = url
        levels = [look("--url", url, "--issuer", each)[1]["issuer"]["level"] for each in (url, f"{url}/")]
    assert levels == ["problem", "ok"]


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


def test_the_library_needs_nothing_of_the_command_line() -> None:
    """Token services, which install no extra: the SDK is imported without what the commands need."""
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('click', 'httpx', 'rich')))\n"
        "import grantbook.sdk.log, grantbook.sdk.reading, grantbook.sdk.revocations, grantbook.sdk.unsealing\n"
        "import grantbook.sdk.cli"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "The command line needs more than the library: pip install 'grantbook[cli]'"


def test_both_commands_are_there() -> None:
    """Auditors and operators: one program, with help that shows how it is used."""
    assert set(main.commands) == {"replay", "doctor"}
    assert "--register" in CliRunner().invoke(main, ["doctor", "--help"]).output
    assert "grantbook replay --client" in CliRunner().invoke(main, ["replay", "--help"]).output
