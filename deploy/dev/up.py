"""The all-in-one: servers as children, and registry, projector and read API in this process on one port.

When a child dies all of it stops, with the reason. Ctrl-C finishes what was acknowledged, then stops the children.
"""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import structlog
import uvloop
from litestar import Litestar
from msgspec import Struct

import console.app
import projector.app
import registry.app
from console import links
from console.settings import Settings as ConsoleSettings
from deploy.dev import staging
from deploy.dev.servers import Server, free_port, nats_server, postgres_server
from door import front, logs, roles, serving
from grantbook.sdk import connection
from grantbook.sdk.log import Unavailable
from projector import db
from projector.api.revocations import end_streams
from registry import streams
from registry.api.answers import ANSWERS
from registry.settings import Settings as RegistrySettings

WATCH_SECONDS: Final = 0.5
DATABASE_SECONDS: Final = 5.0
TOKEN_ROLES: Final[tuple[roles.Role, ...]] = ("idp", "admin", "auditor", "feed", "ops")
"""Roles that `dev.env` has a token of. The console's own token stays here: it acts for whoever is signed in."""
MAX_LOG_BYTES: Final = 8 * 1024**3
DISK_SHARE_OF_LOG: Final = 4
"""The log may grow to one part in so many of the disk's free room; nats-server sets it aside at once."""

_log = structlog.get_logger("grantbook")


class CannotStart(Exception):
    """The all-in-one cannot start. The message says what to do."""


class Kept(Struct):
    """What stays the same between runs, in `state.json` (mode 0600): ports, so that clients find us; passwords."""

    nats_port: int
    postgres_port: int
    nats_password: str
    postgres_password: str
    tokens: dict[str, str]
    console_token: str = ""
    link_key: str = ""
    """Key of the links that sign in to the console, in hex."""


class Place(Struct, frozen=True):
    """Where everything is."""

    url: str
    nats_url: str
    nats_monitor_url: str | None
    database_url: str
    tokens_file: Path
    kept: Kept


def run(*, host: str, port: int, data: Path, quiet: bool) -> int:
    """Start everything, serve until told to stop. The exit status. Raises `CannotStart` and `ServerFailed`."""
    _refuse_busy(host, port)
    # Told to stop by a supervisor, as by Ctrl-C: the servers are stopped in order, and not left to die with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data = data.absolute()
    kept = _keep(data)
    own_nats = _of_the_users_own("GRANTBOOK_NATS_URL", kept.nats_password)
    own_database = _of_the_users_own("GRANTBOOK_DATABASE_URL", kept.postgres_password)
    servers: list[Server] = []
    try:
        if not own_nats:
            servers.append(
                nats_server(data / "nats", port=kept.nats_port, user="grantbook", password=kept.nats_password)
            )
        if not own_database:
            servers.append(postgres_server(data / "postgres", port=kept.postgres_port, password=kept.postgres_password))
        urls = {server.name: server for server in servers}
        place = Place(
            url=f"http://{host}:{port}",
            nats_url=own_nats or urls["nats-server"].url,
            nats_monitor_url=None if own_nats else urls["nats-server"].monitor_url,
            database_url=own_database or urls["postgres"].url,
            tokens_file=_token_file(data, kept),
            kept=kept,
        )
        _write_environment(data, place)
        logs.configure()
        return uvloop.run(_serve(host, port, place, servers, data, quiet=quiet))
    except KeyboardInterrupt:
        return 0
    finally:
        for server in reversed(servers):
            server.stop()


def _of_the_users_own(variable: str, password_of_ours: str) -> str | None:
    """A server that the environment names. Not one of ours: `dev.env` may have been read into the same shell."""
    url = os.environ.get(variable)
    return url if url and password_of_ours not in url else None


def create_app(place: Place) -> Litestar:
    """Registry and projector as one application: the routes of both, one port."""
    registry_settings = RegistrySettings(
        nats_url=place.nats_url,
        nats_monitor_url=place.nats_monitor_url,
        tokens_file=place.tokens_file,
        base_url=place.url,
        allow_development_tokens=True,
        policy=registry.app.policy_from(os.environ),
    )
    projector_settings = projector.app.Settings(
        nats_url=place.nats_url,
        database_url=place.database_url,
        tokens_file=place.tokens_file,
        allow_development_tokens=True,
    )

    console_settings = ConsoleSettings(
        url=place.url,
        registry_url=place.url,
        projector_url=place.url,
        token=place.kept.console_token,
        link_key=bytes.fromhex(place.kept.link_key),
    )

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.registry = await stack.enter_async_context(registry.app.running(registry_settings))
            app.state.projector = await stack.enter_async_context(projector.app.running_projector(projector_settings))
            app.state.reads = await stack.enter_async_context(projector.app.opened_reads(projector_settings))
            await stack.enter_async_context(console.app.running(console_settings, app.state))
            yield

    return front.litestar_app(
        [*registry.app.ROUTES, *projector.app.ROUTES, *console.app.ROUTES],
        name="grantbook",
        keyring=roles.load(place.tokens_file, allow_development=True),
        mint_request_id=registry.app.new_id,
        ready=registry.app.READY | projector.app.READY,
        warn=registry.app.WARN | projector.app.WARN | console.app.WARN,
        lifespan=[lifespan, *projector.app.LIFESPANS],
        dependencies=registry.app.DEPENDENCIES | projector.app.DEPENDENCIES | console.app.DEPENDENCIES,
        answers=ANSWERS | projector.app.ANSWERS | console.app.ANSWERS,
        renderings=registry.app.RENDERINGS | console.app.RENDERINGS,
    )


async def _serve(host: str, port: int, place: Place, servers: list[Server], data: Path, *, quiet: bool) -> int:
    try:
        await _ensure_streams(place.nats_url, data)
        for each in servers:
            if each.name == "nats-server":
                staging.keep_in_memory(each.data)
        await db.within_start("Postgres", lambda: _reach(place.database_url), seconds=DATABASE_SECONDS)
        application = create_app(place)
    except (streams.UnsafeStreams, Unavailable, db.NotReached, OSError, ValueError) as error:
        raise CannotStart(str(error)) from error
    server = serving.Server(application, host=host, port=port, on_exit=lambda: end_streams(application))
    watching = asyncio.create_task(_watch(server, servers, place, data, quiet=quiet))
    try:
        await server.serve()
    finally:
        watching.cancel()
    if not server.started:
        raise CannotStart("see the reason above")
    died = [each for each in servers if not each.alive]
    if died:
        raise died[0].failure(f"ended by itself (exit status {died[0].returncode}), so all of it stopped")
    return 0


async def _watch(server: serving.Server, servers: list[Server], place: Place, data: Path, *, quiet: bool) -> None:
    """Say what to try once it serves; stop all of it when a child dies."""
    told = quiet
    while True:
        await asyncio.sleep(WATCH_SECONDS if told else 0.01)
        if server.started and not told:
            told = True
            print(_welcome(place, sign_in_link(data, place.url)), flush=True)
        if not all(each.alive for each in servers):
            server.stop()


async def _reach(database_url: str) -> None:
    (await db.connect(database_url, db.SCHEMA, name="grantbook up")).terminate()


async def _ensure_streams(nats_url: str, data: Path) -> None:
    nats = await connection.connect(nats_url, name="grantbook up")
    try:
        room = shutil.disk_usage(data).free // DISK_SHARE_OF_LOG
        await streams.ensure(nats, log_max_bytes=min(MAX_LOG_BYTES, room))
    finally:
        await connection.close(nats)


def _keep(data: Path) -> Kept:
    file = data / "state.json"
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.chmod(0o700)  # one that was there may be open to others
        if file.exists():
            return _with_console(file, msgspec.json.decode(file.read_bytes(), type=Kept))
        kept = Kept(
            nats_port=free_port(),
            postgres_port=free_port(),
            nats_password=secrets.token_hex(16),
            postgres_password=secrets.token_hex(16),
            tokens={role: roles.new_token(role, secrets.token_bytes(32)) for role in TOKEN_ROLES},
            console_token=roles.new_token("console", secrets.token_bytes(32)),
            link_key=secrets.token_hex(links.KEY_BYTES),
        )
        _write_private(file, msgspec.json.format(msgspec.json.encode(kept), indent=2))
    except msgspec.MsgspecError as error:
        message = f"{file} is damaged ({error}). Restore it, or `make clean` to start with nothing"
        raise CannotStart(message) from error
    except OSError as error:
        message = f"the data folder {data} cannot be used: {error.strerror}. It must be a folder this user may write to"
        raise CannotStart(message) from error
    return kept


def _with_console(file: Path, kept: Kept) -> Kept:
    """What was kept before there was a console has no token and no key for it."""
    if not (kept.console_token and kept.link_key):
        kept.console_token = roles.new_token("console", secrets.token_bytes(32))
        kept.link_key = secrets.token_hex(links.KEY_BYTES)
        _write_private(file, msgspec.json.format(msgspec.json.encode(kept), indent=2))
    return kept


def sign_in_link(data: Path, url: str) -> str:
    """A link that signs in to the console, once, within ten minutes. Raises `CannotStart` before the first start."""
    file = data / "state.json"
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError) as error:
        raise CannotStart(f"nothing was started in {data} yet: make up") from error
    link = links.new_link(bytes.fromhex(kept.link_key), secrets.token_bytes(links.NONCE_BYTES), time.time())
    return f"{url}/console/sign-in?link={link}"


def _token_file(data: Path, kept: Kept) -> Path:
    """The hashed tokens, marked as ours: a service of its own refuses them."""
    file = data / "tokens.json"
    entries = (
        *(roles.entry(f"dev-{role}", role, kept.tokens[role]) for role in TOKEN_ROLES),
        roles.entry("dev-console", "console", kept.console_token),
    )
    roles.write(file, roles.TokenFile(development=True, tokens=entries))
    return file


def _write_environment(data: Path, place: Place) -> None:
    tokens = place.kept.tokens
    lines = {
        "GRANTBOOK_URL": place.url,
        **{f"GRANTBOOK_{role.upper()}_TOKEN": tokens[role] for role in TOKEN_ROLES},
        "GRANTBOOK_NATS_URL": place.nats_url,
        "GRANTBOOK_DATABASE_URL": place.database_url,
    }
    _write_private(data / "dev.env", "".join(f"{name}='{value}'\n" for name, value in lines.items()).encode())


def _write_private(file: Path, content: bytes) -> None:
    """Written beside and moved into place, so that a crash leaves the old file or the new one."""
    beside = file.with_suffix(f"{file.suffix}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def _refuse_busy(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = (
                f"port {port} of {host} cannot be used ({error.strerror}). Stop what listens there, "
                f"or choose another: GRANTBOOK_PORT=8070 make up"
            )
            raise CannotStart(message) from error


def _welcome(place: Place, link: str) -> str:
    return f"""
Grantbook runs at {place.url}   (Ctrl-C stops all of it; data stays in .grantbook)

  open   {link}
                                         the console; good once, for ten minutes; another: make console
         {place.url}/docs          every operation
         {place.url}/readyz        whether all is well

  try    . .grantbook/dev.env
         curl -s $GRANTBOOK_URL/auth/connect/register -H 'Content-Type: application/json' \\
           -d '{{"client_name": "My agent", "redirect_uris": ["http://localhost:7777/callback"],
                "token_endpoint_auth_method": "none"}}'
         curl -s $GRANTBOOK_URL/admin/v1/clients -H "Authorization: Bearer $GRANTBOOK_ADMIN_TOKEN"
         export GRANTBOOK_NATS_URL; .venv/bin/grantbook replay
"""
