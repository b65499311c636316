"""Sweeps: what is run, what is not run again, and where each setting stands."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from common.errors import InvalidInput, Refusal
from common.methods import METHODS
from common.result import (
    FinalResult,
    Result,
    RoundResult,
    privacy_statement,
    site_result,
    write_result,
)
from simulations import leaderboard, simulate, sweep_page
from simulations.charts import Axis, numbers, places, powers
from simulations.scenario import DEFAULT, Options, Scenario
from simulations.sweep import Cell, perform, plan

OPTIONS = Options(no_privacy=True, values={"training.rounds": 2})
AXES = ("adapter.method=ffa,fedsvd", "training.learning_rate=0.1,0.5")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return plan(DEFAULT, OPTIONS, AXES, seeds=2)


def test_settings_under_one_seed_share_their_records_in_memory(cells: list[Cell]) -> None:
    """Or a sweep's plan grows with its settings."""
    one, other = [cell.scenario.records["A"] for cell in cells if cell.seed == 0][:2]
    assert one is not other
    assert all(mine is yours for mine, yours in zip(one, other, strict=True))


def score_of(scenario: Scenario) -> float:
    """A score that a run's settings and seed decide, so that means are known."""
    base = 0.4 if scenario.job.adapter.method == "ffa" else 0.6
    return round(base + scenario.job.training.learning_rate / 10 + 0.01 * scenario.seed, 6)


def result_of(scenario: Scenario, *, seeded: bool = False) -> Result:
    job, score = scenario.job, score_of(scenario)
    privacy = privacy_statement(job, seeded=seeded)
    return Result(
        job_sha256=job.sha256,
        name=job.job.name,
        task="seq-cls",
        grid="inprocess",
        private=privacy.is_private,
        sites=tuple(site_result(site, 4, privacy) for site in job.sites),
        start=None,
        rounds=tuple(
            RoundResult(
                round=n,
                accuracy=score * n / 2,
                macro_f1=0.1,
                entity_f1=None,
                epsilon=privacy.epsilon(2 * n),
                bytes_up=1000 * n,
                bytes_down=None if scenario.seed == 7 else 5000 * n,
                seconds=1.0,
            )
            for n in (1, 2)
        ),
        final=FinalResult(accuracy=score, macro_f1=0.1, entity_f1=None, classes=()),
        privacy=privacy,
        seconds=2.0,
        adapter_sha256="a" * 64,
    )


class Runs:
    """A run that writes what a real one leaves, and remembers which it was asked for."""

    def __init__(self, fails_after: int | None = None, diverges_at: float = math.inf) -> None:
        self.asked: list[str] = []
        self._fails_after, self._diverges_at = fails_after, diverges_at

    def __call__(self, scenario: Scenario, work: Path) -> Path:
        if self._fails_after is not None and len(self.asked) == self._fails_after:
            raise KeyboardInterrupt
        self.asked.append(scenario.job.sha256)
        rate, seed = scenario.job.training.learning_rate, scenario.seed
        if rate + seed >= self._diverges_at:
            raise Refusal(f"round 1 must have 2 usable updates, got 0 (A: norm <{seed}>)")
        write_result(result_of(scenario), work / "result.json")
        (work / "report.html").write_text("<p>a report</p>")
        return work


def ignore(_: Cell, is_done: bool) -> None:
    del is_done


def test_every_combination_is_run_under_every_seed(cells: list[Cell]) -> None:
    found = {
        (c.scenario.job.adapter.method, c.scenario.job.training.learning_rate, c.seed)
        for c in cells
    }
    assert found == {(m, r, s) for m in ("ffa", "fedsvd") for r in (0.1, 0.5) for s in (0, 1)}
    assert [c.seed for c in cells] == [0] * 4 + [1] * 4  # a sweep cut short can be compared
    assert len({c.scenario.job.sha256 for c in cells}) == 8


def test_epsilon_may_be_none() -> None:
    made = plan(DEFAULT, Options(), ["privacy.epsilon=3,none"], seeds=1)
    assert [c.scenario.job.privacy.epsilon for c in made] == [3.0, None]
    assert [c.scenario.job.is_private for c in made] == [True, False]


@pytest.mark.slow
def test_all_that_is_wrong_is_said_before_anything_is_run() -> None:
    with pytest.raises(InvalidInput) as caught:
        plan(DEFAULT, OPTIONS, ["adapter.method=ffa,nope,head+adapter.init=svd"], seeds=2)
    assert str(caught.value).count("adapter.init must be") == 1
    assert "adapter.method must be" in str(caught.value)


def test_every_method_and_rule_can_stand_beside_the_others() -> None:
    names = METHODS.keys() - {"ffa"}
    made = plan(DEFAULT, OPTIONS, [f"adapter.method=ffa,{','.join(sorted(names))}"], seeds=1)
    assert {c.scenario.job.adapter.method for c in made} == set(METHODS)
    axis = "aggregation.rule=mean,median,krum+aggregation.byzantine=1+adapter.rank=4"
    values = {"training.quorum": 5}
    rules = plan(DEFAULT, Options(sites=5, values=values), [axis], seeds=1)
    found = [c.scenario.job for c in rules]
    assert [(j.aggregation and j.aggregation.byzantine, j.adapter.rank) for j in found] == [
        (None, 2),
        (None, 2),
        (1, 4),
    ]  # the others have the scenario's rank
    assert rules[2].words == "rule krum, byzantine 1, rank 4"


def test_epsilons_are_not_varied_without_privacy() -> None:
    for axis in ("privacy.epsilon=3,8", "adapter.rank=1,2+privacy.epsilon=3"):
        with pytest.raises(InvalidInput, match="must be absent with --no-privacy"):
            plan(DEFAULT, OPTIONS, [axis], seeds=2)


@pytest.mark.parametrize("key", ["adapter.seed", "simulation.seed"])
def test_seeds_are_seeds_alone(key: str) -> None:
    with pytest.raises(InvalidInput, match=f"must vary seeds by --seeds, got {key}"):
        plan(DEFAULT, OPTIONS, [f"{key}=1,2"], seeds=1)
    fixed = replace(OPTIONS, values={key: 7})
    with pytest.raises(InvalidInput, match=f"--set {key} must be absent with --sweep and --seeds"):
        plan(DEFAULT, fixed, (), seeds=2)


def test_two_settings_that_are_one_run_are_refused() -> None:
    clips = ["privacy.epsilon=3,none", "privacy.clip_norm=0.5,1"]
    words = "got the same one for epsilon none, clip_norm 0.5 and epsilon none, clip_norm 1 "
    with pytest.raises(InvalidInput, match=words):
        plan(DEFAULT, Options(), clips, seeds=1)
    tied = "privacy.epsilon=3+privacy.clip_norm=0.5,3+privacy.clip_norm=1,none"
    assert len(plan(DEFAULT, Options(), [tied], seeds=1)) == 3


def test_lists_are_values_from_the_plan_to_the_page(tmp_path: Path) -> None:
    query, value = "layer.5.attention.self.query", "layer.5.attention.self.value"
    axis = f'adapter.targets=["{query}","{value}"],["{query}"]'
    made = plan(DEFAULT, OPTIONS, [axis], seeds=2)
    assert [c.scenario.job.adapter.targets for c in made[:2]] == [(query, value), (query,)]
    found = leaderboard.standings(perform(made, tmp_path, Runs(), ignore))
    assert [s.seeds for s in found] == [2, 2]
    assert {s.name for s in found} == {f"targets [{query}, {value}]", f"targets [{query}]"}
    leaderboard.write(found, "accuracy", tmp_path / "sweep.json")
    assert "targets [" in sweep_page.page(found, "lists", "accuracy")


@pytest.mark.parametrize(
    ("axes", "seeds", "words"),
    [
        (AXES, 0, "--seeds must be 1 to 10000, got 0"),
        (("training.rounds=1", "training.rounds=2"), 1, "must name each key once"),
        (("adapter.rank=1", "training.rounds=2+adapter.rank=2"), 1, "must name each key once"),
        (AXES, 9999, "sweep must have at most 10000 runs, got 39996"),
    ],
)
def test_a_sweep_out_of_bounds_is_refused(axes: tuple[str, ...], seeds: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        plan(DEFAULT, OPTIONS, axes, seeds)


def test_a_sweep_that_was_killed_runs_only_what_is_left(cells: list[Cell], tmp_path: Path) -> None:
    killed, after = Runs(fails_after=3), Runs()
    with pytest.raises(KeyboardInterrupt):
        perform(cells, tmp_path, killed, ignore)
    (tmp_path / cells[3].name).with_suffix(".tmp").mkdir()
    found = perform(cells, tmp_path, after, ignore)
    assert killed.asked + after.asked == [c.scenario.job.sha256 for c in cells]
    assert [r.job_sha256 for _, r in found if isinstance(r, Result)] == [
        c.scenario.job.sha256 for c in cells
    ]
    assert perform(cells, tmp_path, Runs(fails_after=0), ignore)


@pytest.mark.slow
def test_a_changed_scenario_runs_anew(cells: list[Cell], tmp_path: Path) -> None:
    perform(cells[:1], tmp_path, Runs(), ignore)
    changed = plan(DEFAULT, replace(OPTIONS, values={"training.rounds": 3}), AXES, seeds=1)
    again = Runs()
    perform(changed[:1], tmp_path, again, ignore)
    assert len(again.asked) == 1


def test_other_records_under_the_same_job_run_anew(cells: list[Cell]) -> None:
    first = cells[0]
    records = {**first.scenario.records, "A": first.scenario.records["A"][::-1]}
    other = replace(first, scenario=replace(first.scenario, records=records))
    assert other.scenario.job.sha256 == first.scenario.job.sha256
    assert other.name != first.name


def test_another_hold_out_or_way_to_run_is_run_anew(tmp_path: Path) -> None:
    path, names = tmp_path / "notes.csv", []
    values = {**OPTIONS.values, "evaluation.data": str(path), "evaluation.records": 1}
    for text in ("a cough", "a fever"):
        path.write_text(f"text,label\n{text},respiratory\n")
        for how in ("inprocess", "inprocess, seeded noise"):
            (cell,) = plan(DEFAULT, replace(OPTIONS, values=values), (), seeds=1, how=how)
            names.append((cell.scenario.job.sha256, cell.name))
    assert len({job for job, _ in names}) == 1
    assert len({name for _, name in names}) == 4


def test_means_and_intervals_are_students(cells: list[Cell], tmp_path: Path) -> None:
    found = leaderboard.standings(perform(cells, tmp_path, Runs(), ignore))
    best = found[0]
    assert best.setting == {"adapter.method": "fedsvd", "training.learning_rate": 0.5}
    values = [0.65, 0.66]
    low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    assert best.score == pytest.approx(np.mean(values))
    assert best.half_width == pytest.approx((high - low) / 2)
    assert best.by_round == pytest.approx((0.3275, 0.655))
    assert (best.bytes_up, best.bytes_down, best.seeds) == (3000, 15000, 2)
    assert best.epsilon is None
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)


def test_a_run_that_fails_is_an_outcome_and_is_kept(cells: list[Cell], tmp_path: Path) -> None:
    runs, words = Runs(diverges_at=1.2), "round 1 must have 2 usable updates, got 0 (A: norm <1>)"
    found = perform(cells, tmp_path, runs, ignore)
    assert len(runs.asked) == len(cells)
    failed = leaderboard.failures(found)
    assert [(f.setting["training.learning_rate"], f.seed, f.reason) for f in failed] == [
        (0.5, 1, words)
    ] * 2
    again = Runs()
    assert perform(cells, tmp_path, again, ignore) == found
    assert again.asked == []


def test_who_failed_under_a_seed_comes_after_who_did_not(cells: list[Cell], tmp_path: Path) -> None:
    found = perform(cells, tmp_path, Runs(diverges_at=1.2), ignore)
    best, failed = leaderboard.standings(found), leaderboard.failures(found)
    rate = "training.learning_rate"
    told = [(s.setting["adapter.method"], s.setting[rate], s.seeds, s.failed) for s in best]
    # fedsvd at 0.5 has the highest mean of all: of the one run that ended.
    assert told[:2] == [("fedsvd", 0.1, 2, 0), ("ffa", 0.1, 2, 0)]
    assert told[2:] == [("fedsvd", 0.5, 1, 1), ("ffa", 0.5, 1, 1)]
    assert best[2].score == max(standing.score for standing in best)
    leaderboard.write(best, "accuracy", tmp_path / "sweep.json", failed)
    loaded = json.loads((tmp_path / "sweep.json").read_text())
    assert [s["failed"] for s in loaded["settings"]] == [0, 0, 1, 1]
    assert [f["seed"] for f in loaded["failures"]] == [1, 1]
    page = sweep_page.page(best, "rates", "accuracy", failed)
    assert "8 runs, 2 without a result" in page
    assert page.count("norm &lt;1&gt;") == 2
    assert page.count(">1 of 2<") == 2
    drawn = page[page.index("What it costs") :]
    assert "learning_rate 0.1" in drawn
    assert "learning_rate 0.5" not in drawn


def test_a_setting_without_a_result_is_a_line_that_says_so(
    cells: list[Cell], tmp_path: Path
) -> None:
    found = perform(cells, tmp_path, Runs(diverges_at=0.5), ignore)
    best, failed = leaderboard.standings(found), leaderboard.failures(found)
    assert [(s.setting["training.learning_rate"], s.failed) for s in best] == [(0.1, 1)] * 2
    page = sweep_page.page(best, "rates", "accuracy", failed)
    assert page.count('<tr class="failed">') == 2
    assert page.count(">0 of 2<") == 2
    assert "<svg" not in page  # no setting is whole
    table = leaderboard.table(best, "accuracy", failed)
    assert list(table.columns[1].cells)[2:] == ["failed", "failed"]
    assert "2 settings" in sweep_page.page([], "rates", "accuracy", failed[1:3])


def test_whether_a_run_was_private_is_said(tmp_path: Path) -> None:
    made = plan(DEFAULT, Options(values={"training.rounds": 2}), ["privacy.epsilon=3,none"], 1)
    found = [(cell, result_of(cell.scenario, seeded=False)) for cell in made]
    assert {s.setting["privacy.epsilon"]: s.private for s in leaderboard.standings(found)} == {
        3: True,
        "none": False,
    }
    seeded = [(cell, result_of(cell.scenario, seeded=True)) for cell in made]
    best = leaderboard.standings(seeded)
    assert [s.private for s in best] == [False, False]
    leaderboard.write(best, "accuracy", tmp_path / "sweep.json")
    loaded = json.loads((tmp_path / "sweep.json").read_text())
    assert [s["private"] for s in loaded["settings"]] == [False, False]
    assert "No run promises privacy to anybody" in sweep_page.page(best, "e", "accuracy")
    assert "Not every run promises" in sweep_page.page(leaderboard.standings(found), "e", "f")


def test_the_command_goes_on_after_a_failure_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(diverges_at=1.0)

    def outcome(scenario: Scenario, _: str, work: Path, *__: object) -> Path:
        return runs(scenario, work)

    monkeypatch.setattr(simulate, "_outcome", outcome)
    plain = ["--no-privacy", "--grid", "inprocess", "--out", str(tmp_path)]
    rates = "training.learning_rate=0.1,9,0.2"
    assert simulate.main([*plain, "--sweep", rates]) == 0
    assert len(runs.asked) == 3
    told = json.loads((tmp_path / "sweep.json").read_text())
    assert [s["setting"]["training.learning_rate"] for s in told["settings"]] == [0.2, 0.1]
    assert [f["setting"]["training.learning_rate"] for f in told["failures"]] == [9]
    assert "learning_rate 9, seed 0: round 1 must have 2" in capsys.readouterr().err
    assert simulate.main([*plain, "--sweep", rates]) == 0
    assert len(runs.asked) == 3
    # Not those runs: their noise was fresh.
    assert simulate.main([*plain, "--seeded-noise", "--sweep", rates]) == 0
    assert len(runs.asked) == 6
    assert simulate.main([*plain, "--sweep", "training.learning_rate=9"]) == 2
    assert "sweep must have a run that ends, got 1 failed run" in capsys.readouterr().err


def test_one_run_has_no_interval() -> None:
    assert leaderboard.half_width([0.5]) is None


def test_table_file_and_page_say_the_same(cells: list[Cell], tmp_path: Path) -> None:
    found = leaderboard.standings(perform(cells, tmp_path, Runs(), ignore))
    leaderboard.write(found, "accuracy", tmp_path / "sweep.json")
    loaded = json.loads((tmp_path / "sweep.json").read_text())
    assert [s["score"] for s in loaded["settings"]] == [s.score for s in found]
    page = sweep_page.page(found, "a <b> name", "accuracy")
    assert "a &lt;b&gt; name" in page
    assert "<script" not in page
    for standing in found:
        assert page.count(f">{standing.score:.3f}<") >= 1
    assert page.count('class="chart"') == 4
    assert page.count(">15,000<") == len(found)


def test_a_result_of_before_has_no_bytes_down(cells: list[Cell]) -> None:
    old = replace(cells[0], seed=7, scenario=replace(cells[0].scenario, seed=7))
    best = leaderboard.standings([(cell, result_of(cell.scenario)) for cell in (cells[0], old)])
    assert (best[0].seeds, best[0].bytes_down) == (2, None)
    page = sweep_page.page(best, "old", "accuracy")
    assert page.count('class="chart"') == 3
    assert "over bytes down" not in page


@pytest.mark.parametrize(
    ("axis", "value", "mark"),
    [
        (places("epsilon", ["1", "8", "none"]), 2.0, "none"),
        (powers("bytes", [2_000, 3e6]), 4.0, "10 k"),
        (numbers("round", 12), 10.0, "10"),
    ],
    ids=["places", "powers", "numbers"],
)
def test_a_mark_stands_where_its_value_is_drawn(axis: Axis, value: float, mark: str) -> None:
    place = {words: axis.at(at) for at, words in axis.marks}[mark]
    assert place == axis.at(value)
    assert axis.at(axis.low) < place <= axis.at(axis.high)
