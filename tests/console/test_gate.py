"""Who gets in to the console, and from where."""

import time

import httpx
import pytest

from console import links
from console.gate import Origin
from console.links import LINK_SECONDS, Links, new_link
from console.oidc import PENDING_SECONDS, Pending
from console.sessions import COOKIE, IDLE_SECONDS, LONGEST_SECONDS, Sessions, SigningIn, later
from tests.console.conftest import Console, House, signed_in

KEY = b"k" * links.KEY_BYTES
NOW = 1_800_000_000.0


def random(count: int) -> bytes:
    random.calls = getattr(random, "calls", 0) + 1  # type: ignore[attr-defined]
    return int(random.calls).to_bytes(count, "big")  # type: ignore[attr-defined]


def test_a_link_is_good_once() -> None:
    """Whoever finds it in a terminal's history."""
    opened = Links(KEY, started_at=0.0)
    link = new_link(KEY, b"n" * 16, NOW)
    assert opened.use(link, NOW + 1)
    assert not opened.use(link, NOW + 2)


@pytest.mark.parametrize(
    "link",
    [
        "",
        "x",
        new_link(b"other" * 8, b"n" * 16, NOW),
        new_link(KEY, b"n" * 16, NOW - LINK_SECONDS - 1),
        new_link(KEY, b"n" * 16, NOW + 60),
        new_link(KEY, b"n" * 16, NOW) + "A",
        new_link(KEY, b"n" * 16, NOW).replace(".", "..", 1),
    ],
)
def test_no_other_link_is_good(link: str) -> None:
    """The admin, whose machine has other users."""
    assert not Links(KEY, started_at=0.0).use(link, NOW)


def test_a_session_ends_by_idleness_and_in_any_case() -> None:
    """An admin who went home."""
    clock = [0.0]
    sessions = Sessions(random=random, clock=lambda: clock[0])
    idle, _ = sessions.begin(admin="kim")
    busy, _ = sessions.begin(admin="kim")
    step = IDLE_SECONDS - 1
    for _ in range(int(LONGEST_SECONDS / step)):
        clock[0] += step
        assert sessions.find(busy) is not None
    clock[0] += step
    assert sessions.find(busy) is None
    assert sessions.find(idle) is None


def a_sign_in(state: str, begun_at: float = 0.0) -> Pending:
    return Pending(state=state, nonce="n", code_verifier="v", return_to="/console", begun_at=begun_at)


def test_those_who_only_begin_to_sign_in_push_nobody_out() -> None:
    """Admins at work, and on their way in, while somebody opens the sign-in page a million times."""
    sessions = Sessions(random=random, clock=lambda: 0.0)
    signing_in = SigningIn(random=random, clock=lambda: 0.0)
    admin, _ = sessions.begin(admin="kim")
    mine = signing_in.seal(a_sign_in("mine"))
    for number in range(10_000):
        signing_in.seal(a_sign_in(f"state {number}"))
    assert sessions.find(admin) is not None
    assert signing_in._spent == {}
    taken = signing_in.take(mine)
    assert taken is not None
    assert taken.state == "mine"


def test_a_sign_in_that_was_begun_counts_once_and_in_time() -> None:
    """Admins: what a browser kept is worth nothing to whoever finds it later, or changes it."""
    clock = [0.0]
    signing_in = SigningIn(random=random, clock=lambda: clock[0])
    first, second = signing_in.seal(a_sign_in("one")), signing_in.seal(a_sign_in("two"))
    assert signing_in.take(first) is not None
    assert signing_in.take(first) is None
    for wrong in (None, "", "x", "ä", second[:-2] + "AA", second[2:], "A" * 5_000):
        assert signing_in.take(wrong) is None
    assert SigningIn(random=random, clock=lambda: 0.0).take(second) is None, "of another process"
    clock[0] = PENDING_SECONDS + 1.0
    assert signing_in.take(second) is None
    assert signing_in.take(signing_in.seal(a_sign_in("three", clock[0]))) is not None
    assert list(signing_in._spent) == ["three"], "what has ended is forgotten"


def test_a_page_that_looks_again_by_itself_keeps_nobody_signed_in() -> None:
    """An admin who went home with the status on the screen."""
    clock = [0.0]
    sessions = Sessions(random=random, clock=lambda: clock[0])
    name, _ = sessions.begin(admin="kim")
    for _ in range(int(IDLE_SECONDS)):
        clock[0] += 1.0
        sessions.find(name, used=False)
    assert sessions.find(name, used=False) is not None
    clock[0] += 1.0
    assert sessions.find(name) is None


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://admin.example:443", "https://admin.example"),
        ("https://admin.example:8443", "https://admin.example:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("https://Admin.Example", "https://admin.example"),
    ],
)
def test_the_origin_is_as_browsers_name_it(url: str, origin: str) -> None:
    """Operators who write down the port that https has anyway: their browsers get in."""
    ours = Origin.of(url)
    assert (ours.origin, ours.host) == (origin, origin.partition("://")[2])


def test_a_link_of_before_the_start_is_not_good() -> None:
    """The admin: which links were used before, nobody remembers."""
    link = new_link(KEY, b"n" * 16, NOW)
    assert not Links(KEY, started_at=NOW + 1).use(link, NOW + 2)
    assert Links(KEY, started_at=NOW + 0.9).use(link, NOW + 2)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, "log-aaaaaaaa-5", "log-aaaaaaaa-5"),
        ("log-aaaaaaaa-5", None, "log-aaaaaaaa-5"),
        ("log-aaaaaaaa-5", "log-aaaaaaaa-4", "log-aaaaaaaa-5"),
        ("log-aaaaaaaa-9", "log-aaaaaaaa-10", "log-aaaaaaaa-10"),
        ("log-aaaaaaaa-9", "log-bbbbbbbb-1", "log-bbbbbbbb-1"),
        ("odd", "log-bbbbbbbb-1", "log-bbbbbbbb-1"),
    ],
)
def test_the_later_position_counts(one: str | None, other: str | None, expected: str) -> None:
    """An admin who did several things at once: what is read next has all of them."""
    assert later(one, other) == expected


@pytest.mark.parametrize(
    "url",
    ["http://console.example", "https://u@console.example", "https://console.example/x", "ftp://x", "https://", "x"],
)
def test_a_console_that_browsers_could_not_keep_safe_does_not_start(url: str) -> None:
    """Operators: without TLS the cookie is not kept at all, and others could read along."""
    with pytest.raises(ValueError, match="console's URL"):
        Origin.of(url)


async def test_a_page_leads_to_the_sign_in_and_back(house: House) -> None:
    """An admin who was sent the address of a page."""
    answer = await house.http.get("/console/clients?name=a")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/sign-in?return_to=%2Fconsole%2Fclients%3Fname%3Da"


async def test_the_cookie_is_for_this_host_and_for_no_script(house: House) -> None:
    """Admins: RFC 6265bis section 4.1.3.2."""
    link = house.link().partition("link=")[2]
    page = await house.http.get(f"/console/sign-in?link={link}")
    assert page.status_code == 200  # looking at the address uses nothing up
    answer = await house.http.post("/console/sign-in", data={"link": link}, headers={"Origin": house.url})
    said = answer.headers["set-cookie"]
    assert said.startswith(f"{COOKIE}=")
    for each in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"):
        assert each in said
    assert "Domain" not in said
    again = await house.http.post("/console/sign-in", data={"link": link}, headers={"Origin": house.url})
    assert again.status_code == 403
    assert "used already" in again.text


async def test_signing_out_ends_the_session_here(console: Console, house: House) -> None:
    """An admin on somebody else's machine, whose cookie was copied."""
    await console.post("/console/sign-out")
    await console.get("/console/clients", answers=303)


ELSEWHERE = [
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {},
]


async def test_what_comes_from_elsewhere_does_nothing(console: Console, house: House) -> None:
    """An admin who has another page open, which sends a form of its own here."""
    client = await house.register()
    grant = await house.grant(client)
    before = (await house.ask("GET", "/admin/v1/status")).json()["log_position"]
    for headers in ELSEWHERE:
        answer = await house.http.post(
            f"/console/clients/{client}/delete",
            data={"typed": "delete 1"},
            headers={"Cookie": f"{COOKIE}={console.cookie}"} | headers,
        )
        assert answer.status_code == 403, headers
        assert "nothing was done" in answer.text
    assert (await house.ask("GET", f"/idp/v1/clients/{client}/grants/{grant}", role="idp")).json()["active"]
    assert (await house.ask("GET", "/admin/v1/status")).json()["log_position"] == before


async def test_another_name_that_leads_here_is_refused(console: Console, house: House) -> None:
    """DNS rebinding: a page of another origin that can read our answers."""
    headers = {"Cookie": f"{COOKIE}={console.cookie}", "Host": "evil.example"}
    assert (await house.http.get("/console/clients", headers=headers)).status_code == 421


async def test_no_page_of_elsewhere_reads_or_frames_ours(console: Console, house: House) -> None:
    """An admin, against scripts, side channels and clickjacking."""
    for site, mode, destination in (
        ("cross-site", "no-cors", "script"),
        ("cross-site", "cors", "empty"),
        ("same-origin", "navigate", "iframe"),
    ):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
        await console.get("/console/clients", answers=403, headers=headers)


async def test_no_token_of_the_api_opens_the_console(house: House) -> None:
    """And the other way round: a cookie is nothing to the API."""
    bearer = {"Authorization": f"Bearer {house.kept.tokens['admin']}"}
    assert (await house.http.get("/console/clients", headers=bearer)).status_code == 303
    console = await signed_in(house)
    cookie = {"Cookie": f"{COOKIE}={console.cookie}"}
    assert (await house.http.get("/admin/v1/clients", headers=cookie)).status_code == 401


async def test_the_consoles_token_acts_for_a_person_or_not_at_all(house: House) -> None:
    """Auditors: no act without a name; and the console can be no identity provider."""
    bearer = {"Authorization": f"Bearer {house.kept.console_token}"}

    async def ask(path: str, person: str | None) -> httpx.Response:
        headers = bearer if person is None else bearer | {"Grantbook-On-Behalf-Of": person}
        return await house.http.get(path, headers=headers)

    assert (await ask("/admin/v1/clients", None)).status_code == 403
    for odd in ("", "a b", "-a", "a" * 65):
        assert (await ask("/admin/v1/clients", odd)).status_code == 403
    assert (await ask("/admin/v1/clients", "kim@example.com")).status_code == 200
    assert (await ask("/audit/v1/events", "kim")).status_code == 200
    assert (await ask("/revocations/v1/stream", "kim")).status_code == 403
    assert (await ask("/idp/v1/clients/x", "kim")).status_code == 403
    assert (await ask("/metrics", "kim")).status_code == 403


async def test_our_own_files_are_kept_and_change_their_address(house: House) -> None:
    """Admins on slow lines."""
    page = (await house.http.get("/console/sign-in")).text
    path = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
    answer = await house.http.get(path)
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    assert (await house.http.get(path.replace("console.css", "../x.css"))).status_code == 404


async def test_a_form_of_another_kind_is_refused_and_breaks_nothing(house: House) -> None:
    """Operators: whoever sends what no page of ours sends gets a refusal, and fills no log with traces."""
    boundary = (
        "--b\r\nContent-Disposition: form-data; name=link\r\nContent-Type: text/plain; charset=nope\r\n\r\nx\r\n--b--"
    )
    headers = {"Origin": house.url, "Content-Type": "multipart/form-data; boundary=b"}
    answer = await house.http.post("/console/sign-in", content=boundary, headers=headers)
    assert answer.status_code == 415


async def test_links_of_the_command_line_are_those_that_the_console_takes(house: House) -> None:
    """Developers: `make console` on the same folder."""
    assert Links(bytes.fromhex(house.kept.link_key), started_at=0.0).use(
        house.link().partition("link=")[2], time.time()
    )
