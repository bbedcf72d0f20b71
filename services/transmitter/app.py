"""The transmitter's composition root: real clock, real randomness, real connections; nobody else makes them."""

import asyncio
import os
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import structlog
import uuid_utils
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from door import front, health, roles
from grantbook import sealed, subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader, Unavailable
from grantbook.sdk.tasks import end
from grantbook.sealed import Sealed
from transmitter import keys
from transmitter.api import discovery, management, polling
from transmitter.api.answers import ANSWERS
from transmitter.bucket import Bucket
from transmitter.delivery import Tools
from transmitter.keys import Signer
from transmitter.reach import Reach
from transmitter.service import Service
from transmitter.sets import Parties
from transmitter.settings import Settings
from transmitter.streams import Stream, Terms
from transmitter.transmission import Transmission

ROUTES: Final = [*management.ROUTES, polling.poll_stream]

_log = structlog.get_logger("transmitter")


class SettingsRefused(ValueError):
    """A setting cannot be used. The message names its variable, and says what was expected."""


def now() -> datetime:
    """UTC, in microseconds."""
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and in order of time."""
    return str(uuid_utils.uuid7())


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings out of `GRANTBOOK_...` variables. Raises `KeyError` with the name of a missing one, and `ValueError`."""
    development = environment.get("GRANTBOOK_SSF_DEVELOPMENT", "off")
    if development not in {"on", "off"}:
        raise SettingsRefused("GRANTBOOK_SSF_DEVELOPMENT is on or off")
    issuer = environment["GRANTBOOK_SSF_ISSUER"].rstrip("/")
    refuse_no_issuer("GRANTBOOK_SSF_ISSUER", issuer, loopback=development == "on")
    networks = _listed(environment, "GRANTBOOK_SSF_ALLOWED_NETWORKS")
    try:
        Reach(networks=networks)
    except ValueError as error:
        raise SettingsRefused(f"GRANTBOOK_SSF_ALLOWED_NETWORKS: {error}") from error
    return Settings(
        nats_url=environment["GRANTBOOK_NATS_URL"],
        tokens_file=Path(environment["GRANTBOOK_TOKENS_FILE"]),
        issuer=issuer,
        subject_issuer=environment["GRANTBOOK_SSF_SUBJECT_ISSUER"],
        signing_keys_file=Path(environment["GRANTBOOK_SSF_SIGNING_KEYS_FILE"]),
        sealing_key_file=Path(environment["GRANTBOOK_SSF_SEALING_KEY_FILE"]),
        allowed_hosts=_listed(environment, "GRANTBOOK_SSF_ALLOWED_HOSTS"),
        allowed_networks=networks,
        development=development == "on",
    )


def refuse_no_issuer(name: str, text: str, *, loopback: bool) -> None:
    """Refuse what is no issuer identifier (SSF 1.0 section 7.1): https, no query, no fragment. Raises `ValueError`."""
    url = httpx.URL(text)
    plain = loopback and url.scheme == "http" and url.host in {"127.0.0.1", "localhost"}
    if not url.host or url.userinfo or "?" in text or "#" in text or not (url.scheme == "https" or plain):
        raise SettingsRefused(f"{name} is an https URL without query and fragment")


def _listed(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in environment.get(name, "").split(",") if each.strip())


def make_signing_key(path: Path) -> None:
    """Put a new signing key in front of a key file; made when absent. Raises `keys.KeysRefused`, `OSError`."""
    keys.put_in_front(path, keys.jwk_of(generate_private_key(SECP256R1())))


def make_sealing_key(path: Path) -> None:
    """Make the file of a sealing key. Raises `keys.KeysRefused` where there is one, and `OSError`."""
    if path.exists():
        raise keys.KeysRefused(f"There is a key file {path} already: what it sealed opens with no other.")
    keys.write_private(path, keys.sealing_key_text(secrets.token_bytes(sealed.KEY_BYTES)))


def loaded_keys(settings: Settings) -> tuple[Signer, bytes]:
    """The signer, and the key that seals. In development they are made when there are none. Raises `KeysRefused`."""
    if settings.development:
        if not settings.signing_keys_file.exists():
            make_signing_key(settings.signing_keys_file)
        if not settings.sealing_key_file.exists():
            make_sealing_key(settings.sealing_key_file)
    return keys.load_signer(settings.signing_keys_file), keys.load_sealing_key(settings.sealing_key_file)


@asynccontextmanager
async def running(settings: Settings, signer: Signer, sealing_key: bytes) -> AsyncIterator[Service]:
    """A transmitter connected and at work. At the end it lets go of what is in hand; the next takes it over.

    Raises `Unavailable` and `OSError`: it does not start without NATS, or without the feed.
    """
    reach = Reach(hosts=settings.allowed_hosts, networks=settings.allowed_networks, loopback=settings.development)

    def seal(stream_id: str, header: str) -> Sealed:
        nonce = secrets.token_bytes(sealed.NONCE_BYTES)
        return sealed.seal(header.encode(), key_id=f"ssf.{stream_id}", key=sealing_key, nonce=nonce)

    def unseal(stream: Stream) -> str | None:
        kept = stream.delivery.authorization
        # Bound to its stream: nobody who can write the bucket has one receiver's secret sent to another.
        if kept is None:
            return None
        if kept.key != f"ssf.{stream.stream_id}":
            raise sealed.CannotUnseal(kept.key)
        return sealed.unseal(kept, sealing_key).decode()

    async with AsyncExitStack() as stack:
        nats = await connection.connect(
            settings.nats_url, name="grantbook transmitter", on_trouble=lambda what: _log.warning("nats", what=what)
        )
        stack.push_async_callback(connection.close, nats)
        feed = await stack.enter_async_context(LogReader(nats, subjects.REVOCATIONS))
        state = await feed.state()
        reader = await stack.enter_async_context(LogReader(nats, subjects.bucket_stream(subjects.SSF)))
        bucket = Bucket(nats, reader)
        await bucket.ensure(replicas=state.config.get("num_replicas", 1))
        tls = ssl.create_default_context()
        parties = Parties(settings.issuer, settings.subject_issuer)
        transmission = Transmission(
            nats,
            bucket,
            lambda it: Tools(
                signer=signer,
                parties=parties,
                reach=reach,
                tls=tls,
                unseal=unseal,
                jitter=random.random,
                verified=it.verified,
            ),
        )
        task = asyncio.create_task(transmission.run(), name="transmission")
        stack.push_async_callback(end, task)
        terms = Terms(settings.issuer, settings.base_url, settings.min_verification_interval_seconds, reach.check_url)
        yield Service(transmission, feed, terms, seal, new_id, now)


async def feed_answers(state: State) -> str | None:
    """Readiness: NATS answers, and has the feed."""
    service: Service = state.transmitter
    try:
        await service.feed.state()
    except Unavailable:
        return "NATS does not answer"
    return None


async def streams_are_known(state: State) -> str | None:
    """Readiness: every event stream was read, and is at work."""
    service: Service = state.transmitter
    if not service.transmission.caught_up.is_set():
        return service.transmission.trouble or "event streams are still being read"
    return None


async def receivers_take(state: State) -> str | None:
    """A warning while receivers do not take what is pushed to them."""
    service: Service = state.transmitter
    failing = service.transmission.failing
    return f"{failing} receivers do not take what is pushed to them; see the log" if failing else None


READY: Final[dict[str, health.Check]] = {"nats": feed_answers, "streams": streams_are_known}
WARN: Final[dict[str, health.Check]] = {"receivers": receivers_take}


async def the_service(state: State) -> Service:
    """The handlers' `service`."""
    service: Service = state.transmitter
    return service


def end_polls(app: Litestar) -> None:
    """Answer the polls that wait: for the server that is told to stop."""
    service: Service | None = app.state.get("transmitter")
    if service is not None:
        service.transmission.closing.set()


def create_app(settings: Settings | None = None) -> Litestar:
    """The transmitter as an ASGI application, for any server. Without settings: from the environment.

    Raises `KeyError` with the name of a variable that is missing, `ValueError`, `roles.TokensRefused` and
    `keys.KeysRefused`.
    """
    chosen = settings or settings_from(os.environ)
    signer, sealing_key = loaded_keys(chosen)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with running(chosen, signer, sealing_key) as service:
            app.state.transmitter = service
            yield

    return front.litestar_app(
        [*ROUTES, *discovery.routes(chosen, signer.jwks)],
        name="transmitter",
        keyring=roles.load(chosen.tokens_file, allow_development=chosen.development),
        mint_request_id=new_id,
        ready=READY,
        warn=WARN,
        lifespan=[lifespan],
        dependencies={"service": Provide(the_service)},
        answers=ANSWERS,
    )
