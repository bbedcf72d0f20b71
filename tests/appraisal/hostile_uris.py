"""A seeded generator of URIs as attackers, and careless people, write them: parts that parsers read differently."""

import random
from collections.abc import Iterator

SCHEMES = [
    *"""
    https http HTTPS hTTp ftp file ws wss data javascript blob about mailto cursor com.example.app vscode my-app a+b
    x.y h\u0442tps https\u200b 1a view-source intent
""".split(),  # noqa: SIM905  as a list it would fill a page
    "",
    " https",
    "java\tscript",
    "ht\ntps",
    "\x00javascript",
    "https\x00",
]
SEPARATORS = ["://"] * 12 + [":", ":/", ":///", "://///", ":\\\\", ":/\\", ":\\/", "//", "/", "", ": //", ":\t//"]
USERS = [""] * 14 + ["u@", "u:p@", "@", "claude.ai@", "claude.ai%40", "claude.ai\\@", "a@b@", "claude.ai:443@", "%00@"]
HOSTS = [
    *"""
    claude.ai evil.example localhost LOCALHOST localhost. claude.ai. .claude.ai claude..ai a b.c 127.0.0.1 127.1
    127.0.0.1. 0x7f.1 0x7f000001 2130706433 017700000001 0177.0.0.1 127.0.0.256 1.2.3 1.2.3.4.5 256.1.1.1 08.1.1.1
    0.0.0.0 1e3 0x 0xg [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::FFFF:7f00:1] [fe80::1%25eth0] [::1 ::1 [] [::]
    [1::8::] [2001:DB8::1] [2001:db8::1] [v1.x] [::127.0.0.1] xn--bcher-kva.example xn--a xn--a.example xn--
    xn--80ak6aa92e.com xn--0.com xn--xn--a--b.com xn--ls8h.la ab--cd.example b\xfccher.example cl\u0430ude.ai
    \uff23laude.ai
    claude\u3002ai claude\xadai %63laude.ai claude%2eai claude%00.ai %zz.ai claude.ai%20 a_b.example _dmarc.example
    -a.example a-.example a.-b.example foo--.example --.example 1.example 1.2.example.3x example.1 example.0x1
    anysphere.cursor-mcp xn--zca.example xn--fa-hia.example xn--wgv71a119e.jp XN--BCHER-KVA.example
    xn--bcher-kva.xn--bcher-kva a<b>.ai
""".split(),  # noqa: SIM905  the same
    "",
    "a" * 63 + ".example",
    "a" * 64 + ".example",
    ".".join(["a" * 60] * 5),
    "cla ude.ai",
    "a\tb.ai",
]
PORTS = [""] * 14 + [
    ":",
    ":0",
    ":80",
    ":443",
    ":080",
    ":8443",
    ":65535",
    ":65536",
    ":99999",
    ":-1",
    ":a",
    ":1 ",
    ":\u0661",
]
PATHS = [
    "",
    "/",
    "/cb",
    "/a/../b",
    "/%2e%2e/x",
    "/a b",
    "/\\evil",
    "/;x=1",
    "/a%",
    "/a%0d%0ab",
    "/\u00e9",
    "/*",
    "//evil",
    "cb",
]
QUERIES = ["", "", "", "?a=b", "?", "?a=#", "?<script>", "?a=%0a", "?\\"]
FRAGMENTS = ["", "", "", "", "", "#", "#a", "#%00"]
ODDITIES = "\x00\t\n\r \x7f\\@:/?#[]%*.\u00ad\u200b\u2028\u3002\uff0e\uff0f\ufeff\u0130\u212a\u017f|^`{}<>\"'"
AROUND = [""] * 12 + [" ", "\t", "\n", "\x00", "\x1f", "\u00a0", "\u3000"]


LABELS = [
    "a",
    "b1",
    "example",
    "xn--",
    "xn--a",
    "xn--bcher-kva",
    "1",
    "0x1",
    "x_y",
    "a-b",
    "--",
    "com",
    "ai",
    "claude",
    "7f",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_"
FOREIGN_LETTERS = (
    "\xe4\xf6\xfc\xdf\u03b1\u03b2\u03c2\u0430\u0431\u0441\u4e2d\u6587\u3042\u30a2\uac00\u0e01\u0939\u0905ab1"
)


def host(dice: random.Random) -> str:
    """A host of known parts, or of labels made up; many of them look encoded."""
    if dice.random() < 0.4:
        return dice.choice(HOSTS)
    labels = []
    for _ in range(dice.randrange(1, 5)):
        made_up = "".join(dice.choice(LETTERS) for _ in range(dice.randrange(1, 12)))
        foreign = "".join(dice.choice(FOREIGN_LETTERS) for _ in range(dice.randrange(1, 8)))
        encoded = f"xn--{foreign.encode('punycode').decode('ascii')}"
        labels.append(
            dice.choice([dice.choice(LABELS), made_up, f"xn--{made_up}", encoded, dice.choice(LABELS) + made_up])
        )
    return ".".join(labels)


SCRIPTED = ["javascript", "JavaScript", "vbscript", "data", "DATA", "blob", "filesystem", "scope", "java", "https"]
TYPES = [
    *(
        "",
        "text/html",
        "text/plain",
        "image/svg+xml",
        "a-b/c+xml",
        "x/y_z+xml",
        "text%2fhtml",
        "\xe9/x+xml",
        ";text/html",
    ),
    *(";a=b", "/x+xml", "a/+xml", "text / html", "a b/c+xml", " text/html ", "text/ht\tml", 'text/html;a=","'),
    *("a(b)/c+xml", "a/b/c+xml"),
]
AFTER_TYPE = [",x", ";base64,YQ==", ";charset=utf-8,x", "", ";,x"]
AFTER_SCHEME = ["alert(1)", "//x", "%0aalert(1)", "https://a.example/1", "read"]


def links(count: int, seed: int) -> Iterator[str]:
    """So many texts that somebody may show as links, many of which run a script; the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(count):
        scheme = dice.choice(SCRIPTED)
        rest = dice.choice(TYPES) + dice.choice(AFTER_TYPE) if scheme.lower() == "data" else dice.choice(AFTER_SCHEME)
        text = f"{scheme}:{rest}"
        for _ in range(dice.choice((0, 0, 1, 1, 2, 3))):
            place = dice.randrange(min(len(text), 16) + 1)
            text = text[:place] + dice.choice(ODDITIES) + text[place + dice.randrange(2) :]
        yield text


def uris(count: int, seed: int) -> Iterator[str]:
    """So many URIs; the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(count):
        if dice.random() < 0.5:
            # A likely one, so that enough are accepted for the agreement to mean something.
            scheme = dice.choice(("https", "http", "https", "cursor", "com.example.app", "HTTPS"))
            local = scheme == "http" and dice.random() < 0.8
            where = dice.choice(("localhost", "127.0.0.1", "127.9.8.7", "[::1]")) if local else host(dice)
            yield f"{scheme}://{where}{dice.choice(PORTS)}{dice.choice(('', '/', '/cb', '/cb?a=b', '?x'))}"
            continue
        text = "".join(
            dice.choice(part) for part in (SCHEMES, SEPARATORS, USERS, HOSTS, PORTS, PATHS, QUERIES, FRAGMENTS)
        )
        if dice.random() < 0.4:
            place = dice.randrange(len(text) + 1)
            text = text[:place] + dice.choice(ODDITIES) + text[place + dice.randrange(2) :]
        yield dice.choice(AROUND) + text + dice.choice(AROUND)
