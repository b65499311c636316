"""Who is held out: each unit by itself, for good, and about as many as was said."""

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from common.data.records import Record
from common.hold_out import held_out, hold_out_key, is_held_out

KEY = bytes(range(32))


def patients(count: int) -> list[list[Record]]:
    return [[Record(f"text {n}", "a", unit=f"p{n}"), Record("more", "b", unit=f"p{n}")]
            for n in range(count)]  # fmt: skip


def test_about_the_share_is_held_out() -> None:
    held = held_out(patients(4000), "patient", KEY, 0.25)
    # Five standard deviations of Binomial(4000, 1/4) either way.
    assert abs(sum(held) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_whether_one_unit_is_there_moves_no_other(present: set[int], gone: int) -> None:
    everyone = patients(61)
    with_it = {n: everyone[n] for n in sorted(present | {gone})}
    without = {n: unit for n, unit in with_it.items() if n != gone}
    before = dict(zip(with_it, held_out(list(with_it.values()), "patient", KEY, 0.5), strict=True))
    after = dict(zip(without, held_out(list(without.values()), "patient", KEY, 0.5), strict=True))
    assert after == {n: side for n, side in before.items() if n != gone}


def test_a_unit_keeps_its_side_whatever_its_records_and_their_order() -> None:
    units = patients(40)
    turned = [list(reversed(unit)) for unit in units]
    assert held_out(units, "patient", KEY, 0.5) == held_out(turned, "patient", KEY, 0.5)


def test_records_as_units_go_by_what_they_say_and_equal_ones_go_together() -> None:
    rows = [[Record(f"t{n % 7}", "a", unit=f"p{n}", line=n)] for n in range(70)]
    held = held_out(rows, "record", KEY, 0.5)
    assert [held[n] for n in range(7)] * 10 == held
    assert len({*held}) == 2


def test_another_key_divides_anew_and_a_job_has_its_own() -> None:
    units = patients(200)
    keys = [hold_out_key("ab" * 16, job * 32) for job in ("01", "02")]
    keys.append(hold_out_key("cd" * 16, "01" * 32))
    assert len({tuple(held_out(units, "patient", key, 0.5)) for key in keys}) == 3


def test_the_coin_is_hmac_sha256() -> None:
    digest = hmac.new(KEY, b"someone", hashlib.sha256).digest()
    coin = int.from_bytes(digest[:8], "big") / 2**64
    assert is_held_out(b"someone", KEY, coin + 1e-9)
    assert not is_held_out(b"someone", KEY, coin - 1e-9)
