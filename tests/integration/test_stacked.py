"""The same job over the stacked grid and over real sites one after the other, both in one process.

The oracle is the sequential run: every site a client/site.py with a home, a ledger on disk and a
trainer of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import client.site
from common.adapter import load_adapter
from common.audit.recompute import check_outcome
from common.data.records import Record
from common.errors import Refusal
from common.job import Job
from common.model import require_base
from common.result import Result, read_result
from server.checkpoint import Checkpoints, Receipt, RoundRecord
from server.counts import note_asked
from simulations import runs
from simulations.absence import Absence
from simulations.engine.engine import Engine
from simulations.scenario import Scenario

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
COUNTS = {"A": 30, "B": 12, "C": 21, "D": 5}
SITES: dict[str, Any] = {
    "data": {"population": dict.fromkeys(COUNTS, 24)},
    "training": {"rounds": 2, "local_steps": 2, "learning_rate": 0.2, "momentum": 0.4},
}


@pytest.fixture
def in_double() -> Iterator[Callable[[Job], None]]:
    """Lets a job's model compute in float64, at the server and at every site of this process."""
    changed = []

    def double(job: Job) -> None:
        adapter = load_adapter(job, require_base(job))
        adapter.model.double()
        changed.append(adapter)

    yield double
    for adapter in changed:  # it may be held for the next test
        adapter.model.float()


@pytest.fixture(autouse=True)
def _checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-checks are not what is tried here: no run repeats them."""
    monkeypatch.setattr(client.site, "rehearse", lambda *_, **__: ("skipped",))
    monkeypatch.setattr(runs, "rehearse", lambda *_, **__: ("skipped",))


def scenario(job: Job, rows: Rows) -> Scenario:
    records = {
        site: [Record(*row) for row in rows(count, offset=50 * i)]
        for i, (site, count) in enumerate(COUNTS.items())
    }
    return Scenario(job, records, seed=5)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[NDArray[np.float32], Any]]:
    """Grid -> its final adapter and receipts, as they were saved."""
    found: dict[str, Any] = {}
    save = Checkpoints.save_round

    def keep(self: Checkpoints, job: str, record: RoundRecord, *rest: Any, **more: Any) -> None:  # noqa: ANN401
        vector, receipts = rest
        receipts = list(receipts)
        save(self, job, record, vector, receipts, **more)
        _, before = found.get("last", (None, []))
        found["last"] = np.frombuffer(vector, "<f4"), [*before, *receipts]

    monkeypatch.setattr(Checkpoints, "save_round", keep)
    return found


def run(
    made: Scenario,
    grid: str,
    work: Path,
    outcomes: Any,  # noqa: ANN401
) -> tuple[Result, Any, list[Receipt]]:
    outcomes.clear()
    work.mkdir()
    if grid == "stacked":
        folder = runs.stacked(made, work, lambda *_: None)
    else:
        folder = runs.in_process(made, work, lambda *_: None, seeded=True)
    vector, receipts = outcomes["last"]
    return read_result(folder / "result.json"), vector, receipts


def public(receipts: list[Receipt]) -> list[tuple[Any, ...]]:
    """What receipts say, but for bytes that hold salts and signatures."""
    return sorted((r.site, r.round, r.steps, r.charged_steps, r.accepted) for r in receipts)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("ffa", marks=pytest.mark.slow),
        pytest.param("rolora", marks=pytest.mark.slow),
        "flexlora",
    ],
)
def test_in_float64_a_private_run_ends_with_the_same_adapter(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    in_double: Callable[[Job], None],
    method: str,
) -> None:
    ranks = {"B": 1} if method == "flexlora" else None
    made = scenario(make_job(adapter={"method": method, "ranks": ranks}, **SITES), rows)
    in_double(made.job)
    result, vector, receipts = run(made, "stacked", tmp_path / "stacked", outcomes)
    expected, alone, sequential = run(made, "inprocess", tmp_path / "alone", outcomes)
    assert np.max(np.abs(vector - alone)) <= 1e-9
    assert np.max(np.abs(vector)) > 0.05
    assert public(receipts) == public(sequential)
    assert (result.grid, expected.grid) == ("stacked", "inprocess")
    assert not result.private
    assert [s.epsilon for s in result.sites] == [s.epsilon for s in expected.sites]
    assert [r.accuracy for r in result.rounds] == [r.accuracy for r in expected.rounds]


@pytest.mark.parametrize("private", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_in_float32_a_run_ends_within_rounding(
    make_job: MakeJob,
    plain_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    private: bool,
) -> None:
    make = make_job if private else plain_job
    training = {**SITES["training"], "optimizer": "adamw", "momentum": 0.0, "learning_rate": 0.01}
    made = scenario(make(**{**SITES, "training": training}), rows)
    result, vector, _ = run(made, "stacked", tmp_path / "stacked", outcomes)
    _, alone, _ = run(made, "inprocess", tmp_path / "alone", outcomes)
    start = load_adapter(made.job, require_base(made.job)).initial
    moved = np.linalg.norm(alone - start)
    assert np.linalg.norm(vector - alone) <= 1e-4 * moved
    assert moved > 0.05
    _, claims = check_outcome(tmp_path / "stacked" / "outcome")
    assert all(claim.passed for claim in claims)
    assert not result.private


@pytest.mark.slow
def test_the_counts_of_a_job_are_those_of_real_sites(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    in_double: Callable[[Job], None],
) -> None:
    metrics = {"release": ["accuracy"], "share": 0.1, "hold_out": 0.25}
    made = scenario(make_job(**SITES, metrics=metrics), rows)
    in_double(made.job)
    result, _, _ = run(made, "stacked", tmp_path / "stacked", outcomes)
    expected, _, _ = run(made, "inprocess", tmp_path / "alone", outcomes)
    assert result.metrics is not None
    assert result.metrics == expected.metrics
    assert [site.counts for site in result.sites] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_unit_of_several_records_is_one_on_both_grids(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    in_double: Callable[[Job], None],
) -> None:
    privacy = {"unit": "patient", "unit_cap": 2, "sampling_rate": 0.4}
    made = scenario(make_job(**SITES, privacy=privacy), rows)
    records = {
        site: [replace(record, unit=f"p{i // 3}") for i, record in enumerate(own)]
        for site, own in made.records.items()
    }
    made = replace(made, records=records)
    in_double(made.job)
    _, vector, _ = run(made, "stacked", tmp_path / "stacked", outcomes)
    _, alone, _ = run(made, "inprocess", tmp_path / "alone", outcomes)
    assert np.max(np.abs(vector - alone)) <= 1e-9


def test_a_site_whose_records_do_not_fit_says_what_a_real_one_says(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
) -> None:
    made = scenario(make_job(**SITES), rows)
    made.records["C"][3] = Record("w1", "astrology")
    result, _, receipts = run(made, "stacked", tmp_path / "some", outcomes)
    assert {receipt.site for receipt in receipts} == {"A", "B", "D"}
    assert [site.steps for site in result.sites] == [4, 4, 0, 4]
    made.job.training.__dict__["quorum"] = 4
    with pytest.raises(Refusal, match=r"accepted by 4 sites, got at most 3 \(C: not participating"):
        run(made, "stacked", tmp_path / "none", outcomes)


@pytest.mark.slow
def test_sites_that_are_away_or_late_are_so_on_every_grid(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    in_double: Callable[[Job], None],
) -> None:
    """Who is too late is charged and its update is not used; who is away is asked for nothing."""
    training = {**SITES["training"], "rounds": 5, "local_steps": 1, "quorum": 1}
    absence = Absence(participation=0.75, dropout=0.2, stragglers=0.3)
    made = scenario(make_job(**{**SITES, "training": training}), rows)
    made = replace(made, absence=absence, seed=5)
    in_double(made.job)
    result, vector, receipts = run(made, "stacked", tmp_path / "stacked", outcomes)
    _, alone, _ = run(made, "inprocess", tmp_path / "alone", outcomes)
    assert np.max(np.abs(vector - alone)) <= 1e-7  # the state travels in float32

    nodes = made.job.site_of_node
    drawn = {
        round_: [
            {nodes[node] for node in part} for part in absence.draw(sorted(nodes), 5, round_, 1)
        ]
        for round_ in range(1, 6)
    }
    assert all(len(trained - late) > 0 for trained, late in drawn.values())  # no round asked twice
    assert any(late for _, late in drawn.values())
    used = {(receipt.site, receipt.round) for receipt in receipts if receipt.accepted}
    assert used == {(site, r) for r, (trained, late) in drawn.items() for site in trained - late}
    # A site's word counts up to its last update; every round that was asked since, it may have run.
    last = {site: max((r for s, r in used if s == site), default=0) for site in COUNTS}
    assert {site.name: site.steps for site in result.sites} == {
        site: sum(site in drawn[r][0] for r in range(1, last[site] + 1)) + 5 - last[site]
        for site in COUNTS
    }


def test_no_time_passes_where_a_round_is_asked_again(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = scenario(make_job(**{**SITES, "training": {**SITES["training"], "quorum": 3}}), rows)
    made = replace(made, absence=Absence(dropout=0.5), seed=5)
    attempts: list[int] = []
    draw = Absence.draw

    def drawn(self: Absence, nodes: list[int], seed: int, round_: int, attempt: int) -> Any:  # noqa: ANN401
        attempts.append(attempt)
        return draw(self, nodes, seed, round_, attempt)

    slept: list[float] = []
    monkeypatch.setattr(Absence, "draw", drawn)
    monkeypatch.setattr("server.round.time.sleep", slept.append)
    run(made, "stacked", tmp_path / "stacked", outcomes)
    assert max(attempts) > 1
    assert slept
    assert set(slept) == {0.0}


def test_sites_that_were_late_give_their_counts_at_once(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lateness is a round's: whoever was asked for counts once has answered."""
    metrics = {"release": ["accuracy"], "share": 0.1, "hold_out": 0.25}
    training = {**SITES["training"], "quorum": 1, "deadline_s": 8}
    made = scenario(make_job(**{**SITES, "training": training}, metrics=metrics), rows)
    made = replace(made, absence=Absence(stragglers=0.5), seed=4)
    nodes = sorted(made.job.site_of_node)
    _, late = made.absence.draw(nodes, 4, 2, 1)
    assert 0 < len(late) < len(nodes)
    asked: list[set[str]] = []
    note = note_asked

    def noted(checkpoints: Checkpoints, job: str, sites: set[str]) -> None:
        asked.append(set(sites))
        note(checkpoints, job, sites)

    monkeypatch.setattr("server.measuring.note_asked", noted)
    result, _, _ = run(made, "stacked", tmp_path / "stacked", outcomes)
    assert asked == [set(COUNTS)]
    assert [site.counts for site in result.sites] == [1, 1, 1, 1]
    assert result.metrics is not None
    assert sorted(one.site for one in result.metrics.sites) == sorted(COUNTS)
    assert not result.metrics.silent


@pytest.mark.parametrize("grid", ["stacked", "inprocess"])
def test_a_server_that_moves_farther_than_updates_could_is_refused_on_every_grid(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    grid: str,
) -> None:
    training = {**SITES["training"], "max_update_norm": 50.0}
    made = scenario(make_job(**{**SITES, "training": training}, adapter={"method": "ffa"}), rows)

    def far(_: Job, before: NDArray[np.float32], *__: Any) -> tuple[NDArray[np.float32], bytes]:  # noqa: ANN401
        return before + np.float32(60), b""

    monkeypatch.setattr("server.app.optimized", far)
    words = r"round 2 must have .* got 0 \(A: global adapter must be within .* this site knows"
    with pytest.raises(Refusal, match=words):
        run(made, grid, tmp_path / grid, outcomes)


def test_cohorts_of_any_size_end_with_the_same_adapter(
    make_job: MakeJob,
    rows: Rows,
    tmp_path: Path,
    outcomes: Any,  # noqa: ANN401
    in_double: Callable[[Job], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = scenario(make_job(**SITES), rows)
    in_double(made.job)
    _, whole, _ = run(made, "stacked", tmp_path / "whole", outcomes)
    monkeypatch.setattr(runs, "Engine", lambda: Engine(tokens=33, at_once=3))
    _, parts, _ = run(made, "stacked", tmp_path / "parts", outcomes)
    assert np.max(np.abs(whole - parts)) <= 1e-9
