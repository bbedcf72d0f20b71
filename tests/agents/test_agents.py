"""Agents that people use register with their own code: what they send is taken, what we answer they understand."""

import json
import queue
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from msgspec import Struct

from deploy.dev import processes
from deploy.dev.processes import Product
from deploy.dev.servers import dies_with_parent, free_port
from tests.system.http import Caller

pytestmark = [pytest.mark.agents, pytest.mark.timeout(90)]

HERE: Final = Path(__file__).parent
PACKAGES: Final = HERE / "node_modules"
SDK_SECONDS: Final = 30.0
BROWSER_SECONDS: Final = 30.0
LISTED_SECONDS: Final = 10.0
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05

INSPECTOR: Final = {
    "redirect_uris": ["http://localhost:6274/oauth/callback", "http://localhost:6274/oauth/callback/debug"],
    "token_endpoint_auth_method": "none",
    "grant_types": ["authorization_code", "refresh_token"],
    "response_types": ["code"],
    "client_name": "MCP Inspector",
    "client_uri": "https://github.com/modelcontextprotocol/inspector",
    "scope": "",
}
"""What MCP Inspector sends; its scope is the empty string as long as its user has typed none."""
BROWSER: Final = f"#!{sys.executable}\nimport sys, urllib.request\nurllib.request.urlopen(sys.argv[-1]).close()\n"
"""Opens the page that it is given, and shows it to nobody."""


class Running(Struct, frozen=True):
    """The product: where agents register, and its admin."""

    endpoint: str
    admin: Caller


class Visits(Struct, frozen=True):
    """A protected resource, and the queries with which browsers come to sign in at its authorization server."""

    resource: str
    queries: "queue.SimpleQueue[dict[str, list[str]]]"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("agents")) as servers:
        yield servers


@pytest.fixture(scope="module")
def running(product: Product) -> Iterator[Running]:
    with (
        processes.service(product, "registry", "serve") as writes,
        processes.service(product, "projector", "project", serves=False),
        processes.service(product, "projector", "serve") as reads,
    ):
        admin = Caller(f"http://127.0.0.1:{reads}", product.tokens["admin"])
        yield Running(f"http://127.0.0.1:{writes}/auth/connect/register", admin)


@pytest.fixture(scope="module")
def node() -> str:
    """Node.js, with the packages beside this file."""
    found = shutil.which("node")
    assert found, "these tests need Node.js and npm: install them, then `make test-agents`"
    lock = json.loads((HERE / "package-lock.json").read_text())["packages"]
    for package, version in json.loads((HERE / "package.json").read_text())["dependencies"].items():
        installed = PACKAGES / package / "package.json"
        assert installed.exists(), f"{package} is not installed: `make test-agents` does that"
        assert json.loads(installed.read_text())["version"] == version == lock[f"node_modules/{package}"]["version"], (
            f"another {package} is installed than is pinned: `make test-agents` puts that right"
        )
    return found


def register_with_sdk(node: str, endpoint: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the SDK makes of our answer; see `register_with_sdk.mjs`."""
    done = subprocess.run(
        [node, str(HERE / "register_with_sdk.mjs"), endpoint],
        input=json.dumps(metadata),
        capture_output=True,
        text=True,
        timeout=SDK_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def nulls(value: Any) -> bool:
    """Whether there is a null anywhere in it."""
    if isinstance(value, dict):
        return any(nulls(each) for each in value.values())
    return any(nulls(each) for each in value) if isinstance(value, list) else value is None


def listed(running: Running, name: str, position: str) -> list[dict[str, Any]]:
    """What the admin finds under this name, at that position of the log or after."""
    answer = running.admin("GET", f"/admin/v1/clients?name={quote(name)}&at_least={position}")
    assert answer.status == 200, answer.body
    items: list[dict[str, Any]] = answer.body["items"]
    return items


def until_listed(running: Running, redirect_uri: str) -> dict[str, Any]:
    """The one client with this redirect URI, with all of its metadata, once the admin finds it."""
    until = time.monotonic() + LISTED_SECONDS
    while time.monotonic() < until:
        items = running.admin("GET", f"/admin/v1/clients?redirect_uri={quote(redirect_uri, safe='')}").body["items"]
        if items:
            assert len(items) == 1
            detail: dict[str, Any] = running.admin("GET", f"/admin/v1/clients/{items[0]['client_id']}").body
            return detail
        time.sleep(POLL_SECONDS)
    pytest.fail(f"no client with {redirect_uri} was listed within {LISTED_SECONDS} s")


@pytest.mark.parametrize("scope", ["", "tools profile"])
def test_mcp_inspector_registers(node: str, running: Running, scope: str) -> None:
    """Developers of MCP servers: the tool that they try them with gets a client, without a scope too."""
    name = f"MCP Inspector {'scoped' if scope else 'plain'}"
    sent = INSPECTOR | {"client_name": name, "scope": scope}
    said = register_with_sdk(node, running.endpoint, sent)
    assert "registered" in said, said
    registered = said["registered"]

    assert registered["client_id"]
    expected = {member: value for member, value in sent.items() if value != ""}
    assert {member: registered.get(member) for member in expected} == expected
    assert registered.get("scope") == (scope or None)
    assert not nulls(registered)
    assert "client_secret" not in registered
    assert "client_secret_expires_at" not in registered
    found = listed(running, name, said["position"])
    assert [each["client_id"] for each in found] == [registered["client_id"]]
    assert found[0]["redirect_uris"] == sent["redirect_uris"]


def test_an_agent_with_a_secret_registers(node: str, running: Running) -> None:
    """Agents on servers: the SDK finds the secret that it is to send in a token request, and that it never expires."""
    sent = {
        "redirect_uris": ["https://agent.example/oauth/callback"],
        "token_endpoint_auth_method": "client_secret_post",
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "client_name": "Agent on a server",
        "client_uri": "https://agent.example/",
        "logo_uri": "https://agent.example/logo.png",
        "tos_uri": "https://agent.example/terms",
        "policy_uri": "https://agent.example/privacy",
        "jwks_uri": "https://agent.example/keys.json",
        "scope": "tools",
        "contacts": ["operators@agent.example"],
        "software_id": "agent",
        "software_version": "1.2.3",
    }
    said = register_with_sdk(node, running.endpoint, sent)
    assert "registered" in said, said
    registered = said["registered"]

    assert {member: registered.get(member) for member in sent} == sent
    assert len(registered["client_secret"]) >= 43  # 256 bits in base64url
    assert registered["client_secret_expires_at"] == 0
    assert registered["client_id_issued_at"] > 0
    assert not nulls(registered)
    found = listed(running, "Agent on a server", said["position"])
    assert [each["client_id"] for each in found] == [registered["client_id"]]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"grant_types": ["client_credentials"]}, "invalid_client_metadata"),
        # The SDK has no error of its own for RFC 7591's invalid_redirect_uri, and calls what it does not know so.
        ({"redirect_uris": ["http://agent.example/callback"]}, "server_error"),
    ],
)
def test_a_refusal_reaches_the_developer_of_an_agent(
    node: str, running: Running, wrong: dict[str, Any], code: str
) -> None:
    """Developers of agents: the SDK's error says which member was wrong, in our words."""
    said = register_with_sdk(node, running.endpoint, INSPECTOR | wrong)
    assert said["refused"]["code"] == code
    assert said["refused"]["message"].startswith(f"{next(iter(wrong))}: ")


@contextmanager
def protected_resource(endpoint: str, auth_methods: list[str]) -> Iterator[Visits]:
    """A resource that wants a token (RFC 9728), and an authorization server (RFC 8414) with our registration."""
    queries: queue.SimpleQueue[dict[str, list[str]]] = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if asked.path == "/authorize":
                queries.put(parse_qs(asked.query))
                self.answer(200, {"sign": "in"})
            elif asked.path in documents:
                self.answer(200, documents[asked.path])
            elif asked.path == "/mcp":
                self.challenge()
            else:
                self.answer(404, {})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.challenge()

        def challenge(self) -> None:
            metadata = f"{origin}/.well-known/oauth-protected-resource/mcp"
            self.answer(401, {}, {"WWW-Authenticate": f'Bearer resource_metadata="{metadata}"'})

        def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing: what matters is asserted."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        origin = f"http://127.0.0.1:{server.server_port}"
        documents: dict[str, dict[str, Any]] = {
            "/.well-known/oauth-protected-resource/mcp": {
                "resource": f"{origin}/mcp",
                "authorization_servers": [origin],
                "scopes_supported": ["tools"],
            },
            "/.well-known/oauth-authorization-server": {
                "issuer": origin,
                "authorization_endpoint": f"{origin}/authorize",
                "token_endpoint": f"{origin}/token",
                "registration_endpoint": endpoint,
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": auth_methods,
            },
        }
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Visits(f"{origin}/mcp", queries)
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mcp_remote(node: str, folder: Path, resource: str, callback_port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """mcp-remote, pointed at a resource; its browser is ours, under each name by which it may look for one."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("browser", "open", "xdg-open"):
        program = programs / name
        program.write_text(BROWSER)
        program.chmod(stat.S_IRWXU)
    command = [node, str(PACKAGES / "mcp-remote" / "dist" / "proxy.js"), resource, str(callback_port)]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [*command, "--transport", "http-only", "--allow-http"],
            # Nothing of ours but these: no desktop, no proxy, no home in which it has signed in before.
            env={
                "PATH": f"{programs}:{Path(node).parent}:/usr/bin:/bin",
                "BROWSER": str(programs / "browser"),
                "HOME": str(folder),
                "MCP_REMOTE_CONFIG_DIR": str(folder / "config"),
            },
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def until_visited(visits: Visits, process: "subprocess.Popen[bytes]", said: Path) -> dict[str, list[str]]:
    """The query with which the agent sends its user's browser to sign in."""
    until = time.monotonic() + BROWSER_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            return visits.queries.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
    pytest.fail(f"mcp-remote sent no browser to sign in within {BROWSER_SECONDS} s: {said.read_text()}")


@pytest.mark.parametrize("method", ["none", "client_secret_basic", "client_secret_post"])
def test_mcp_remote_registers_by_itself(node: str, running: Running, tmp_path: Path, method: str) -> None:
    """Users of desktop agents: from the resource alone it finds us, and they sign in as the client that it became."""
    callback_port = free_port()
    redirect_uri = f"http://localhost:{callback_port}/oauth/callback"
    with (
        protected_resource(running.endpoint, [method]) as visits,
        mcp_remote(node, tmp_path, visits.resource, callback_port) as process,
    ):
        query = until_visited(visits, process, tmp_path / "said")

    client = until_listed(running, redirect_uri)
    assert query["client_id"] == [client["client_id"]]
    assert query["redirect_uri"] == [redirect_uri]
    (file,) = (tmp_path / "config").rglob("*_client_info.json")
    stored = json.loads(file.read_text())
    assert stored["client_id"] == client["client_id"]
    assert not nulls(stored)
    assert ("client_secret" in stored) == (method != "none")
    metadata = client["metadata"]
    assert {member: stored[member] for member in metadata} == metadata
    assert metadata["token_endpoint_auth_method"] == method
    assert metadata["redirect_uris"] == [redirect_uri]
    assert metadata["application_type"] == "native"
    assert metadata["scope"] == "tools"
    package = json.loads((PACKAGES / "mcp-remote" / "package.json").read_text())
    assert metadata["software_version"] == package["version"]
