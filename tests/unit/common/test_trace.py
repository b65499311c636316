"""Ids that both logs share; that both ends make the same is in tests/integration/test_ids.py."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from common.trace import exchange_id, round_id

JOB = hashlib.sha256(b"a job").hexdigest()


@given(st.text(), st.text(), st.text())
def test_an_id_is_short_and_of_a_narrow_alphabet_whatever_a_peer_sends(
    job: str, group: str, message: str
) -> None:
    found = exchange_id(job, group, message)
    assert len(found) <= 40
    assert set(found) <= set("0123456789abcdefghijklmnopqrstuvwxyz/?")
    assert found.count("/") == 2


def test_an_exchange_is_found_by_its_round_and_a_round_by_its_job() -> None:
    assert exchange_id(JOB, "3", "9a" * 32).startswith(round_id(JOB, 3) + "/")
    assert not exchange_id(JOB, "31", "9a" * 32).startswith(round_id(JOB, 3) + "/")
    assert round_id(JOB, 3).startswith(JOB[:12])
