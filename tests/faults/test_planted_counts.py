"""Faults of counts as releases, planted one by one: what catches each (docs/evidence.md).

Each check is sound on the code as it is and fails on the code with the fault; a check is a
question that an oracle from outside answers, or the program's own refusal.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client.outbox import Outbox, RoundKey
from common import counting, estimates, hold_out, metric_messages
from common import histograms as schema
from common.audit.recompute import check_outcome
from common.counting import Judged, count
from common.data.records import Record
from common.errors import RoundRefused, SelfCheckFailed, UpdateRejected
from common.histograms import Histogram
from common.job import Job
from common.measured import measured
from common.metric_messages import Counts, counts_reply, read_counts
from common.privacy import accounting
from common.privacy import counts as noise
from common.privacy.account import Account, Charge, spent
from common.privacy.accounting import GaussianSteps
from common.privacy.ledger import Head
from common.privacy.noise import lattice_noise
from common.privacy.stream import Stream, fresh_key
from common.result import privacy_statement, site_result, write_result
from tests.unit.common.test_result import example

Check = Callable[[], None]
Patch = pytest.MonkeyPatch
JOB = "ab" * 32
TRAINING, COUNTS = GaussianSteps(0.05, 1.3, 4), GaussianSteps(1.0, 7.5, 1)
BOTH = (
    Histogram("accuracy", ("all",), ("right", "wrong")),
    Histogram("loss", ("below 1", "1 or more"), ("records",)),
)
EVERY = [Judged(right, 0, loss) for right in (True, False) for loss in (0.5, 2.0)]
HEAD = Head(7, "ab" * 32, "cd" * 64, "ef" * 91)


class Caught(AssertionError):
    """A check says no."""


def say(is_sound: bool, what: str) -> None:
    if not is_sound:
        raise Caught(what)


# What is asked of the code.


def farthest(cap: int = 2) -> None:
    """Every unit of up to three records, against what the noise is made for."""
    bound = schema.sensitivity(BOTH, cap)
    for size in (1, 2, 3):
        for unit in itertools.combinations_with_replacement(EVERY, size):
            stream = Stream(b"\1" * 32)
            own = count([unit], lambda one: one, BOTH, edges=(1.0,), cap=cap, stream=stream)
            say(
                float(np.linalg.norm(own)) <= bound + 1e-9, "a unit moves more than the noise hides"
            )


def whole_numbers() -> None:
    out = noise.noised(np.zeros(4000, dtype=np.int64), 9.0, Stream(b"\2" * 32))
    say(bool(np.all(out == np.rint(out))) and out.dtype == np.int64, "noise is no whole number")


def spread() -> None:
    out = noise.noised(np.zeros(40_000, dtype=np.int64), 9.0, Stream(b"\3" * 32)).astype(float)
    say(abs(out.std() / math.sqrt(81 + 1 / 12) - 1) < 0.03, "noise is not as wide as was charged")


def every_bin() -> None:
    out = noise.noised(np.zeros(64, dtype=np.int64), 9.0, Stream(b"\4" * 32))
    say(len(set(out.tolist())) > 8, "bins share their noise")


def account_of(folder: Path) -> Outbox:
    box = Outbox(folder / "account.db")
    box.open_job(JOB, "wards", b"{}", 0, TRAINING, metrics=COUNTS)
    return box


KEY = RoundKey(JOB, 3, "11" * 32)


def asked_twice(folder: Path) -> None:
    box = account_of(folder)
    box.reserve(KEY, COUNTS, b"kept", purpose="metrics")
    first = box.store(KEY, fresh_key("", 0, 0))
    say(box.stored(KEY) == box.store(KEY, fresh_key("", 0, 0)) == first, "a second release")


def charged_first(folder: Path) -> None:
    """A site's order of things, with the account's own refusals."""
    box = account_of(folder)
    box.reserve(KEY, COUNTS, b"kept", purpose="metrics")
    box.store(KEY, b"counts")
    cost = spent(Account.charges(box.journal.account), 1e-5)
    say(cost == accounting.epsilon([COUNTS], 1e-5), "counts are not in epsilon")


def apart() -> None:
    units = [[Record(f"t{n}", "a", unit=f"p{n % 30}")] for n in range(60)]
    sides: dict[str, set[bool]] = {}
    held = hold_out.held_out(units, "patient", b"\5" * 32, 0.5)
    for unit, is_held in zip(units, held, strict=True):
        sides.setdefault(unit[0].unit, set()).add(is_held)
    say(all(len(side) == 1 for side in sides.values()), "a unit trains and is counted")


def closed_reply(job: Job) -> None:
    bins = schema.bins(job.histograms)
    reply = metric_messages.counts_reply(Counts(np.zeros(bins, dtype=np.int64), "12" * 32, HEAD))
    read_counts(reply, job)


def within_epsilon(job: Job) -> None:
    say(accounting.epsilon(job.events, 1e-5) <= 6.0, "training and counts cost more than agreed")


def unbiased() -> None:
    rng, totals = np.random.default_rng(1), []
    for _ in range(300):
        sites = {f"S{n}": np.rint(rng.normal(0, 9, 2)).astype(np.int64) for n in range(6)}
        (found,) = estimates.estimates(sites, BOTH[:1], variance=1e-6, cap=1)
        totals.append(found.together.value is None)
    # Nothing is there: the sum of what noise leaves is at most 0 half of the time.
    say(sum(totals) > 110, "noise below zero is cut off before counts are added up")


def result_adds_up(job: Job, folder: Path, *, is_counted: bool) -> None:
    """``fl-audit result`` on what a server wrote."""
    privacy = privacy_statement(job, seeded=False)
    counts = {site: np.arange(5) for site in job.sites}
    sites = [site_result(site, 4, privacy, is_counted=True) for site in job.sites]
    if not is_counted:  # the server forgets to add it
        sites = [s.model_copy(update={"epsilon": privacy.epsilon(4)}) for s in sites]
    table: dict[str, Any] = example() | {
        "job_sha256": job.sha256,
        "sites": [one.model_dump() for one in sites],
        "privacy": privacy.model_dump(),
        "metrics": measured(job, counts, ()).model_dump(),  # type: ignore[union-attr]
    }
    for row in table["rounds"]:
        row["epsilon"] = privacy.epsilon(2 * row["round"])
    from common.config import parse
    from common.result import Result

    write_result(parse(Result, table, "result.json"), folder / "result.json")
    _, claims = check_outcome(folder)
    of_sites = [claim for claim in claims if claim.subject.startswith("site")]
    say(all(claim.passed for claim in of_sites), "a stated epsilon is not that of its charges")


@pytest.fixture
def counting_job(make_job: Callable[..., Job]) -> Job:
    asked = {"release": ["accuracy", "loss"], "hold_out": 0.25, "share": 0.3, "loss_edges": [1, 2]}
    return make_job(metrics=asked)


@pytest.fixture
def checks(counting_job: Job, tmp_path: Path) -> dict[str, Check]:
    return {
        "brute force": farthest,
        "whole numbers": whole_numbers,
        "law of the noise": spread,
        "own noise": every_bin,
        "asked twice": lambda: asked_twice(tmp_path),
        "charged first": lambda: charged_first(tmp_path),
        "apart": apart,
        "closed reply": lambda: closed_reply(counting_job),
        "within epsilon": lambda: within_epsilon(counting_job),
        "unbiased": unbiased,
    }


@pytest.mark.parametrize(
    "name",
    [
        "brute force", "whole numbers", "law of the noise", "own noise", "asked twice",
        "charged first", "apart", "closed reply", "within epsilon", "unbiased",
    ],
)  # fmt: skip
def test_the_code_as_it_is_passes(name: str, checks: dict[str, Check]) -> None:
    checks[name]()


# The faults.


def one_histogram_only(patch: Patch) -> None:
    def alone(histograms: tuple[Histogram, ...], cap: int) -> float:
        return float(cap * histograms[0].most)

    patch.setattr(schema, "sensitivity", alone)


def no_cap(patch: Patch) -> None:
    patch.setattr(counting, "choose_records", lambda records, cap, stream: np.arange(records))


def no_cap_and_no_guard(patch: Patch) -> None:
    no_cap(patch)
    patch.setattr(counting, "_require_bounded", lambda own, most: None)


def a_record_counts_in_two_bins(patch: Patch) -> None:
    sound = counting._bins_of
    patch.setattr(counting, "_bins_of", lambda *given: [*sound(*given), 0])


def float_noise(patch: Patch) -> None:
    def drawn(size: int, deviation: float, stream: Stream) -> np.ndarray:
        return deviation * (stream.uniforms(size) + stream.uniforms(size) - 1)

    patch.setattr(noise, "lattice_noise", drawn)


def half_the_noise(patch: Patch) -> None:
    sound = lattice_noise
    patch.setattr(noise, "lattice_noise", lambda n, s, stream: sound(n, s / 2, stream))


def one_draw_for_all_bins(patch: Patch) -> None:
    sound = lattice_noise
    patch.setattr(noise, "lattice_noise", lambda n, s, stream: np.repeat(sound(1, s, stream), n))


def noise_drawn_anew(patch: Patch) -> None:
    """Asked again, a site makes new bytes."""
    patch.setattr(Outbox, "stored", lambda box, key: None)


def not_charged(patch: Patch) -> None:
    patch.setattr(Outbox, "reserve", lambda *given, **named: None)


def charged_after(patch: Patch) -> None:
    """The bytes are kept before the charge is: the account refuses them."""
    sound, late = Outbox.reserve, []
    patch.setattr(Outbox, "reserve", lambda box, *given, **named: late.append((given, named)))
    keep = Outbox.store

    def store(box: Outbox, key: RoundKey, payload: bytes) -> bytes:
        kept = keep(box, key, payload)
        for given, named in late:
            sound(box, *given, **named)
        return kept

    patch.setattr(Outbox, "store", store)


def charged_as_nothing(patch: Patch) -> None:
    patch.setattr(Charge, "is_private", property(lambda charge: charge.purpose == "update"))


def units_on_both_sides(patch: Patch) -> None:
    """A coin for each record, where a unit has several."""
    patch.setattr(hold_out, "_identity", lambda record, unit: record.text.encode())


def how_many_there_are(patch: Patch) -> None:
    def told(result: Counts) -> RecordDict:
        reply = counts_reply(result)
        body = ConfigRecord({**reply.config_records["counts"], "n": 52})
        return RecordDict({"counts": body, "head": reply.config_records["head"]})

    patch.setattr(metric_messages, "counts_reply", told)


def a_length_that_tells(patch: Patch) -> None:
    """Empty bins at the end are left out."""

    def told(result: Counts) -> RecordDict:
        kept = np.trim_zeros(result.counts, "b")
        return counts_reply(Counts(kept, result.input_sha256, result.head))

    patch.setattr(metric_messages, "counts_reply", told)


def training_takes_all(patch: Patch) -> None:
    sound = accounting.calibrate

    def alone(**target: object) -> float:
        target.pop("beside", None)
        return sound(**target)

    patch.setattr(accounting, "calibrate", alone)


def clipped_too_early(patch: Patch) -> None:
    sound = estimates._of_histogram

    def early(part: dict[str, np.ndarray], *given: object) -> object:
        return sound({site: np.maximum(own, 0) for site, own in part.items()}, *given)  # type: ignore[arg-type]

    patch.setattr(estimates, "_of_histogram", early)


FAULTS: list[tuple[Callable[[Patch], None], str, type[Exception]]] = [
    (one_histogram_only, "brute force", Caught),
    (no_cap, "brute force", SelfCheckFailed),
    (no_cap_and_no_guard, "brute force", Caught),
    (a_record_counts_in_two_bins, "brute force", SelfCheckFailed),
    (float_noise, "whole numbers", Caught),
    (half_the_noise, "law of the noise", Caught),
    (one_draw_for_all_bins, "own noise", Caught),
    (noise_drawn_anew, "asked twice", Caught),
    (not_charged, "charged first", RoundRefused),
    (charged_after, "charged first", RoundRefused),
    (charged_as_nothing, "charged first", Caught),
    (units_on_both_sides, "apart", Caught),
    (how_many_there_are, "closed reply", UpdateRejected),
    (a_length_that_tells, "closed reply", UpdateRejected),
    (training_takes_all, "within epsilon", Caught),
    (clipped_too_early, "unbiased", Caught),
]


@pytest.mark.parametrize(("plant", "by", "how"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_a_planted_fault_is_caught(
    plant: Callable[[Patch], None],
    by: str,
    how: type[Exception],
    checks: dict[str, Check],
    monkeypatch: Patch,
) -> None:
    plant(monkeypatch)
    with pytest.raises(how):
        checks[by]()


def test_an_epsilon_that_forgets_the_counts_fails_the_audit(
    counting_job: Job, tmp_path: Path
) -> None:
    result_adds_up(counting_job, tmp_path, is_counted=True)
    with pytest.raises(Caught):
        result_adds_up(counting_job, tmp_path, is_counted=False)
