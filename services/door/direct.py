"""Handlers that are asked by the thousand, called without the framework's router between.

They are declared as all others are (`opt=DIRECTLY | ...`), and what is called here is what the framework would call:
the same guards, the same limits, the same answers to what goes wrong. For each request it finds that out anew, which
takes as long as a sixth of a registration; here it is found out once. What is asked otherwise than the handler's path
is written (`//idp/v1`, with a slash at its end, below a root of the server's) goes to the framework, as ever.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast

from litestar import Litestar, Request, Response
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from door.asked import Asked

_DIRECTLY: Final = "grantbook_directly"
DIRECTLY: Final = {_DIRECTLY: True}
"""Option of a handler whose arguments are the path's parameters, as text, and `request`."""

_HOST: Final = re.compile(rb"[0-9A-Za-z!$&'()*+,;=\-._~:\[\]@%]*\Z")
"""What a `Host` is made of (RFC 3986 section 3.2). The framework refuses others."""
_PARAMETER: Final = re.compile(r"\{(\w+)\}")

ExceptionHandler = Callable[[Request[Any, Any, Any], Any], Response[Any]]


class _Direct:
    """A handler, and what the framework would find out about it for each request."""

    def __init__(self, template: str, handler: HTTPRouteHandler) -> None:
        self.template: Final = template
        self.path: Final = re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", template))
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


def called_directly(app: Litestar, otherwise: ASGIApp) -> ASGIApp:
    """The application, its handlers that are `DIRECTLY` so called, and all else by `otherwise`, the framework."""
    written: dict[tuple[str, str], _Direct] = {}
    matched: dict[str, list[_Direct]] = {}
    for method, direct in _directly(app):
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
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else ():
            if _DIRECTLY in handler.opt:
                direct = _Direct(route.path_format, handler)
                yield from ((method, direct) for method in handler.http_methods)


def _host_is_one(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"host":
            return _HOST.match(value) is not None
    return True
