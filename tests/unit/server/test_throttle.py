import pytest

from server.throttle import (
    MOST_AT_ONCE,
    MOST_BY_CALLER,
    WRONG_BY_ALL,
    WRONG_BY_CALLER,
    Limit,
    Places,
    caller_of,
)


def test_wrong_secrets_are_counted_by_caller_and_by_all_for_a_minute() -> None:
    now = 1000.0
    limit = Limit(lambda: now)
    for _ in range(WRONG_BY_CALLER):
        assert limit.allows("192.0.2.1")
        assert limit.note("192.0.2.1")
    assert not limit.allows("192.0.2.1")
    for number in range(WRONG_BY_ALL - WRONG_BY_CALLER):
        assert limit.note(f"192.0.3.{number}")
    assert not limit.note("192.0.2.2")
    assert limit.allows("192.0.2.3")  # whatever others sent
    now += 60.5
    assert limit.allows("192.0.2.1")
    assert limit.note("192.0.2.1")


def test_a_caller_has_its_places_and_all_together_have_theirs() -> None:
    places = Places()
    assert [places.take("192.0.2.1") for _ in range(3)] == [True, True, False]
    rest = [places.take(f"192.0.2.{number}") for number in range(2, MOST_AT_ONCE)]
    assert rest == [True] * (MOST_AT_ONCE - MOST_BY_CALLER)
    assert not places.take("198.51.100.1")
    places.give_back("192.0.2.1")
    assert places.take("192.0.2.1")
    assert not places.take("192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_a_caller_is_an_address_or_a_subscribers_network(
    one: str, other: str, are_one: bool
) -> None:
    assert (caller_of(one) == caller_of(other)) == are_one
