from structlog.testing import capture_logs

from server.repeats import MOST_A_MINUTE, MOST_KINDS, Repeats


def test_some_of_a_kind_are_logged_a_minute_and_then_how_many_more() -> None:
    now = 1000.0
    repeats = Repeats(lambda: now)
    with capture_logs() as events:
        for number in range(3007):
            repeats.warning("call refused", "A", number=number)
        repeats.warning("call refused", "B", number=-1)
    assert [event["number"] for event in events] == [*range(MOST_A_MINUTE), -1]
    now += 60.5
    with capture_logs() as events:
        repeats.tell_rest()
        repeats.tell_rest()
        repeats.warning("call refused", "A", number=5)
    rest, again = events
    assert (rest["event"], rest["kind"]) == ("call refused, more of them", "A")
    assert rest["count"] == 3007 - MOST_A_MINUTE
    assert again["number"] == 5


def test_kinds_without_end_share_one_count() -> None:
    repeats = Repeats()
    with capture_logs() as events:
        for number in range(2003):
            repeats.warning("handshake refused", f"cause {number}", number=number)
    assert len(events) == MOST_KINDS + MOST_A_MINUTE
    with capture_logs() as events:
        repeats.tell_rest(at_once=True)
    (rest,) = events
    assert (rest["kind"], rest["count"]) == ("others", 2003 - MOST_KINDS - MOST_A_MINUTE)
