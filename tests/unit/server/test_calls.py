import threading
from collections.abc import Iterator

from server.calls import MOST_BY_SITE, REQUEST_S, Calls


class Call:
    """A call whose request comes when it is let through, or that is cancelled."""

    def __init__(self) -> None:
        self.was_cancelled = False
        self.waits = threading.Event()
        self.goes_on = threading.Event()

    def cancel(self) -> None:
        self.was_cancelled = True
        self.goes_on.set()

    def requests(self) -> Iterator[bytes]:
        self.waits.set()
        assert self.goes_on.wait(30)
        if not self.was_cancelled:
            yield b"request"


def test_a_site_has_its_places_and_takes_none_of_another_s() -> None:
    calls = Calls()
    assert all(calls.take("A") for _ in range(MOST_BY_SITE))
    assert not calls.take("A")
    assert calls.take("B")
    calls.give_back("A")
    assert calls.take("A")
    assert not calls.take("A")


def test_a_call_that_keeps_its_request_is_ended_and_one_in_time_is_not() -> None:
    now = 1000.0
    calls = Calls(lambda: now)
    call, got = Call(), list[bytes | None]()
    thread = threading.Thread(target=lambda: got.append(calls.request("A", call.requests(), call)))
    thread.start()
    assert call.waits.wait(30)
    now += REQUEST_S - 0.5
    calls.end_late()
    assert not call.was_cancelled
    now += 0.75
    calls.end_late()
    assert call.was_cancelled
    thread.join(30)
    assert got == [None]


def test_a_call_whose_request_came_is_never_ended() -> None:
    now = 1000.0
    calls = Calls(lambda: now)
    call = Call()
    call.goes_on.set()
    assert calls.request("A", call.requests(), call) == b"request"
    now += 3 * REQUEST_S
    calls.end_late()
    assert not call.was_cancelled
