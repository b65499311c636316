"""Many sites on one server: whole replies, bounded memory, nobody held up by one who reads nothing.

The benchmark's own rounds, in which every number of every reply is checked.
"""

import pytest

from common.flower import become_server
from simulations.benchmarks.link_scale import WARM_UP_ROUNDS, Case, measure


def require_flat(case: Case, *, growth_mib: float) -> None:
    become_server()
    measured = measure(case)
    require_beside_stuck(measured, case)
    first, last, peak = (
        float(str(measured[f"server_mib_{key}"])) for key in ("first_third", "last_third", "peak")
    )
    message_mib = 4 * case.parameters / (1 << 20)
    assert last - first <= growth_mib
    # An order and a reply of each site, in at most four copies each, and nothing of other rounds.
    assert peak - first <= 8 * case.sites * message_mib + growth_mib


def require_beside_stuck(measured: dict[str, object], case: Case) -> None:
    """No round waited for the site that reads nothing: it held its order when the last reply came.

    A server that waited for it would run into the rounds' deadline, which raises; one that had
    dropped it would be fair to nobody.
    """
    assert measured["rounds_beside_stuck"] == WARM_UP_ROUNDS + case.rounds


@pytest.mark.slow
def test_sites_with_a_large_adapter_are_served_side_by_side() -> None:
    """The first reply comes late in the round, as all orders share the line.

    Of 20 sites one after another the first would be done after 0.05 of the round, which is what a
    mailbox changed to do so gives; measured on two busy cores it is 0.56 to 0.80. Both times are of
    one round, so that a slow machine changes neither.
    """
    become_server()
    case = Case(sites=20, few=5, parameters=300_000, rounds=3)
    measured = measure(case)
    assert float(str(measured["first_site_share"])) >= 0.4
    require_beside_stuck(measured, case)


def test_twenty_sites_and_one_that_reads_nothing() -> None:
    case = Case(sites=20, few=5, parameters=50_000, rounds=4)
    require_flat(case, growth_mib=24)


@pytest.mark.slow
def test_two_hundred_sites_and_one_that_reads_nothing() -> None:
    case = Case(sites=200, few=20, parameters=50_000, rounds=6)
    require_flat(case, growth_mib=48)
