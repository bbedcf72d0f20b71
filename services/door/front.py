"""How every application of the house is built: one place for what all of them do alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import structlog
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.plugins.prometheus import PrometheusController
from litestar.types import ControllerRouterHandler

from door import asked, direct, docs, health, logs, problems, requests, roles

MAX_BODY_BYTES: Final = 1_048_576
"""Default limit of a request's body. A route that needs another sets `request_max_body_size`."""


class _Metrics(PrometheusController):
    """Prometheus metrics: of this process, or of all workers that serve together."""

    guards = (roles.requires("ops"),)
    tags = ("operating",)


def litestar_app(
    route_handlers: Sequence[ControllerRouterHandler],
    *,
    name: str,
    keyring: roles.Keyring,
    mint_request_id: Callable[[], str],
    ready: Mapping[str, health.Check] | None = None,
    warn: Mapping[str, health.Check] | None = None,
    lifespan: Sequence[Callable[[Litestar], AbstractAsyncContextManager[None]]] = (),
    state: Mapping[str, object] | None = None,
    dependencies: Mapping[str, Provide] | None = None,
    answers: Mapping[type[Exception], Callable[[Exception], problems.Problem]] | None = None,
    renderings: Mapping[str, problems.Rendering] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Litestar:
    """An application with these routes, and with what every one of ours has.

    That is: `/healthz`, `/readyz`, `/metrics` (role `ops`), `/openapi.json`, `/docs`; request ids, access lines and
    security headers; problem details for everything that goes wrong; and `caller: Caller` for handlers behind a guard.

    `answers` says which problem each refusal of a room becomes, and `renderings` how problems look under a path prefix
    where another standard than RFC 9457 rules.
    """
    if not structlog.is_configured():
        # structlog's own default shows local variables in traces, and redacts nothing.
        logs.configure()
    app = Litestar(
        request_class=asked.Asked,
        route_handlers=[
            *route_handlers,
            *health.routes(ready=ready or {}, warn=warn or {}),
            _Metrics,
            docs.openapi_json,
        ],
        openapi_config=docs.config(name),
        dependencies={"caller": Provide(roles.caller_of, sync_to_thread=False), **(dependencies or {})},
        exception_handlers=problems.handlers(answers or {}, renderings or {}),
        lifespan=list(lifespan),
        request_max_body_size=max_body_bytes,
        state=State({"keyring": keyring, **(state or {})}),
        logging_config=None,
        debug=False,
    )
    # Litestar's own middleware runs inside of routes alone. This one must see what no route matched, too.
    within = direct.called_directly(app, app.asgi_handler)
    app.asgi_handler = requests.around(within, name=name, mint_request_id=mint_request_id)
    return app
