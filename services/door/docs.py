"""`/openapi.json`, and `/docs`: a page made of it on the server, without script, with nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from importlib.metadata import version
from typing import Any, Final

import msgspec
from litestar import Litestar, MediaType, Request, Response, Router, get
from litestar.datastructures import ResponseHeader, State
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.routes import HTTPRoute

from door import problems
from door.roles import roles_of

_STYLE: Final = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
code { font-family: ui-monospace, monospace } section { border-top: 1px solid #8888; padding: .5rem 0 }
h3 code:first-child { display: inline-block; min-width: 4.5rem } table { border-collapse: collapse }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0 } :target { background: #fd08 }
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_BODY: Final = "grantbook_body"
_METHODS: Final = ("get", "put", "post", "delete", "patch")


class _Page(OpenAPIRenderPlugin):
    def __init__(self) -> None:
        super().__init__(path="/", media_type=MediaType.HTML)
        self._page: bytes | None = None

    def render(self, request: Request[Any, Any, State], openapi_schema: dict[str, Any]) -> bytes:
        if self._page is None:
            self._page = page(completed(openapi_schema, request.app)).encode()
        return self._page


def takes(body: type | dict[str, Any], *, optional: bool = False) -> dict[str, Any]:
    """For a handler that reads its JSON body itself, `opt=takes(...)`: its shape, as a Struct or a JSON Schema."""
    return {_BODY: (body, optional)}


def completed(schema: dict[str, Any], app: Litestar) -> dict[str, Any]:
    """The OpenAPI document with what only our handlers know: the roles that are let in, and bodies (see `takes`)."""
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            roles = roles_of([guard for layer in handler.ownership_layers for guard in layer.guards or ()])
            for method in handler.http_methods if roles else ():
                operation = schema["paths"].get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    operation["security"] = [{"bearer": list(roles)}]
            taken: tuple[type | dict[str, Any], bool] | None = handler.opt.get(_BODY)
            for method in handler.http_methods if taken is not None else ():
                operation = schema["paths"].get(route.path_format, {}).get(method.lower())
                if operation is not None and taken is not None:
                    operation["requestBody"] = _request_body(taken[0], schema, optional=taken[1])
    return schema


def _request_body(body: type | dict[str, Any], schema: dict[str, Any], *, optional: bool) -> dict[str, Any]:
    said: dict[str, Any]
    if isinstance(body, dict):
        said = body
    else:
        (said,), parts = msgspec.json.schema_components([body], ref_template="#/components/schemas/{name}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(parts)
    return {"required": not optional, "content": {"application/json": {"schema": said}}}


def config(name: str) -> OpenAPIConfig:
    """OpenAPI of the application `name`: the document, and the page at `/docs`."""
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }
    return OpenAPIConfig(
        title=f"Grantbook: {name}",
        version=version("grantbook"),
        description="The register of an OAuth identity provider's clients and grants.",
        use_handler_docstrings=True,
        components=Components(security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")}),
        # A router of our own: Litestar's adds a page for each path that it does not know, which shall stay under /docs.
        openapi_router=Router(
            "/docs",
            route_handlers=[],
            include_in_schema=False,
            response_headers=[ResponseHeader(name=key, value=value) for key, value in headers.items()],
        ),
        render_plugins=[_Page()],
    )


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def openapi_json(request: Request[Any, Any, State]) -> Response[bytes]:
    """The OpenAPI document of this process."""
    schema = completed(request.app.openapi_schema.to_schema(), request.app)
    return Response(msgspec.json.encode(schema), media_type=MediaType.JSON)


def page(schema: Mapping[str, Any]) -> str:
    """The documentation as HTML: every operation, then every problem code under its anchor."""
    info = schema["info"]
    codes = "".join(
        f'<section id="{escape(code)}"><h3><code>{escape(code)}</code></h3>'
        f"<p>{escape(note.title)}. {escape(note.text)}</p></section>"
        for code, note in sorted(problems.CODES.items())
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))} "
        '<a href="/openapi.json">OpenAPI document</a></p>'
        f"<h2>Operations</h2>{''.join(_operations(schema.get('paths', {})))}"
        f"<h2>Problem codes</h2><p>Errors are <code>{problems.MEDIA_TYPE}</code> (RFC 9457); the word in "
        f"<code>code</code> is one of these.</p>{codes}</body></html>"
    )


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, item in sorted(paths.items()):
        for method in _METHODS:
            if method in item:
                yield _operation(path, method, item[method])


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    roles = " or ".join(role for each in operation.get("security", []) for role in each.get("bearer", []))
    about = operation.get("description") or operation.get("summary") or ""
    parameters = "".join(
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{escape(each['in'])}</td>"
        f"<td>{'required' if each.get('required') else ''}</td><td>{escape(each.get('description') or '')}</td></tr>"
        for each in operation.get("parameters", [])
    )
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer.get('description') or '')}</td></tr>"
        for status, answer in operation.get("responses", {}).items()
    )
    return (
        f"<section><h3><code>{method.upper()}</code> <code>{escape(path)}</code></h3><p>{escape(about)}</p>"
        + (f"<p>Role: {escape(roles)}</p>" if roles else "")
        + (f"<table><caption>Parameters</caption>{parameters}</table>" if parameters else "")
        + (f"<table><caption>Answers</caption>{answers}</table>" if answers else "")
        + "</section>"
    )
