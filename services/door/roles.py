"""Who may call: bearer tokens (RFC 6750) with a role each, kept as SHA-256 hashes in one file.

A token is 256 random bits, so a plain hash of it is as good as a slow one. Every entry is compared in constant time,
and all of them always: how long a check takes says nothing about how near a guess was, or whose token it was.
"""

import base64
import hashlib
import hmac
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
from litestar.connection import ASGIConnection, Request
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard
from msgspec import Struct

from door import asked, requests
from door.problems import Problem

Role = Literal["idp", "admin", "auditor", "feed", "ops", "console"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

ON_BEHALF_OF: Final = "Grantbook-On-Behalf-Of"
"""Header in which the console names the person who asks: it has no rights of its own, only those of that person."""
AT_CONSOLE: Final[frozenset[Role]] = frozenset({"admin", "auditor"})
"""What a person at the console may be: whoever is let in there may read the audit too."""
_ON_BEHALF_OF: Final = ON_BEHALF_OF.lower().encode()
MAX_AUTHORIZATION_CHARACTERS: Final = 1_024
MAX_TOKENS: Final = 1_000
MAX_NAME_CHARACTERS: Final = 64
MIN_TOKEN_BYTES: Final = 32
MAX_FILE_BYTES: Final = 1_048_576

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARACTERS - 1}}}\Z")
_PERSON: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@+-]{{0,{MAX_NAME_CHARACTERS - 1}}}\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *\Z", re.IGNORECASE)
"""RFC 6750 section 2.1: the scheme in any case (RFC 9110 section 11.1), then a b64token."""


class Caller(Struct, frozen=True):
    """Who is asking: the name of its token, and the role that it has."""

    name: str
    role: Role


class Entry(Struct, frozen=True):
    """One token of the file: whose, for which role, and its SHA-256 in hex."""

    name: str
    role: Role
    sha256: str


class TokenFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The token file. `development` marks one that the all-in-one start made for itself."""

    development: bool = False
    tokens: tuple[Entry, ...] = ()


class TokensRefused(Exception):
    """The token file cannot be used. The message says what to do about it."""


class Keyring(Struct, frozen=True):
    """The tokens that open this house."""

    entries: tuple[Entry, ...]

    def authenticate(self, authorization: str | None) -> Caller:
        """Who sent this `Authorization` header. Raises a 401 `Problem`, and nothing else, whatever the header is."""
        if authorization is None:
            raise _unauthenticated(presented=False)
        token = bearer_token(authorization)
        digest = _digest(token or "")
        found: Entry | None = None
        for each in self.entries:
            # No early exit: the loop takes as long for the first entry as for none.
            if hmac.compare_digest(each.sha256, digest):
                found = each
        if token is None or found is None:
            raise _unauthenticated(presented=True)
        return Caller(found.name, found.role)


def bearer_token(authorization: str) -> str | None:
    """The token in an `Authorization` header (RFC 6750 section 2.1), whatever the header is."""
    match = _BEARER.match(authorization) if len(authorization) <= MAX_AUTHORIZATION_CHARACTERS else None
    return match[1] if match else None


def authorization_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    """The request's `Authorization` header. Two of them are not one: a proxy and we might disagree on which counts."""
    sent = asked.headers(connection, b"authorization")
    return sent[0] if len(sent) == 1 else ", ".join(sent) if sent else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _unauthenticated(*, presented: bool) -> Problem:
    # RFC 6750 section 3.1: a request without authentication information is told the scheme, and no error code.
    challenge = 'Bearer realm="grantbook"' + (', error="invalid_token"' if presented else "")
    detail = "the bearer token is not valid here" if presented else "this needs a bearer token"
    return Problem(401, "not_authenticated", detail, headers={"WWW-Authenticate": challenge})


def new_token(role: Role, random: bytes) -> str:
    """A token of at least 256 random bits: `gb_<role>_<base64url>`, so that scanners for leaked secrets can name it."""
    if len(random) < MIN_TOKEN_BYTES:
        raise ValueError(f"a token needs {MIN_TOKEN_BYTES} random bytes")
    return f"gb_{role}_{base64.urlsafe_b64encode(random).decode().rstrip('=')}"


def entry(name: str, role: Role, token: str) -> Entry:
    """What the file keeps of a token: its hash alone."""
    return Entry(name, role, _digest(token))


def read(path: Path) -> TokenFile:
    """The token file, checked. Raises `TokensRefused`."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            body = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise TokensRefused(
            f"There is no token file {path}. Make one: python -m door mint --name NAME --role ROLE --file {path}"
        ) from None
    except OSError as error:
        raise TokensRefused(
            f"The token file {path} cannot be read: {error.strerror}. Check its path and owner."
        ) from None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise TokensRefused(f"The token file {path} is open to other accounts. Close it: chmod 600 {path}")
    try:
        file_ = msgspec.json.decode(body, type=TokenFile) if len(body) <= MAX_FILE_BYTES else None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TokensRefused(f"The token file {path} is not understood: {error}. {_ANEW}") from None
    if file_ is None:
        raise TokensRefused(f"The token file {path} has more than {MAX_FILE_BYTES} bytes. {_ANEW}")
    _check(path, file_)
    return file_


_ANEW: Final = "Correct it, or move it away and mint its tokens anew: python -m door mint --help"


def _check(path: Path, file: TokenFile) -> None:
    if len(file.tokens) > MAX_TOKENS:
        raise TokensRefused(f"The token file {path} has more than {MAX_TOKENS} tokens. Remove those that are not used.")
    for each in file.tokens:
        if not _NAME.match(each.name):
            raise TokensRefused(f"The token file {path} has a name that is not {_NAME_SAYS}. {_ANEW}")
        if not _SHA256.match(each.sha256):
            raise TokensRefused(f"The token file {path} has no SHA-256 in hex for {each.name}. {_ANEW}")
    if len({each.sha256 for each in file.tokens}) < len(file.tokens):
        raise TokensRefused(f"The token file {path} has one token twice: whose it is cannot be told. {_ANEW}")


_NAME_SAYS: Final = f"made of letters, digits, dot, dash and underscore, at most {MAX_NAME_CHARACTERS}"


def check_name(name: str) -> str:
    """The name, if a token may have it. Raises `TokensRefused`."""
    if not _NAME.match(name):
        raise TokensRefused(f"A name is {_NAME_SAYS}.")
    return name


def write(path: Path, file: TokenFile) -> None:
    """Replace the token file, readable by its owner alone. A crash leaves the old file or the new one, whole."""
    body = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as temporary:
            temporary.write(body)
            temporary.flush()
            os.fsync(temporary.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, *, allow_development: bool) -> Keyring:
    """The keyring of a token file. Raises `TokensRefused`: also for the all-in-one's own file anywhere else."""
    file = read(path)
    if file.development and not allow_development:
        raise TokensRefused(
            f"The token file {path} was made for development. Mint tokens of your own into another file: "
            "python -m door mint --name NAME --role ROLE --file FILE"
        )
    if not file.tokens:
        raise TokensRefused(
            f"The token file {path} has no token, so nobody could call. Add one: "
            f"python -m door mint --name NAME --role ROLE --file {path}"
        )
    return Keyring(file.tokens)


@lru_cache
def requires(*roles: Role) -> Guard:
    """A guard that lets in callers of these roles: 401 without a valid token, 403 with another role's."""
    if not roles or not set(roles) <= set(ROLES):
        raise ValueError(f"roles are {', '.join(ROLES)}")

    # Asynchronous although it awaits nothing: Litestar runs other guards in a thread, which triples a request's cost.
    async def guard(connection: ASGIConnection[object, object, object, State], _: BaseRouteHandler) -> None:
        keyring = connection.app.state.keyring
        assert isinstance(keyring, Keyring)
        caller = keyring.authenticate(authorization_of(connection))
        requests.note_caller(caller.name)
        if caller.role == "console" and caller.role not in roles:
            caller = _person_at_console(connection, roles)
            requests.note_caller(caller.name)
        if caller.role not in roles:
            raise Problem(403, "not_permitted", f"this needs a token of role {' or '.join(roles)}")
        connection.scope["user"] = caller

    guard.__doc__ = f"Role {' or '.join(roles)}."
    guard.roles = roles  # type: ignore[attr-defined]  # read by `roles_of`, for the documentation
    return guard


def _person_at_console(connection: ASGIConnection[Any, Any, Any, Any], roles: tuple[Role, ...]) -> Caller:
    """Whom the console asks for, in the role that the handler wants of a person. Raises a `Problem`."""
    named = asked.headers(connection, _ON_BEHALF_OF)
    role = next((each for each in roles if each in AT_CONSOLE), None)
    if role is None:
        raise Problem(403, "not_permitted", f"this needs a token of role {' or '.join(roles)}")
    if len(named) != 1 or not _PERSON.match(named[0]):
        detail = f"the console acts for a person: name one in {ON_BEHALF_OF}, of letters, digits and . _ @ + -"
        raise Problem(403, "not_permitted", detail)
    return Caller(named[0], role)


def roles_of(guards: object) -> tuple[Role, ...]:
    """The roles that a handler's guards ask for: none where anybody may call."""
    found: Mapping[Role, None] = {}
    for guard in guards if isinstance(guards, list | tuple) else ():
        found = {**found, **dict.fromkeys(getattr(guard, "roles", ()))}
    return tuple(found)


def caller_of(request: Request[object, object, State]) -> Caller:
    """The dependency `caller`: who passed the guard. A handler without one has no caller to be given."""
    caller = request.scope.get("user")
    if not isinstance(caller, Caller):
        raise TypeError("`caller` needs a guard: guards=[requires(...)]")
    return caller
