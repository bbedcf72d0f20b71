"""Limits of what anybody may do: token buckets, and whose bucket it is."""

import ipaddress
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.connection import ASGIConnection

from door import limits, sources
from door.limits import Limits, Rate
from door.sources import Source


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def at(address: str, network: str = "") -> Source:
    return Source(address, network)


def test_a_source_may_take_its_burst_and_then_what_refills() -> None:
    """Agents: a burst is fine, and how long to wait is said."""
    clock = Clock()
    bucket = Limits(None, Rate(2, 3), clock=clock)
    assert [bucket.take(at("a")) for _ in range(3)] == [0.0] * 3
    assert bucket.take(at("a")) == pytest.approx(0.5)
    clock.now = 0.5
    assert bucket.take(at("a")) == 0.0
    assert bucket.take(at("a")) > 0
    assert bucket.take(at("b")) == 0.0


def test_a_refused_request_takes_nothing() -> None:
    """Agents: who asks too early is not put back further."""
    clock = Clock()
    bucket = Limits(None, Rate(1, 1), clock=clock)
    bucket.take(at("a"))
    for _ in range(100):
        assert bucket.take(at("a")) == pytest.approx(1.0)
    clock.now = 1.0
    assert bucket.take(at("a")) == 0.0


def test_who_asks_much_does_not_take_everybody_elses_share() -> None:
    """Honest agents: the last part of the bucket for all is for networks that asked little."""
    bucket = Limits(Rate(1, 1_000), Rate(1, 1_000), clock=Clock())
    assert sum(bucket.take(at("hostile", "theirs")) == 0.0 for _ in range(2_000)) == 900
    assert bucket.take(at("another", "theirs")) > 0
    assert bucket.take(at("honest", "ours")) == 0.0


def test_many_addresses_of_one_network_do_not_take_it_either() -> None:
    """Honest agents: a flood from a thousand addresses, each with a bucket of its own, leaves the reserve to others."""
    bucket = Limits(Rate(1, 1_000), Rate(1, 100), clock=Clock())
    served = sum(bucket.take(at(f"10.0.0.{number % 500}", "10.0.0.0/16")) == 0.0 for number in range(20_000))
    assert served <= 910  # but for those that came while their network had asked little
    assert bucket.take(at("192.0.2.1", "192.0.0.0/16")) == 0.0


def test_the_table_of_sources_is_bounded() -> None:
    """Operators: a million addresses cost no more memory than the limit says."""
    bucket = Limits(Rate(1, 10), Rate(1, 10), clock=Clock(), max_sources=100)
    for number in range(10_000):
        bucket.take(at(str(number), str(number)))
    assert bucket.remembered == 200


def test_limits_can_be_switched_off() -> None:
    """Operators who have another limit in front."""
    bucket = Limits(None, None, clock=Clock())
    assert all(bucket.take(at("a")) == 0.0 for _ in range(10_000))
    assert bucket.remembered == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), max_size=200))
def test_no_source_and_not_all_together_get_more_than_their_rate(asked: list[tuple[str, float]]) -> None:
    """Operators: whatever the order and the time, a bucket gives its burst and what refilled."""
    clock = Clock()
    bucket = Limits(Rate(2, 10), Rate(1, 5), clock=clock)
    given_: list[str] = []
    for source, wait in asked:
        clock.now += wait
        if bucket.take(at(source, source)) == 0.0:
            given_.append(source)
    assert len(given_) <= 10 + 2 * clock.now + 1
    for source in "abc":
        assert given_.count(source) <= 5 + clock.now + 1


@pytest.mark.parametrize("text", ["", "1", "1/0", "0/1", "-1/5", "a/b", "1/2/3", "nan/1", "1/1.5"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Operators: they hear of it at the start."""
    with pytest.raises(ValueError, match=r".+"):
        limits.rate(text)


def test_rates_are_read() -> None:
    """Operators: as the help says."""
    assert limits.rate("0.5/20") == Rate(0.5, 20)
    assert limits.rate("off") is None


def source(peer: str, *forwarded: str, trusted: str = "") -> str:
    return sources.source_of(connection(peer, *forwarded), sources.proxies(trusted)).address


def connection(peer: str, *forwarded: str) -> ASGIConnection[Any, Any, Any, Any]:
    headers = [(b"x-forwarded-for", each.encode("latin-1")) for each in forwarded]
    scope: Any = {"type": "http", "client": (peer, 1) if peer else None, "headers": headers}
    return ASGIConnection(scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        ("192.0.2.7", ["203.0.113.9"], "", "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.0.0.2"], "10.0.0.0/8", "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9", "nonsense"], "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.0/8", "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9:1234"], "10.0.0.1", "203.0.113.9"),
        ("::ffff:192.0.2.7", [], "", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", [], "", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", [], "", "2001:db8:1:2::/64"),
        ("::1", ["[2001:db8::1]:443"], "::1, 10.0.0.0/8", "2001:db8::/64"),
        ("fe80::1%eth0", [], "", "fe80::/64"),
        ("", ["203.0.113.9"], "10.0.0.0/8", ""),
        ("/run/socket", ["203.0.113.9"], "", ""),
    ],
)
def test_the_source_is_the_first_address_that_is_no_proxy_of_ours(
    peer: str, forwarded: list[str], trusted: str, expected: str
) -> None:
    """Honest agents: nobody fills their bucket by naming them; everybody behind a proxy has a bucket."""
    assert source(peer, *forwarded, trusted=trusted) == expected


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.7", "192.0.0.0/16"),
        ("2001:db8:1:2::3", "2001:db8::/32"),
        ("::ffff:192.0.2.7", "192.0.0.0/16"),
        ("", ""),
    ],
)
def test_the_network_around_a_source_is_about_one_provider(peer: str, network: str) -> None:
    """Honest agents: who has one address of a provider often has many, and they are judged together."""
    assert sources.source_of(connection(peer), sources.Proxies()).network == network


def test_forged_headers_are_one_source() -> None:
    """Operators: CVE-2025-59152. A hundred thousand forgeries come from where they come from."""
    dice = random.Random(7)
    seen = set()
    for _ in range(100_000):
        forged = [str(ipaddress.ip_address(dice.getrandbits(32))) for _ in range(dice.randrange(3))]
        seen.add(source("192.0.2.7", ", ".join(forged)))
    assert seen == {"192.0.2.7"}


@given(st.text(max_size=50), st.lists(st.text(alphabet=st.characters(max_codepoint=255), max_size=50), max_size=3))
def test_no_header_breaks_anything(peer: str, forwarded: list[str]) -> None:
    """Everyone: a header is what a stranger wrote."""
    assert isinstance(source(peer, *forwarded, trusted="0.0.0.0/0, ::/0"), str)


def test_behind_proxies_a_forger_only_adds_to_the_left() -> None:
    """Operators: what a stranger writes stands left of what our proxy writes."""
    dice = random.Random(7)
    for _ in range(1_000):
        forged = ", ".join(str(ipaddress.ip_address(dice.getrandbits(32))) for _ in range(dice.randrange(40)))
        assert source("10.0.0.1", f"{forged}, 203.0.113.9", trusted="10.0.0.0/8") == "203.0.113.9"


def test_a_rate_that_is_shared_is_no_more_than_the_whole() -> None:
    """Operators: several processes let in what one would. Agents: none of them refuses the largest request for ever."""
    assert limits.shared(Rate(20, 1_000), 4, largest=65) == Rate(5, 250)
    assert limits.shared(Rate(1, 260), 4, largest=65) == Rate(0.25, 65)
    assert limits.shared(Rate(1, 10), 1, largest=65) == Rate(1, 10)
    assert limits.shared(None, 4, largest=65) is None
    with pytest.raises(ValueError, match="260 or more"):
        limits.shared(Rate(1, 259), 4, largest=65)
