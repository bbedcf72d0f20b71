"""JSON for people: pretty-printed, and coloured by classes of our own. Every token is escaped as it is put out."""

from typing import Any, Final

import msgspec
from markupsafe import Markup
from pygments.lexers.data import JsonLexer
from pygments.token import Token

MAX_HIGHLIGHTED_CHARACTERS: Final = 200_000
"""Beyond, JSON is shown without colours."""
_CLASSES: Final = (
    (Token.Name.Tag, "name"),
    (Token.Literal.String, "string"),
    (Token.Literal.Number, "number"),
    (Token.Keyword.Constant, "constant"),
)
_SPAN: Final = Markup('<span class="json-{}">{}</span>')


def pretty(value: Any) -> str:
    """JSON with two spaces of indent."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def highlighted(text: str) -> Markup:
    """JSON text as HTML."""
    if len(text) > MAX_HIGHLIGHTED_CHARACTERS:
        return Markup("{}").format(text)
    return Markup("").join(_part(kind, said) for kind, said in JsonLexer(ensurenl=False).get_tokens(text))


def _part(kind: Any, said: str) -> Markup:
    for each, name in _CLASSES:
        if kind in each:
            return _SPAN.format(name, said)
    return Markup("{}").format(said)
