from hypothesis import given
from hypothesis import strategies as st

from server.charges import charged_steps
from server.checkpoint import Receipt

LOCAL_STEPS = 4


def reply(
    site: str, round_: int, charged: int, *, steps: int = LOCAL_STEPS, accepted: bool = True
) -> Receipt:
    return Receipt(site, round_, "", steps, charged, bytes_up=7, accepted=accepted)


def charged(receipts: list[Receipt], dispatched: list[tuple[int, str]]) -> int:
    return charged_steps(receipts, dispatched, LOCAL_STEPS)["A"]


def test_a_site_that_answered_every_round_is_charged_what_it_states() -> None:
    assert charged([reply("A", 1, 4), reply("A", 2, 8)], [(1, "A"), (2, "A")]) == 8


def test_a_crash_that_the_site_charged_for_counts() -> None:
    assert charged([reply("A", 1, 8), reply("A", 2, 12)], [(1, "A"), (2, "A")]) == 12


def test_a_round_without_a_reply_counts_until_the_site_says_otherwise() -> None:
    asked = [(1, "A"), (2, "A"), (3, "A")]
    assert charged([reply("A", 1, 4)], asked) == 12
    assert charged([reply("A", 1, 4), reply("A", 3, 8)], asked) == 8


def test_a_site_that_never_answered_is_charged_for_what_it_was_sent() -> None:
    assert charged_steps([], [(1, "A"), (2, "A"), (2, "B")], LOCAL_STEPS) == {"A": 8, "B": 4}


def test_a_rejected_reply_counts_as_no_reply_unless_it_states_more() -> None:
    assert charged([reply("A", 1, 0, accepted=False)], [(1, "A")]) == 4
    assert charged([reply("A", 1, 12, accepted=False)], [(1, "A")]) == 12


def test_a_site_that_states_less_than_it_executed_is_charged_what_it_executed() -> None:
    assert charged([reply("A", 1, 4), reply("A", 2, 4)], [(1, "A"), (2, "A")]) == 8


@given(st.lists(st.sampled_from(["answered", "lost after training", "away"]), max_size=30))
def test_no_charge_falls_short_of_the_releases_nor_exceeds_them_by_more_than_what_was_lost(
    fates: list[str],
) -> None:
    truth, lost_since, receipts = 0, 0, []
    for round_, fate in enumerate(fates, start=1):
        truth += LOCAL_STEPS * (fate != "away")
        lost_since = 0 if fate == "answered" else lost_since + 1
        if fate == "answered":
            receipts.append(reply("A", round_, truth))
    asked = [(round_, "A") for round_ in range(1, len(fates) + 1)]
    found = charged_steps(receipts, asked, LOCAL_STEPS).get("A", 0)
    assert truth <= found <= truth + lost_since * LOCAL_STEPS
