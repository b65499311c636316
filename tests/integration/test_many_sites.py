"""Many sites on one server: whole replies, bounded memory, nobody held up by one who reads nothing.

The benchmark's own rounds, in which every number of every reply is checked.
"""

import pytest

from common.flower import become_server
from simulations.benchmarks.link_scale import Case, measure


def require_flat_and_fair(case: Case, *, growth_mib: float) -> None:
    become_server()
    measured = measure(case)
    first, last, peak = (
        float(str(measured[f"server_mib_{key}"])) for key in ("first_third", "last_third", "peak")
    )
    message_mib = 4 * case.parameters / (1 << 20)
    assert last - first <= growth_mib
    # An order and a reply of each site, in at most four copies each, and nothing of other rounds.
    assert peak - first <= 8 * case.sites * message_mib + growth_mib
    assert 0 < float(str(measured["last_site_share"])) <= 1


def test_twenty_sites_and_one_that_reads_nothing() -> None:
    case = Case(sites=20, few=5, parameters=50_000, rounds=4)
    require_flat_and_fair(case, growth_mib=24)


@pytest.mark.slow
def test_two_hundred_sites_and_one_that_reads_nothing() -> None:
    case = Case(sites=200, few=20, parameters=50_000, rounds=6)
    require_flat_and_fair(case, growth_mib=48)
