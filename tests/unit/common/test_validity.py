"""Certificates made with dates of their own; the oracle is the calendar."""

import datetime as dt

import pytest
from cryptography import x509

from common import pki
from common.certificates import load_certificates
from common.validity import in_time

NOW = dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC)


def certificate(start: int, days: int) -> x509.Certificate:
    issued = NOW + dt.timedelta(days=start)
    old = pki.create_root("old", now=NOW - dt.timedelta(days=900))
    _, csr = pki.new_site_key_and_csr("A")
    above = pki.create_intermediate(old, now=NOW - dt.timedelta(days=200))
    return load_certificates(pki.issue_site(csr, above, days=days, now=issued))[0]


@pytest.mark.parametrize(
    ("start", "days", "mark", "words", "advice"),
    [
        (-5, 2, "fault", "it expired on 2026-03-01, 3 days ago by this machine's clock", "renew"),
        (3, 90, "fault", "it is not valid before 2026-03-07 05:01 UTC", "clock"),
        (-80, 90, "warning", "it expires in 10 days, on 2026-03-14", "renew"),
        # a short life: its last quarter is 7 days and a half
        (-23, 30, "warning", "it expires in 7 days, on 2026-03-11", "renew"),
        (-22, 30, "ok", "valid for 8 days, until 2026-03-12 (it)", ""),
        (-76, 90, "ok", "valid for 14 days, until 2026-03-18 (it)", ""),
        (0, 90, "ok", "valid for 90 days, until 2026-06-02 (it)", ""),
    ],
)
def test_a_certificate_is_judged_by_its_dates(
    start: int, days: int, mark: str, words: str, advice: str
) -> None:
    (found,) = in_time("c", {"it": certificate(start, days)}, "renew it", soon_days=14, now=NOW)
    assert (found.check, found.mark) == ("c", mark)
    assert words in found.found
    assert advice in found.advice
    assert bool(found.advice) == bool(advice)


def test_each_certificate_out_of_its_time_has_a_line() -> None:
    named = {"one": certificate(-5, 2), "two": certificate(0, 90), "three": certificate(-80, 90)}
    found = list(in_time("c", named, "renew", soon_days=14, now=NOW))
    assert [(f.mark, f.found.split()[0]) for f in found] == [("fault", "one"), ("warning", "three")]


def test_the_earliest_end_of_all_is_told() -> None:
    named = {"one": certificate(0, 90), "two": certificate(0, 30)}
    (found,) = in_time("c", named, "renew", soon_days=14, now=NOW)
    assert found.found == "valid for 30 days, until 2026-04-03 (two)"
