"""How the authorization server answers, in the terms of Authlib: clients, the two grants, revocation, introspection."""

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc6749.errors import InvalidGrantError, InvalidRequestError
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9207 import IssuerParameter

from examples.identity_provider.register import Register
from examples.identity_provider.store import Credential, Store
from examples.identity_provider.tokens import ACCESS_SECONDS, Signer

GRANT_LIFETIME: Final = timedelta(days=30)
METHODS: Final = ["none", "client_secret_basic", "client_secret_post"]
LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}


class RegisteredClient(ClientMixin):  # type: ignore[misc]  # Authlib has no types
    """A client as Grantbook has it. Nothing about it is kept here, so nothing can be out of date."""

    def __init__(self, register: Register, registration: dict[str, Any]) -> None:
        self.client_id: str = registration["client_id"]
        self.registration = registration
        self._register = register

    @property
    def is_suspended(self) -> bool:
        """An admin has cut it off for a while."""
        return self.registration.get("status") == "suspended"

    def get_client_id(self) -> str:
        """Its id."""
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        """None: a request names its redirect URI (OAuth 2.1)."""
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        """What is asked for, and nothing where nothing is."""
        return scope or ""

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Exactly one that was registered; on this machine's own addresses any port (RFC 8252 section 7.3)."""
        registered = self.registration.get("redirect_uris", [])
        return redirect_uri in registered or any(_differ_in_port_alone(redirect_uri, each) for each in registered)

    def check_client_secret(self, client_secret: str) -> bool:
        """Grantbook has the hash."""
        return self._register.is_secret(self.client_id, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """The one that it registered, and no weaker one."""
        del endpoint
        return bool(method == self.registration["token_endpoint_auth_method"])

    def check_response_type(self, response_type: str) -> bool:
        """Whether it registered it."""
        return response_type in self.registration.get("response_types", [])

    def check_grant_type(self, grant_type: str) -> bool:
        """Whether it registered it."""
        return grant_type in self.registration["grant_types"]


def _differ_in_port_alone(uri: str, registered: str) -> bool:
    try:
        one, other = urlsplit(uri), urlsplit(registered)
        ports = (one.port, other.port)
    except ValueError:
        return False
    return (
        one.scheme == other.scheme == "http"
        and one.hostname == other.hostname
        and one.hostname in LOOPBACK
        and (one.path, one.query, one.fragment) == (other.path, other.query, other.fragment)
        and "@" not in one.netloc
        and ports != (None, None)
    )


class Provider:
    """What the grants below work with."""

    def __init__(self, register: Register, store: Store, signer: Signer) -> None:
        self.register = register
        self.store = store
        self.signer = signer

    def tokens(
        self, credential: Credential, client: RegisteredClient, scope: str, *, refreshable: bool
    ) -> dict[str, Any]:
        """An access token, and a refresh token beside. Raises `InvalidGrantError` where the grant stands no longer.

        The order matters: fix `iat`, look at the grant, release the token. A revocation in between is seen either
        here or by whoever is shown the token.
        """
        issued_at = int(time.time())
        if not self.register.stands(client.client_id, credential.grant_id):
            raise InvalidGrantError("The grant has ended.")
        token: dict[str, Any] = {
            "token_type": "Bearer",
            "access_token": self.signer.access_token(
                client_id=client.client_id,
                grant_id=credential.grant_id,
                user_id=credential.user_id,
                scope=scope,
                audience=credential.resource,
                issued_at=issued_at,
            ),
            "expires_in": ACCESS_SECONDS,
            "scope": scope,
        }
        if refreshable:
            token["refresh_token"] = secrets.token_urlsafe(32)
            self.store.put(
                "refresh",
                token["refresh_token"],
                client_id=client.client_id,
                grant_id=credential.grant_id,
                user_id=credential.user_id,
                scope=credential.scope,
                resource=credential.resource,
            )
        return token

    def used_twice(self, credential: Credential) -> None:
        """Somebody has what they should not: nobody keeps it (RFC 9700 section 4.14, RFC 6749 section 4.1.2)."""
        self.register.revoke(credential.client_id, credential.grant_id, "reuse_detected")


def refuse_suspended(client: RegisteredClient) -> None:
    """Not `invalid_client`, nor `unauthorized_client`: both make agents register anew, past the suspension."""
    if client.is_suspended:
        raise InvalidGrantError("The client is suspended.")


def code_grant(provider: Provider) -> type[AuthorizationCodeGrant]:
    """Authorization code (RFC 6749 section 4.1), with PKCE by an extension of Authlib's."""

    class Grant(AuthorizationCodeGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def save_authorization_code(self, code: str, request: Any) -> None:
            """Consent was given: `request.user` is the grant that Grantbook made of it."""
            provider.store.put(
                "code",
                code,
                client_id=request.client.client_id,
                grant_id=request.user.grant_id,
                user_id=request.user.user_id,
                scope=request.scope or "",
                resource=request.user.resource,
                redirect_uri=request.payload.redirect_uri,
                code_challenge=request.payload.data["code_challenge"],
            )

        def query_authorization_code(self, code: str, client: RegisteredClient) -> Credential | None:
            """What the code is good for."""
            refuse_suspended(client)
            found = provider.store.find("code", code)
            if found is None or not found.check_client(client):
                return None
            if found.used:
                provider.used_twice(found)
                return None
            return found

        def authenticate_user(self, authorization_code: Credential) -> Credential | None:
            """PKCE was checked: use the code up."""
            if not provider.store.use(authorization_code):
                provider.used_twice(authorization_code)
                return None
            return authorization_code

        def generate_token(self, user: Credential, scope: str, include_refresh_token: bool, **_: Any) -> dict[str, Any]:  # noqa: FBT001  Authlib's
            """The tokens."""
            return provider.tokens(user, self.request.client, scope, refreshable=include_refresh_token)

        def delete_authorization_code(self, authorization_code: Credential) -> None:
            """It stays, as used."""

    return Grant


def refresh_grant(provider: Provider) -> type[RefreshTokenGrant]:
    """Refresh (RFC 6749 section 6): each token once; a second use ends the grant."""

    class Grant(RefreshTokenGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_refresh_token(self, refresh_token: str) -> Credential | None:
            """What the token is good for."""
            refuse_suspended(self.request.client)
            found = provider.store.find("refresh", refresh_token)
            if found is None or not found.check_client(self.request.client):
                return None
            if found.used:
                provider.used_twice(found)
                return None
            return found

        def authenticate_user(self, refresh_token: Credential) -> Credential | None:
            """Use it up. Of two at once the second is taken for a thief's."""
            if not provider.store.use(refresh_token):
                provider.used_twice(refresh_token)
                raise InvalidGrantError
            return refresh_token

        def generate_token(self, user: Credential, scope: str, include_refresh_token: bool, **_: Any) -> dict[str, Any]:  # noqa: FBT001  Authlib's
            """The tokens; and the grant lives on."""
            made = provider.tokens(user, self.request.client, scope, refreshable=include_refresh_token)
            provider.register.refreshed(user.client_id, user.grant_id, datetime.now(UTC) + GRANT_LIFETIME)
            return made

        def revoke_old_credential(self, refresh_token: Credential) -> None:
            """It was used up already."""

    return Grant


class Presented:
    """A token that was presented for revocation or introspection."""

    def __init__(self, claims: dict[str, Any], *, standing: bool) -> None:
        self.claims = claims
        self.standing = standing

    def check_client(self, client: RegisteredClient) -> bool:
        """Whether it was given to this client."""
        return bool(self.claims["client_id"] == client.client_id)

    def is_expired(self) -> bool:
        """Told by `is_revoked`, too: neither counts."""
        return not self.standing

    def is_revoked(self) -> bool:
        """Whether its grant has ended."""
        return not self.standing


def presented(provider: Provider, token: str) -> Presented | None:
    """One of our access or refresh tokens; None for any other."""
    claims = provider.signer.claims(token)
    if claims is None:
        found = provider.store.find("refresh", token)
        if found is None:
            return None
        claims = {
            "client_id": found.client_id,
            "grant_id": found.grant_id,
            "sub": found.user_id,
            "scope": found.scope,
            "exp": int(found.expires_at),
            "used": found.used,
        }
    alive = claims["exp"] > time.time() and not claims.pop("used", False)
    return Presented(claims, standing=alive and provider.register.stands(claims["client_id"], claims["grant_id"]))


def revocation(provider: Provider) -> type[RevocationEndpoint]:
    """RFC 7009: either token ends the grant, at Grantbook, and so everywhere."""

    class Endpoint(RevocationEndpoint):  # type: ignore[misc]
        CLIENT_AUTH_METHODS = METHODS

        def query_token(self, token_string: str, token_type_hint: str | None) -> Presented | None:
            """The token; the hint is not needed."""
            del token_type_hint
            return presented(provider, token_string)

        def revoke_token(self, token: Presented, request: Any) -> None:
            """End its grant."""
            del request
            provider.register.revoke(token.claims["client_id"], token.claims["grant_id"], "token_revoked")

    return Endpoint


def introspection(provider: Provider) -> type[IntrospectionEndpoint]:
    """RFC 7662: the state of the grant as Grantbook has it now. For clients about their own tokens."""

    class Endpoint(IntrospectionEndpoint):  # type: ignore[misc]
        CLIENT_AUTH_METHODS = METHODS

        def query_token(self, token_string: str, token_type_hint: str | None) -> Presented | None:
            """The token; the hint is not needed."""
            del token_type_hint
            return presented(provider, token_string)

        def check_permission(self, token: Presented, client: RegisteredClient, request: Any) -> bool:
            """Of its own tokens only."""
            del request
            return token.check_client(client)

        def introspect_token(self, token: Presented) -> dict[str, Any]:
            """What RFC 7662 section 2.2 has; nothing but `active` of one that does not count."""
            return {"active": True, **token.claims} if token.standing else {"active": False}

    return Endpoint


class Pkce(CodeChallenge):  # type: ignore[misc]
    """RFC 7636, for every client, and with S256 alone (OAuth 2.1 section 4.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Authlib lets requests without a challenge through, and takes one without a method for `plain`."""
        said = grant.request.payload.data
        if not said.get("code_challenge") or not said.get("code_challenge_method"):
            raise InvalidRequestError("PKCE is needed, with code_challenge_method=S256.", redirect_uri=redirect_uri)
        super().validate_code_challenge(grant, redirect_uri)


class Issuer(IssuerParameter):  # type: ignore[misc]
    """RFC 9207: every authorization response says whose it is."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        """Ours."""
        return self._issuer
