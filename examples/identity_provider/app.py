"""The pages and endpoints, on Flask; OAuth itself is Authlib's."""

import hmac
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from authlib.common.urls import add_params_to_uri
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.integrations.flask_oauth2.requests import FlaskOAuth2Payload
from authlib.oauth2.rfc6749.errors import OAuth2Error
from flask import Flask, Response, jsonify, redirect, render_template, request, session, url_for
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response as AnyResponse

from examples.identity_provider import grants
from examples.identity_provider.grants import GRANT_LIFETIME, METHODS, ClientSuspended, Provider
from examples.identity_provider.register import Register, RegisterAway
from examples.identity_provider.store import Store
from examples.identity_provider.tokens import Signer

USERS: Final = {"ada": "Ada Lovelace", "grace": "Grace Hopper"}
PASSWORDS: Final = {user: generate_password_hash(f"{user}-password") for user in USERS}
"""Of the demo: each user's name and `-password`."""
NOBODY: Final = generate_password_hash(secrets.token_hex(16))
SCOPES: Final = {"mail.read": "Read your mail", "mail.send": "Send mail as you"}
SESSION_SECONDS: Final = 3_600
MAX_BODY_BYTES: Final = 64 * 1024
_OWN_PATH: Final = re.compile(r"/authorize\?[!#-\[\]-~]*")


@dataclass(frozen=True)
class Settings:
    """Where things are. `resources` are the protected resources that tokens may be for; the first is the default."""

    issuer: str
    grantbook_url: str
    idp_token: str
    data: Path
    resources: tuple[str, ...]


@dataclass(frozen=True)
class Consent:
    """What a user agreed to, as Authlib's `user`: the grant that is on the register now."""

    user_id: str
    grant_id: str


class Sent(FlaskOAuth2Payload):  # type: ignore[misc]  # Authlib has no types
    """Parameters from where the standard has them: an authorization request's from its query, others' from the body.

    Authlib mixes the two. Then a consent could be for what the page did not show, and tokens' URLs hold secrets.
    """

    @property
    def data(self) -> Any:
        """Query or body (RFC 6749 sections 4.1.1, 4.1.3 and 6)."""
        return self._request.args if self._request.path == "/authorize" else self._request.form


class Server(AuthorizationServer):  # type: ignore[misc]
    """Authlib's, with parameters as `Sent` has them."""

    def create_oauth2_request(self, _: Any) -> Any:
        """The request that Flask is at."""
        made = super().create_oauth2_request(None)
        made.payload = Sent(request)
        return made


def create_app(settings: Settings) -> Flask:
    """The identity provider."""
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),  # sessions end with the process
        SESSION_COOKIE_NAME="grantbook_demo_idp",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.issuer.startswith("https:"),
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
    )
    register = Register(settings.grantbook_url, settings.idp_token)
    signer = Signer(settings.issuer, settings.data / "signing-key.json")
    store = Store(settings.data / "credentials.sqlite")
    provider = Provider(register, store, signer, scopes=frozenset(SCOPES), resources=settings.resources)

    server = Server(app, query_client=provider.client, save_token=lambda *_: None)
    server.register_client_auth_method("client_secret_basic", grants.basic)
    server.register_grant(grants.code_grant(provider), [grants.Pkce(required=True)])
    server.register_grant(grants.refresh_grant(provider))
    server.register_endpoint(grants.revocation(provider))
    server.register_endpoint(grants.introspection(provider))
    server.register_extension(grants.Issuer(settings.issuer))

    _add_metadata(app, settings, signer)
    _add_machine_endpoints(app, server)
    _add_login(app)
    _add_consent(app, server, register, settings)

    @app.errorhandler(RegisterAway)
    def away(error: RegisterAway) -> Response:
        app.logger.warning("Grantbook: %s", error)
        answer: Response = jsonify(error="temporarily_unavailable")
        answer.status_code, answer.headers["Retry-After"] = 503, "1"
        return answer

    return app


def _add_metadata(app: Flask, settings: Settings, signer: Signer) -> None:
    metadata = {
        "issuer": settings.issuer,
        "authorization_endpoint": f"{settings.issuer}/authorize",
        "token_endpoint": f"{settings.issuer}/token",
        # Agents register at Grantbook itself.
        "registration_endpoint": f"{settings.grantbook_url}/auth/connect/register",
        "revocation_endpoint": f"{settings.issuer}/revoke",
        "introspection_endpoint": f"{settings.issuer}/introspect",
        "jwks_uri": f"{settings.issuer}/jwks",
        "scopes_supported": list(SCOPES),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": METHODS,
        "revocation_endpoint_auth_methods_supported": METHODS,
        "introspection_endpoint_auth_methods_supported": METHODS,
        "authorization_response_iss_parameter_supported": True,
    }

    @app.get("/.well-known/oauth-authorization-server")
    def authorization_server() -> Response:
        """RFC 8414. Agents in browsers read it from anywhere."""
        return _open(jsonify(metadata))

    @app.get("/jwks")
    def jwks() -> Response:
        """RFC 7517."""
        return _open(jsonify(signer.jwks()))


def _add_machine_endpoints(app: Flask, server: Any) -> None:
    @app.route("/token", methods=["POST", "OPTIONS"])
    def token() -> Response:
        """RFC 6749 section 3.2."""
        if request.method == "OPTIONS":
            return _open(Response(status=204))
        answer = server.create_token_response()
        if answer.status_code == 400 and (answer.get_json(silent=True) or {}).get("error") == "invalid_client":
            # A client that is gone: 401, whichever way it presented itself. Agents register anew for it.
            answer.status_code = 401
        return _open(answer)

    @app.post("/revoke")
    def revoke() -> Response:
        """RFC 7009."""
        return _open(server.create_endpoint_response("revocation"))

    @app.post("/introspect")
    def introspect() -> Response:
        """RFC 7662."""
        return _open(server.create_endpoint_response("introspection"))


def _open(answer: Any) -> Response:
    answer.headers["Access-Control-Allow-Origin"] = "*"
    answer.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, MCP-Protocol-Version"
    made: Response = answer
    return made


def _user() -> str | None:
    """Who is logged in."""
    fresh = session.get("until", 0) > time.time()
    return str(session["user"]) if fresh and session.get("user") in USERS else None


def _add_login(app: Flask) -> None:
    @app.before_request
    def refuse_forged() -> Response | None:
        """A form that is not ours changes nothing (cross-site request forgery)."""
        if request.method == "POST" and request.endpoint in {"log_in", "decide"}:
            sent, known = request.form.get("csrf", ""), session.get("csrf", "")
            if not known or not hmac.compare_digest(sent.encode(), known.encode()):
                return _page("message.html", 400, message="This form is too old. Go back and load it again.")
        return None

    @app.get("/login")
    def show_login() -> Response:
        return _page("login.html", next=_own_path(request.args.get("next", "")))

    @app.post("/login")
    def log_in() -> AnyResponse:
        name = request.form.get("username", "")
        # As long for somebody who does not exist.
        if not check_password_hash(PASSWORDS.get(name, NOBODY), request.form.get("password", "")):
            return _page("login.html", 401, next=_own_path(request.form.get("next", "")), wrong=True)
        session.clear()
        session.update(user=name, until=time.time() + SESSION_SECONDS, csrf=secrets.token_urlsafe(16))
        return redirect(_own_path(request.form.get("next", "")), 303)

    @app.get("/")
    def home() -> Response:
        return _page("message.html", message="The identity provider of the Grantbook demo.")


def _add_consent(app: Flask, server: Any, register: Register, settings: Settings) -> None:
    @app.get("/authorize")
    def show_consent() -> AnyResponse:
        """RFC 6749 section 3.1: who asks, for what, and where the answer goes."""
        if _user() is None:
            return redirect(url_for("show_login", next=request.full_path), 303)
        try:
            grant = server.get_consent_grant(end_user=_user())
        except OAuth2Error as error:
            return _refused(error, settings.issuer)
        return _page(
            "consent.html",
            target=grant.redirect_uri,
            client=grant.client.registration,
            host=_shown_host(grant.redirect_uri),
            scopes=_asked(grant.request.scope),
            user=USERS[str(_user())],
        )

    @app.post("/authorize")
    def decide() -> AnyResponse:
        """The user's decision, on the register before the agent hears of it."""
        name = _user()
        if name is None:
            return redirect(url_for("show_login", next=request.full_path), 303)
        try:
            grant = server.get_consent_grant(end_user=name)
        except OAuth2Error as error:
            return _refused(error, settings.issuer)
        consent = None
        if request.form.get("decision") == "allow":
            grant_id = register.grant(
                grant.client.client_id,
                user_id=name,
                username=f"{name}@example.com",
                scopes=(grant.request.scope or "").split(),
                expires_at=datetime.now(UTC) + GRANT_LIFETIME,
            )
            if grant_id is None:
                return _page("message.html", 403, message="This agent was suspended or deleted just now.")
            consent = Consent(name, grant_id)
        answer: AnyResponse = server.create_authorization_response(grant_user=consent, grant=grant)
        return answer


def _refused(error: Any, issuer: str) -> AnyResponse:
    """Sent back to the agent with `state` and `iss` (RFC 6749 section 4.1.2.1, RFC 9207), or else shown.

    Shown, and never sent on, where the client or the redirect URI is what is wrong: those errors have no redirect URI.
    """
    if error.redirect_uri:
        return redirect(add_params_to_uri(error.redirect_uri, [*error.get_body(), ("iss", issuer)]), 303)
    if isinstance(error, ClientSuspended):
        return _page("message.html", 403, message="An administrator has suspended this agent.")
    return _page("message.html", 400, message=f"The agent's request cannot be used: {error.error}.")


def _asked(scope: str | None) -> list[str]:
    return [SCOPES.get(each, each) for each in (scope or "").split()]


def _shown_host(uri: str) -> str:
    parts = urlsplit(uri)
    return "an application on this computer" if parts.hostname in grants.LOOPBACK else parts.hostname or parts.scheme


def _own_path(path: str) -> str:
    """A path to go on with, if it is one of ours: nobody is sent elsewhere."""
    return path if _OWN_PATH.fullmatch(path) else "/"


def _page(template: str, status: int = 200, *, target: str = "", **values: Any) -> Response:
    session.setdefault("csrf", secrets.token_urlsafe(16))
    answer = Response(render_template(template, csrf=session["csrf"], **values), status=status)
    # Browsers hold a form to it through redirects, so the agent's address must be in it.
    parts = urlsplit(target)
    then = f" {parts.scheme}://{parts.netloc}" if parts.netloc else f" {parts.scheme}:" if parts.scheme else ""
    answer.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'self'; form-action 'self'{then}; frame-ancestors 'none'; base-uri 'none'"
    )
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "no-referrer"
    answer.headers["Cache-Control"] = "no-store"
    return answer
