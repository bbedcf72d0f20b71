"""Who is let in, and who is not."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar import Litestar

from door import roles
from door.problems import Problem
from door.roles import Entry, TokenFile, TokensRefused
from tests.door.conftest import KEYRING, TOKENS, ask, bearer, make_app

FUZZED = make_app()


@pytest.mark.parametrize("needed", roles.ROLES)
@pytest.mark.parametrize("sent", roles.ROLES)
async def test_each_role_opens_its_own_door_alone(app: Litestar, needed: roles.Role, sent: roles.Role) -> None:
    """The auditors' token deletes nothing, and the identity provider's reads no lists."""
    answer = await ask(app, f"/for/{needed}", headers=bearer(sent))
    if sent == needed:
        assert (answer.status, answer.json()) == (200, {"name": f"the-{sent}", "role": sent})
    else:
        assert (answer.status, answer.json()["code"]) == (403, "not_permitted")


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([], 'Bearer realm="grantbook"'),
        ([(b"authorization", b"Bearer wrong")], 'Bearer realm="grantbook", error="invalid_token"'),
        ([*bearer("admin"), *bearer("admin")], 'Bearer realm="grantbook", error="invalid_token"'),
    ],
)
async def test_without_a_valid_token_the_answer_says_how_to_ask(
    app: Litestar, headers: list[tuple[bytes, bytes]], challenge: str
) -> None:
    """RFC 6750 section 3: an error code only where a token was presented."""
    answer = await ask(app, "/for/admin", headers=headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    """RFC 9110 section 11.1."""
    assert KEYRING.authenticate(f"{scheme} {TOKENS['feed']}").role == "feed"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        TOKENS["admin"],
        f"Bearer {TOKENS['admin']}x",
        f"Bearer {TOKENS['admin'][:-1]}",
        f"Bearer {TOKENS['admin']}\n",
        f"Bearer {TOKENS['admin']}, Bearer {TOKENS['admin']}",
        f"Bearer {TOKENS['admin']}\x00",
        f"Bearer\t{TOKENS['admin']}",
        f"Bearer {hashlib.sha256(TOKENS['admin'].encode()).hexdigest()}",
        "Bearer " + "a" * 100_000,
        "Bearer \ud800",
    ],
)
def test_what_only_looks_like_a_token_is_refused(header: str) -> None:
    """Near misses, and the hash itself from a leaked file, open nothing."""
    with pytest.raises(Problem) as refused:
        KEYRING.authenticate(header)
    assert refused.value.status == 401


@given(st.none() | st.text() | st.text().map("Bearer {}".format))
def test_any_authorization_header_is_a_caller_or_a_401(header: str | None) -> None:
    """A malformed header must never become a 500 (Keycloak CVE-2026-9803)."""
    with pytest.raises(Problem) as refused:
        KEYRING.authenticate(header)
    assert refused.value.status == 401


@settings(deadline=None)  # the first request to the documentation makes it
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"authorization",
                    b"x-request-id",
                    b"traceparent",
                    b"accept",
                    b"cookie",
                    b"content-type",
                    b"content-length",
                    b"host",
                    b"x-forwarded-for",
                    b"origin",
                ]
            ),
            st.binary(max_size=80),
        ),
        max_size=4,
    ),
    st.sampled_from(["/for/admin", "/things", "/healthz", "/nowhere", "/docs", "/admin/v1/things/x"]),
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]),
)
async def test_no_header_makes_a_server_error(headers: list[tuple[bytes, bytes]], path: str, method: str) -> None:
    """Anybody may send any bytes in headers; that is never our fault."""
    answer = await ask(FUZZED, path, method=method, headers=headers)
    assert answer.status < 500


def file_of(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    path.chmod(mode)
    return path


GOOD = json.dumps({"tokens": [{"name": "a", "role": "idp", "sha256": "0" * 64}]}).encode()


def entries(*changes: dict[str, str]) -> bytes:
    return json.dumps(
        {"tokens": [{"name": "a", "role": "idp", "sha256": "0" * 64} | each for each in changes]}
    ).encode()


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (GOOD, 0o604, "chmod 600"),
        (GOOD, 0o660, "chmod 600"),
        (b"", 0o600, "not understood"),
        (b"\xff", 0o600, "not understood"),
        (b"[]", 0o600, "not understood"),
        (b'{"tokens": [], "developement": true}', 0o600, "not understood"),
        (b'{"tokens": []}', 0o600, "no token"),
        (b'{"development": true, "tokens": []}', 0o600, "made for development"),
        (entries({"role": "root"}), 0o600, "not understood"),
        (entries({"sha256": "A" * 64}), 0o600, "no SHA-256"),
        (entries({"sha256": "plain-token"}), 0o600, "no SHA-256"),
        (entries({"name": "a b\n"}), 0o600, "has a name"),
        (entries({"name": "a"}, {"name": "b"}), 0o600, "one token twice"),
        (entries({}, *({"sha256": f"{number:064x}"} for number in range(1, 1_001))), 0o600, "more than 1000"),
        (b" " * 1_048_577, 0o600, "more than"),
    ],
)
def test_a_token_file_that_cannot_be_trusted_is_refused(tmp_path: Path, content: bytes, mode: int, says: str) -> None:
    """Operators: unsafe settings do not start, and the message says what to do."""
    with pytest.raises(TokensRefused, match=says):
        roles.load(file_of(tmp_path, content, mode), allow_development=False)


def test_a_missing_or_unreadable_token_file_says_what_to_do(tmp_path: Path) -> None:
    """Operators at their first start."""
    with pytest.raises(TokensRefused, match="python -m door mint"):
        roles.load(tmp_path / "none.json", allow_development=False)
    with pytest.raises(TokensRefused, match="cannot be read"):
        roles.load(tmp_path, allow_development=False)


def test_a_development_file_opens_the_all_in_one_alone(tmp_path: Path) -> None:
    """Tokens that a first start made for itself never guard a deployment."""
    path = tmp_path / "tokens.json"
    roles.write(path, TokenFile(development=True, tokens=(roles.entry("dev", "ops", TOKENS["ops"]),)))
    assert roles.load(path, allow_development=True).authenticate(f"Bearer {TOKENS['ops']}").name == "dev"
    with pytest.raises(TokensRefused, match="development"):
        roles.load(path, allow_development=False)


def test_the_file_keeps_no_token_and_is_closed_to_others(tmp_path: Path) -> None:
    """A copy of the file in a backup opens nothing."""
    path = tmp_path / "tokens.json"
    roles.write(path, TokenFile(tokens=(roles.entry("a", "idp", TOKENS["idp"]),)))
    assert TOKENS["idp"] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.json"]


def test_a_token_of_too_little_randomness_is_not_made() -> None:
    """A composition root that asks for 16 bytes is told."""
    with pytest.raises(ValueError, match="32 random bytes"):
        roles.new_token("idp", b"x" * 31)


def test_a_guard_for_a_role_that_does_not_exist_is_not_made() -> None:
    """A typing error in a route must not make a door that nobody or anybody may pass."""
    with pytest.raises(ValueError, match="roles are"):
        roles.requires("root")
    with pytest.raises(ValueError, match="roles are"):
        roles.requires()


def test_mint_prints_a_token_once_and_keeps_its_hash(tmp_path: Path) -> None:
    """An operator mints, and what was printed lets its holder in; earlier tokens stay."""
    path = tmp_path / "tokens.json"
    minted: list[tuple[str, roles.Role]] = [("idp-1", "idp"), ("ops-1", "ops")]
    for name, role in minted:
        command = [sys.executable, "-m", "door", "mint", "--name", name, "--role", role, "--file", str(path)]
        token = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert token not in path.read_text()
        assert roles.load(path, allow_development=False).authenticate(f"Bearer {token}") == roles.Caller(name, role)
    assert [each.name for each in roles.read(path).tokens] == ["idp-1", "ops-1"]
    assert isinstance(roles.read(path).tokens[0], Entry)


def test_mint_refuses_in_one_line(tmp_path: Path) -> None:
    """No traceback for a typing error."""
    for name, path in [("a b", tmp_path / "t.json"), ("a", tmp_path / "none" / "t.json")]:
        command = [sys.executable, "-m", "door", "mint", "--name", name, "--role", "idp", "--file", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.stderr
