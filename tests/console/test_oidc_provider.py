"""Signing in at an OpenID provider that others wrote, the certified one of npm: strict on both sides, and it works."""

import json
import re
import secrets
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from msgspec import Struct, structs

from console.oidc import Admin, Oidc, OidcSettings, Pending, ProviderAway, SignInRefused

pytestmark = [pytest.mark.agents, pytest.mark.timeout(90)]

HERE: Final = Path(__file__).parent / "provider"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
MAX_PAGES: Final = 12
CALLBACK: Final = "https://console.example/console/sign-in/callback"
SECRET: Final = "s3cret+with/all: of% it&="
PEOPLE: Final[dict[str, Any]] = {
    "ada": {
        "preferred_username": "ada.lovelace",
        "groups": ["staff", "register-admins"],
        "email": "ada@example.com",
        "email_verified": True,
    },
    "bob": {"preferred_username": "bob", "groups": ["staff"], "email": "bob@example.com", "email_verified": True},
    "eve": {"groups": "staff", "email": "ada@example.com", "email_verified": False},
}


def client(id_: str, algorithm: str, method: str) -> dict[str, Any]:
    made = {
        "client_id": id_,
        "redirect_uris": [CALLBACK],
        "grant_types": ["authorization_code"],
        "response_types": ["code"],
        "id_token_signed_response_alg": algorithm,
        "token_endpoint_auth_method": method,
    }
    return made if method == "none" else made | {"client_secret": SECRET}


CLIENTS: Final = [
    client("basic", "RS256", "client_secret_basic"),
    client("public", "ES256", "none"),
    *(client(algorithm, algorithm, "client_secret_basic") for algorithm in ("PS256", "EdDSA", "Ed25519")),
]


class Running(Struct, frozen=True):
    """The provider, and whether it says who people are in its UserInfo alone."""

    issuer: str
    thin: bool


@contextmanager
def started(*, thin: bool) -> Iterator[Running]:
    """The provider as a child process."""
    node = shutil.which("node")
    assert node, "these tests need Node.js and npm: install them, then `make test-agents`"
    pinned = json.loads((HERE / "package.json").read_text())["dependencies"]["oidc-provider"]
    installed = HERE / "node_modules" / "oidc-provider" / "package.json"
    assert installed.exists(), "oidc-provider is not installed: `make test-agents` does that"
    assert json.loads(installed.read_text())["version"] == pinned, "another oidc-provider is installed than is pinned"
    process = subprocess.Popen(
        [node, str(HERE / "provider.mjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            wanted = {"clients": CLIENTS, "people": PEOPLE, "thin": thin}
            process.stdin.write(json.dumps(wanted).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
            assert ready, "the provider did not start"
            yield Running(json.loads(process.stdout.readline())["issuer"], thin)
        finally:
            # It ends with its input, however we end: `node` may be a wrapper, whose child would outlive a kill.
            process.stdin.close()
            process.wait(STOP_SECONDS)


@pytest.fixture(scope="module", params=[False, True], ids=["in the ID token", "in UserInfo"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with started(thin=request.param) as running:
        yield running


def console(running: Running, client_id: str = "basic", **more: Any) -> Oidc:
    settings = OidcSettings(
        issuer=running.issuer,
        client_id=client_id,
        client_secret=more.pop("client_secret", None if client_id == "public" else SECRET),
        redirect_uri=CALLBACK,
        admin_claim=more.pop("admin_claim", "groups"),
        admin_values=more.pop("admin_values", ("register-admins",)),
    )
    return Oidc(settings, http=None, random=secrets.token_bytes, clock=more.pop("clock", time.time))


async def visited(url: str, login: str | None) -> dict[str, str]:
    """What a browser brings back that signs in and agrees with everything; or without a login, turns back."""
    async with httpx.AsyncClient(follow_redirects=False) as browser:
        answer = await browser.get(url)
        for _ in range(MAX_PAGES):
            if answer.is_redirect:
                where = answer.headers["location"]
                if where.startswith(CALLBACK):
                    return dict(parse_qsl(urlsplit(where).query, keep_blank_values=True, strict_parsing=True))
                answer = await browser.get(answer.url.join(where))
                continue
            assert answer.status_code == 200, answer.text
            prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
            assert prompt is not None, answer.text
            if login is None:
                answer = await browser.get(f"{answer.url}/abort")
            else:
                form = {"prompt": prompt[1], "login": login, "password": "any"}
                answer = await browser.post(answer.url, data=form)
    raise AssertionError("the provider never sends the browser back")


async def signed_in(oidc: Oidc, login: str) -> Admin:
    url, pending = await oidc.begin("/console/clients")
    return await oidc.finish(pending, await visited(url, login))


@pytest.mark.parametrize("client_id", ["basic", "public", "PS256", "EdDSA", "Ed25519"])
async def test_an_admin_signs_in_at_a_provider_that_others_wrote(running: Running, client_id: str) -> None:
    """Admins: it works with what is out there: with and without secret, with each algorithm, thin ID tokens or not."""
    admin = await signed_in(console(running, client_id), "ada")
    assert admin == Admin("ada.lovelace", "ada", running.issuer)


async def test_who_is_no_admin_stays_out(running: Running) -> None:
    """Protects the register from everybody else at the same provider, and from an address that is not verified."""
    for login in ("bob", "eve", "stranger"):
        with pytest.raises(SignInRefused, match="no admin"):
            await signed_in(console(running), login)
    by_address = console(running, admin_claim="email", admin_values=("ada@example.com",))
    assert (await signed_in(by_address, "ada")).subject == "ada"
    with pytest.raises(SignInRefused, match="no admin"):
        await signed_in(by_address, "eve")


async def test_who_turns_back_is_not_signed_in(running: Running) -> None:
    """Admins who changed their mind are told so, and not that something broke."""
    oidc = console(running)
    url, pending = await oidc.begin("/console")
    answer = await visited(url, None)
    assert answer["error"] == "access_denied"
    with pytest.raises(SignInRefused, match="denied"):
        await oidc.finish(pending, answer)


async def test_the_provider_names_itself_and_has_to(running: Running) -> None:
    """Protects from mix-up (RFC 9207), which this provider guards against."""
    for change in ("left out", "another"):
        oidc = console(running)
        url, pending = await oidc.begin("/console")
        answer = await visited(url, "ada")
        assert answer.pop("iss") == running.issuer
        with pytest.raises(SignInRefused, match="identity provider"):
            await oidc.finish(pending, answer if change == "left out" else answer | {"iss": "https://evil.example"})


async def test_a_code_counts_once_and_for_who_asked(running: Running) -> None:
    """Protects from who saw the callback: a strict provider and the console agree on what PKCE and a code are."""
    oidc = console(running)
    url, pending = await oidc.begin("/console")
    answer = await visited(url, "ada")
    stranger, again = structs.replace(pending, code_verifier="x" * 43), structs.replace(pending)
    with pytest.raises(SignInRefused, match="takes the code no more"):
        await oidc.finish(stranger, answer)
    assert (await oidc.finish(pending, answer)).subject == "ada"
    with pytest.raises(SignInRefused, match="takes the code no more"):
        await oidc.finish(again, answer)
    url, pending = await oidc.begin("/console")
    answer = await visited(url, "ada")
    wrong = Pending(pending.state, "another", pending.code_verifier, "/console", pending.begun_at)
    with pytest.raises(SignInRefused, match="not for this sign-in"):
        await oidc.finish(wrong, answer)


async def test_a_console_that_is_not_set_up_right_is_told_what_is_wrong(running: Running) -> None:
    """Operators: a wrong secret, and a clock that is wrong, are not their admins' fault."""
    with pytest.raises(ProviderAway, match="id or secret"):
        await signed_in(console(running, client_secret="another"), "ada")
    with pytest.raises(SignInRefused, match="does not count"):
        await signed_in(console(running, clock=lambda: time.time() - 3_600), "ada")
