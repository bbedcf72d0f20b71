"""Handlers that are asked by the thousand, called without the framework's router between.

They are declared as all others are (`opt=DIRECTLY | ...`), and what is called here is what the framework would call:
the same guards, the same limits, the same answers to what goes wrong. For each request it finds that out anew, which
takes a seventh of what a registration costs; here it is found out once. What is asked otherwise than the handler's path
is written (`//idp/v1`, with a slash at its end, below a root of the server's) goes to the framework, as ever.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast

from litestar import Litestar, Request, Response
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from door.asked import Asked
from door.ready import ReadyResponse

_DIRECTLY: Final = "grantbook_directly"
DIRECTLY: Final = {_DIRECTLY: True}
"""Option of a handler that takes `request` and the path's parameters, as text, and gives a `ReadyResponse`.

Guards, a body limit, exception handlers, and what is for the documentation, are all that it may declare beside."""

_HOST: Final = re.compile(rb"[0-9A-Za-z!$&'()*+,;=\-._~:\[\]@%]*\Z")
"""What a `Host` is made of (RFC 3986 section 3.2). The framework refuses others."""
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_NOT_OURS: Final = (
    *("before_request", "after_request", "after_response", "middleware", "cache"),
    *("response_cookies", "response_headers"),
)
"""What the framework does for a handler that says so, and is not done here."""

ExceptionHandler = Callable[[Request[Any, Any, Any], Any], Response[Any]]


class _Direct:
    """A handler, and what the framework would find out about it for each request."""

    def __init__(self, route: HTTPRoute, handler: HTTPRouteHandler) -> None:
        """Raises `TypeError` for a handler that says what only the framework does."""
        _refuse_more(route, handler)
        self.template: Final = route.path_format
        # Between the parameters stands text: `split` gives it, and the parameters' names in every second place.
        text_and_names = enumerate(_PARAMETER.split(self.template))
        self.path: Final = re.compile(
            "".join(f"(?P<{each}>[^/]+)" if place % 2 else re.escape(each) for place, each in text_and_names)
        )
        self.has_parameters: Final = bool(self.path.groups)
        self._handler: Final = handler
        self._call: Final = cast("Callable[..., Awaitable[Response[Any]]]", handler.fn)
        self._guards: Final = cast("Sequence[Callable[..., Awaitable[None]]]", handler.resolve_guards())
        self._exception_handlers: Final = cast(
            "dict[type[Exception], ExceptionHandler]", handler.resolve_exception_handlers()
        )
        self._type_encoders: Final = handler.resolve_type_encoders()

    async def answer(self, parameters: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["path_params"] = parameters
        scope["route_handler"] = self._handler
        scope["path_template"] = self.template
        request = Asked(scope, receive, send)
        try:
            for guard in self._guards:
                await guard(request, self._handler)
            response = await self._call(request=request, **parameters)
        except Exception as error:  # noqa: BLE001  whatever it is becomes an answer, as with the framework
            response = self._handler_of(error)(request, error)
        # After an answer has begun there is no other: what goes wrong then is the server's to end.
        answer = response.to_asgi_response(app=None, request=request, type_encoders=self._type_encoders)
        await answer(scope, receive, send)

    def _handler_of(self, error: Exception) -> ExceptionHandler:
        return next(self._exception_handlers[each] for each in type(error).__mro__ if each in self._exception_handlers)


def _refuse_more(route: HTTPRoute, handler: HTTPRouteHandler) -> None:
    wanted = {"request", *route.path_parameters}
    if not inspect.iscoroutinefunction(handler.fn) or set(inspect.signature(handler.fn).parameters) != wanted:
        message = f"{handler}: called directly, it is a coroutine function of {', '.join(sorted(wanted))}"
        raise TypeError(message)
    if not handler.parsed_fn_signature.return_type.is_subclass_of(ReadyResponse):
        message = f"{handler}: called directly, it gives a ReadyResponse"
        raise TypeError(message)
    if any(each.type is not str for each in route.path_parameters.values()):
        message = f"{handler}: called directly, its path's parameters are text"
        raise TypeError(message)
    said = [each for each in _NOT_OURS if any(getattr(layer, each, None) for layer in handler.ownership_layers)]
    if said:
        message = f"{handler}: called directly, it cannot have {', '.join(said)}"
        raise TypeError(message)


def called_directly(app: Litestar, otherwise: ASGIApp) -> ASGIApp:
    """The application, its handlers that are `DIRECTLY` so called, and all else by `otherwise`, the framework.

    Raises `TypeError` for a handler that cannot be called so, or whose path is that of another one, too.
    """
    written: dict[tuple[str, str], _Direct] = {}
    matched: dict[str, list[_Direct]] = {}
    for method, direct in _directly(app):
        for route in app.routes:
            if route.path_format != direct.template and direct.path.fullmatch(route.path_format):
                message = f"{direct.template}: called directly, it would hide {route.path_format}"
                raise TypeError(message)
        if direct.has_parameters:
            matched.setdefault(method, []).append(direct)
        else:
            written[method, direct.template] = direct

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and not scope.get("root_path") and _host_is_one(scope["headers"]):
            method, path = scope["method"], scope["path"]
            direct = written.get((method, path))
            if direct is not None:
                await direct.answer({}, scope, receive, send)
                return
            for each in matched.get(method, ()):
                match = each.path.fullmatch(path)
                if match is not None:
                    await each.answer(match.groupdict(), scope, receive, send)
                    return
        await otherwise(scope, receive, send)

    return application


def _directly(app: Litestar) -> Iterator[tuple[str, _Direct]]:
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            if _DIRECTLY in handler.opt:
                direct = _Direct(route, handler)
                yield from ((method, direct) for method in handler.http_methods)


def _host_is_one(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"host":
            return _HOST.match(value) is not None
    return True
